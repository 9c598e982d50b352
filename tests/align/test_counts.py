"""Which tokens meet over a corpus, counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse.align.counts import Counts, count_pairs, pairs_by_dtw, pairs_on_bytes
from lmfuse.align.dtw_path import decoded_strings, dtw_path
from lmfuse.types import Encoding, Vocabulary
from tests.align.test_pair import TEXT, encode, toy_vocabulary


def as_counter(counts: Counts) -> Counter[tuple[int, int]]:
    ids, onto = np.divmod(counts.codes, counts.target_size)
    return Counter(dict(zip(zip(ids.tolist(), onto.tolist(), strict=True), counts.counts.tolist(), strict=True)))


def slow_pairs(source: Encoding, target: Encoding) -> list[tuple[int, int]]:
    """Every pair of tokens, one by one: both begin at the same byte, and both or neither of them are a dummy prefix alone."""
    sides = [zip(e.ids.tolist(), e.starts.tolist(), (e.ends > e.starts).tolist(), strict=True) for e in (source, target)]
    theirs, ours = (list(side) for side in sides)
    return [(n, m) for n, *where in theirs for m, *place in ours if where == place and where[0] >= 0]


def test_hello_world_by_hand() -> None:
    source = Encoding(np.array([0, 1, 2]), np.array([0, 5, 9]), np.array([5, 9, 11]))  # hello| wor|ld
    target = Encoding(np.array([9, 0, 1, 2]), np.array([-1, 0, 3, 5]), np.array([-1, 3, 5, 11]))  # <s>|hel|lo| world
    assert [ids.tolist() for ids in pairs_on_bytes(source, target)] == [[0, 1], [0, 2]]
    strings = ["hello", " wor", "ld"], ["hel", "lo", "world"]
    assert [ids.tolist() for ids in pairs_by_dtw(source.ids, target.ids[1:], *strings)] == [[0, 1, 2], [0, 1, 2]]


def test_a_dummy_prefix_alone_meets_only_another() -> None:
    bare = Encoding(np.array([7, 3]), np.array([0, 0]), np.array([0, 2]))
    joined = Encoding(np.array([5]), np.array([0]), np.array([2]))
    assert [ids.tolist() for ids in pairs_on_bytes(bare, joined)] == [[3], [5]]
    assert [ids.tolist() for ids in pairs_on_bytes(bare, bare)] == [[7, 3], [7, 3]]


def test_a_repeated_id_among_the_matches_of_a_token_counts_once() -> None:
    """As released: three source tokens `a` for one target token are one pair; three target tokens for one source token are three."""
    strings = ["a"], ["aaa"]
    assert [ids.tolist() for ids in pairs_by_dtw(np.array([0, 0, 0]), np.array([0]), *strings)] == [[0], [0]]
    assert [ids.tolist() for ids in pairs_by_dtw(np.array([0]), np.array([0, 0, 0]), *strings)] == [[0, 0, 0], [0, 0, 0]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), prefixes=st.tuples(st.booleans(), st.booleans()), at_once=st.integers(1, 200))
def test_equals_a_dictionary_whatever_the_batches_and_the_order(seed: int, prefixes: tuple[bool, bool], at_once: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = toy_vocabulary(rng), toy_vocabulary(rng)
    documents = [
        (
            encode(source, TEXT[begin:], rng, dummy_prefix=prefixes[0]),
            encode(target, TEXT[begin:], rng, dummy_prefix=prefixes[1], start_token=True),
        )
        for begin in (0, 30, 50, 0)
    ]
    expected = Counter(pair for theirs, ours in documents for pair in slow_pairs(theirs, ours))
    counts = count_pairs(documents, source, target, pairs_at_once=at_once)
    assert as_counter(counts) == expected
    assert (np.diff(counts.codes) > 0).all()
    again = count_pairs(documents[::-1], source, target)
    assert (again.codes.tolist(), again.counts.tolist()) == (counts.codes.tolist(), counts.counts.tolist())
    mirrored = count_pairs([pair[::-1] for pair in documents], target, source)
    assert Counter({pair[::-1]: times for pair, times in as_counter(mirrored).items()}) == expected


def test_dtw_pairs_equal_the_path() -> None:
    rng = np.random.default_rng(1)
    source, target = toy_vocabulary(rng), toy_vocabulary(rng)
    theirs, ours = encode(source, TEXT, rng), encode(target, TEXT, rng, start_token=True)
    strings = [decoded_strings(vocabulary) for vocabulary in (source, target)]
    path = dtw_path([strings[0][n] for n in theirs.ids], [strings[1][n] for n in ours.ids[1:]], ties="target")
    expected = Counter((n, m) for m, places in zip(ours.ids[1:].tolist(), path, strict=True) for n in set(theirs.ids[places].tolist()))
    assert as_counter(count_pairs([(theirs, ours)], source, target, "dtw")) == expected


def test_memory_grows_with_the_pairs_not_with_the_vocabularies() -> None:
    rng = np.random.default_rng(0)
    counts = Counts.nothing(150_000, 150_000).plus(rng.integers(0, 150_000, 5000), rng.integers(0, 150_000, 5000))
    assert counts.codes.nbytes + counts.counts.nbytes <= 2 * 8 * 5000
    assert counts.codes.max() < 150_000**2


def test_no_document_and_empty_documents() -> None:
    vocabulary = Vocabulary.from_tokens([b"a"])
    empty = Encoding(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    for documents in ([], [(empty, empty)]):
        for positions in ("bytes", "dtw"):
            assert len(count_pairs(documents, vocabulary, vocabulary, positions).codes) == 0


def test_ids_of_another_vocabulary_are_refused() -> None:
    nothing = Counts.nothing(2, 3)
    with pytest.raises(ValueError, match="source ids 0 to 2, expected 0 to 1"):
        nothing.plus(np.array([0, 2]), np.array([0, 0]))
    with pytest.raises(ValueError, match="target ids -1 to 0, expected 0 to 2"):
        nothing.plus(np.array([0, 1]), np.array([0, -1]))
