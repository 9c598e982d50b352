"""Forward passes: every row once, in batches of similar length, equal to each document alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmfuse import forward
from lmfuse.errors import InputError, ResourceError
from lmfuse.forward import RowPlan, encode_all, length_buckets, row_logits
from lmfuse.models import LanguageModel, ModelSpec, load_model
from lmfuse.types import Document, Encoding
from tests.fakes import KINDS, TEXT, save_model

torch.set_num_threads(1)
DOCUMENTS = [Document.plain(text) for text in [*TEXT, "", "a", TEXT[0][:9]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LanguageModel:
    return load_model(ModelSpec(str(save_model(tmp_path_factory.mktemp("m"), KINDS["metaspace_bpe"]())), dtype="float32"))


def encoding(starts: list[int]) -> Encoding:
    return Encoding(np.arange(len(starts)), np.array(starts, np.int64), np.array([s + 1 if s >= 0 else -1 for s in starts], np.int64))


def test_plan_by_hand():
    plan = RowPlan.of([encoding([-1, 0, 1, -1, 4, -1]), encoding([]), encoding([0]), encoding([0, 1]), encoding([-1])])
    assert [found.tolist() for found in plan.positions] == [[1, 2, 4], [], [], [1], []]
    assert plan.offsets.tolist() == [0, 3, 3, 3, 4, 4]
    assert (plan.num_rows, plan.lengths.tolist()) == (4, [4, 0, 0, 1, 0])


@given(st.lists(st.integers(0, 60), max_size=40), st.integers(1, 200))
def test_buckets_hold_every_document_once_within_the_limit(lengths, batch_tokens):
    array = np.array(lengths, np.int64)
    buckets = length_buckets(array, batch_tokens)
    found = [int(i) for bucket in buckets for i in bucket]
    assert sorted(found) == [i for i, length in enumerate(lengths) if length]
    assert [lengths[i] for i in found] == sorted((n for n in lengths if n), reverse=True)
    for bucket in buckets:
        assert len(bucket) * array[bucket].max() <= batch_tokens or len(bucket) == 1
    again = [bucket.tolist() for bucket in length_buckets(array, batch_tokens)]
    assert again == [bucket.tolist() for bucket in buckets]


@pytest.mark.parametrize("batch_tokens", [1, 64, 100000])
def test_logits_are_those_of_each_document_alone(model, batch_tokens):
    encodings = [model.tokenizer.encode(document) for document in DOCUMENTS]
    plan = RowPlan.of(encodings)
    logits = torch.full((plan.num_rows, model.head.vocab_size), torch.nan)
    next_ids = np.full(plan.num_rows, -1)
    for chunk in row_logits(model, encodings, plan, batch_tokens=batch_tokens):
        assert not torch.is_inference_mode_enabled()
        assert logits[chunk.rows].isnan().all(), "a row came twice"
        logits[chunk.rows], next_ids[chunk.rows] = chunk.logits, chunk.next_ids.numpy()
    for index, encoded in enumerate(encodings):
        rows = slice(plan.offsets[index], plan.offsets[index + 1])
        with torch.no_grad():
            alone = model.module(input_ids=torch.from_numpy(encoded.ids.astype(np.int64))[None]).logits[0]
        wanted = np.flatnonzero(encoded.starts >= 0)
        wanted = wanted[wanted > 0]
        torch.testing.assert_close(logits[rows], alone[wanted - 1][:, : model.head.vocab_size], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(next_ids[rows], encoded.ids[wanted])


def test_chunks_are_small_and_padding_never_reaches_the_head(model, monkeypatch):
    monkeypatch.setattr(forward, "CHUNK_ROWS", 1)
    monkeypatch.setattr(forward, "CHUNK_LOGITS", {"cpu": 7 * model.head.vocab_size, "other": 1})
    encodings = [model.tokenizer.encode(document) for document in DOCUMENTS]
    plan = RowPlan.of(encodings)
    sizes = [len(chunk.rows) for chunk in row_logits(model, encodings, plan, batch_tokens=400)]
    assert max(sizes) == 7
    assert sum(sizes) == plan.num_rows


def test_dropout_is_off_meanwhile_and_training_goes_on_after(model):
    model.module.train()
    try:
        encodings = [model.tokenizer.encode(DOCUMENTS[0])]
        chunks = row_logits(model, encodings, RowPlan.of(encodings), batch_tokens=64)
        next(chunks)
        assert not model.module.training
        chunks.close()
        assert model.module.training
    finally:
        model.module.eval()


def test_a_document_longer_than_the_context_is_refused_by_name(model):
    long = Document.plain("dog " * 300, origin="dogs.txt:3")
    with pytest.raises(InputError, match=rf"document {long.id} \(dogs.txt:3\) has \d+ tokens, the model reads at most 256"):
        encode_all(model, [DOCUMENTS[0], long])
    assert len(encode_all(model, DOCUMENTS)) == len(DOCUMENTS)


def test_memory_that_does_not_suffice_names_the_batch(model, monkeypatch):
    def exhausted(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(LanguageModel, "hidden", exhausted)
    encodings = [model.tokenizer.encode(DOCUMENTS[0])]
    with pytest.raises(ResourceError, match="a batch of 1 documents"):
        next(row_logits(model, encodings, RowPlan.of(encodings), batch_tokens=64))


def test_no_documents_no_rows(model):
    assert list(row_logits(model, [], RowPlan.of([]), batch_tokens=64)) == []
