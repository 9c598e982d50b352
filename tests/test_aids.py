import numpy as np
import pytest
import torch

from lmfuse.aids import load_aids
from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import InputError
from lmfuse.losses.chunk_likelihood import ChunkLikelihood
from lmfuse.losses.kl import KL
from lmfuse.losses.projected_kl import ProjectedKL
from lmfuse.losses.uld import Uld
from lmfuse.pairs import load_map
from tests import fakes

TARGET = ByteTokenizer.from_tokenizer(fakes.byte_bpe(), eos="<|endoftext|>")
SOURCE = ByteTokenizer.from_tokenizer(fakes.metaspace_bpe(), bos="<s>", eos="</s>")


def test_most_losses_want_nothing(tmp_path):
    for loss in (KL(), Uld(), ChunkLikelihood(debias=False)):
        aids = load_aids(loss, TARGET, [SOURCE, SOURCE], tmp_path)
        assert (aids.boundary_ids, aids.projection) == (None, None)


def test_the_ids_that_stand_behind_a_boundary(tmp_path):
    found = load_aids(ChunkLikelihood(), TARGET, [], tmp_path).boundary_ids
    expected = [not (word := TARGET.vocabulary.bytes_of(i)) or word[:1] in b" \t\n\r" for i in range(TARGET.vocabulary.size)]
    assert found is not None
    assert found.tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_oracle_the_projection_is_the_map_from_target_to_source(tmp_path):
    found = load_aids(ProjectedKL(), TARGET, [SOURCE], tmp_path).projection
    onto = load_map(TARGET, SOURCE, tmp_path, "pieces")
    dense = np.zeros((onto.source_size, onto.target_size), np.float32)
    np.add.at(dense, (np.repeat(np.arange(onto.source_size), np.diff(onto.indptr)), onto.target_ids), onto.weights)
    assert found is not None
    projected, nowhere = found(torch.eye(TARGET.vocabulary.size))
    assert np.allclose(projected.numpy(), dense, atol=1e-6)
    assert np.allclose(projected.sum(1) + nowhere, 1, atol=1e-6)


def test_wrong_input_a_map_leads_to_one_source(tmp_path):
    for sources in ([], [SOURCE, SOURCE]):
        with pytest.raises(InputError, match=f"rows of {len(sources)} sources; a map leads to one source's vocabulary"):
            load_aids(ProjectedKL(), TARGET, sources, tmp_path)
