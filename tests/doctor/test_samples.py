import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmfuse.align.dtw import Dtw
from lmfuse.align.exact import exact_map, token_bytes
from lmfuse.align.min_ed import min_ed_map
from lmfuse.align.pair import build_pair
from lmfuse.doctor.samples import MAPS, aligned_stretches, certain_rows, maps_by_use, restricted, restricted_rows, stretches
from tests.doctor.build import documents, tokenizer
from tests.fakes import TEXT


@pytest.mark.parametrize("name", MAPS)
def test_a_map_of_some_ids_is_the_part_of_the_whole_map(name):
    """Oracle: the map of the whole vocabulary."""
    target, source = tokenizer("byte_bpe"), tokenizer("metaspace_bpe").vocabulary
    ids = np.arange(0, source.size, 3)
    whole, part = MAPS[name](source, target), MAPS[name](restricted(source, ids), target)
    np.testing.assert_array_equal(part.single(), whole.single()[ids])


def test_published_rules_on_some_ids_are_those_on_all():
    """Oracle: dynamic time warping with the whole vocabulary's MinED map."""
    target, source = tokenizer("byte_bpe"), tokenizer("metaspace_bpe")
    pieces = documents(*(text.strip() for text in TEXT[:4]))
    found = aligned_stretches(Dtw(), pieces, target, source)
    pair = build_pair(
        source.vocabulary, target.vocabulary, target.first_pieces, min_ed_map(source.vocabulary, target.vocabulary, on="strings")
    )
    said = [Dtw()(certain_rows(source.encode(piece), source.vocabulary.size), target.encode(piece), pair) for piece in stretches(pieces)]
    assert found["coverage"] == pytest.approx(sum((part.source_row >= 0).sum() for part in said) / found["tokens"])
    assert found["one_hot"] == pytest.approx(sum(part.one_hot.sum() for part in said) / found["tokens"])


def test_every_published_rule_can_be_sampled():
    for method in (Dtw(accept="equal"), Dtw(accept="suffix", one_hot="next")):
        found = aligned_stretches(method, documents(*TEXT), tokenizer("byte_bpe"), tokenizer("unigram"))
        assert 0 < found["coverage"] < 1, method


def test_use_counts_every_token_of_the_text():
    target, source = tokenizer("byte_bpe"), tokenizer("metaspace_bpe")
    mapped = exact_map(source.vocabulary, target.vocabulary).single() >= 0
    yes, no = int(np.flatnonzero(mapped)[0]), int(np.flatnonzero(~mapped & (source.vocabulary.lengths > 0))[0])
    found = {each["name"]: each for each in maps_by_use(target, source, np.array([yes, yes, yes, no]))}
    assert (found["exact"]["tokens"], found["exact"]["ids"]) == (0.75, 0.5)
    assert found["first_piece"]["tokens"] == 1.0


def test_restricted_rows_keep_what_they_say():
    vocabulary = tokenizer("byte_bpe").vocabulary
    rows = certain_rows(tokenizer("byte_bpe").encode(documents("the dog")[0]), vocabulary.size)
    used = np.unique(rows.next_ids)
    few = restricted_rows(rows, used)
    spelled = token_bytes(restricted(vocabulary, used))
    assert b"".join(spelled[n] for n in few.next_ids) == b"the dog"
    assert (few.topk.vocab_size, few.topk.ids[:, 0].tolist()) == (len(used), few.next_ids.tolist())


@given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=5), st.integers(1, 5), st.integers(4, 40))
def test_stretches_are_text_of_the_documents(texts, count, num_bytes):
    given_texts = "\n".join(texts)
    for piece in stretches(documents(*texts), count, num_bytes):
        assert piece.segments[0].text in given_texts
        assert len(piece.trained_bytes) <= num_bytes
