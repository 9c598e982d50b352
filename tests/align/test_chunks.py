"""Spans between the boundaries that two tokenizations share."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lmfuse.align.chunks import Chunks
from lmfuse.align.spans import concatenate, ends_together
from lmfuse.types import Encoding, Rows, TopK
from tests.align.test_pair import encode, random_rows, toy_vocabulary

SEEDS = st.integers(0, 2**32 - 1)


def rows_of(encoding: Encoding, nll: list[float] | None = None) -> Rows:
    """Rows of the tokens with text of an encoding, that know nothing but what followed."""
    text = encoding.starts >= 0
    num_rows = int(text.sum())
    nll_nats = np.ones(num_rows, np.float32) if nll is None else np.array(nll, np.float32)
    return Rows(encoding.starts[text], encoding.ends[text], encoding.ids[text], nll_nats, TopK.unknown(num_rows, 1, 10**6))


def spans(*bounds: tuple[int, int]) -> Encoding:
    starts, ends = np.array(bounds, np.int64).reshape(-1, 2).T
    return Encoding(np.arange(len(starts)), starts, ends)


def listed(chunks: Chunks) -> list[tuple[int, ...]]:
    return [tuple(int(n) for n in row) for row in zip(*astuple(chunks), strict=True)]


def masked(encoding: Encoding, rng: np.random.Generator, share: float) -> Encoding:
    """The encoding with some of its tokens without a place in the text."""
    gone = rng.random(len(encoding.ids)) < share
    return replace(encoding, starts=np.where(gone, -1, encoding.starts), ends=np.where(gone, -1, encoding.ends))


def slow_chunks(source: Encoding, target: Encoding) -> list[tuple[int, int]]:
    """The bytes of all chunks: every pair of common boundaries is tried, the shortest first; both sides have to cover all between."""
    text = [[span for span in zip(e.starts.tolist(), e.ends.tolist(), strict=True) if span[0] >= 0] for e in (source, target)]
    tiles = [[span for span in side if span[1] > span[0]] for side in text]
    ends = {end for _, end in tiles[0]} & {end for _, end in tiles[1]}
    found = []
    for begin in sorted({begin for begin, _ in tiles[0]} & {begin for begin, _ in tiles[1]}):
        end = min((end for end in ends if end > begin), default=None)
        covered = [sum(b - a for a, b in side if begin <= a and end is not None and b <= end) for side in tiles]
        if end is not None and covered == [end - begin] * 2:
            found.append((begin, end))
    return found


def two_views(seed: int, *, mask: float = 0.0) -> tuple[Encoding, Encoding, np.random.Generator]:
    """A random text over random vocabularies, as two tokenizers see it, with dummy prefixes and start tokens here and there."""
    rng = np.random.default_rng(seed)
    text = bytes(rng.choice(np.frombuffer(b"ab cd\n", np.uint8), int(rng.integers(1, 60))))
    source, target = (
        encode(toy_vocabulary(rng, text), text, rng, dummy_prefix=bool(rng.integers(2)), start_token=bool(rng.integers(2))) for _ in "st"
    )
    return masked(source, rng, mask), masked(target, rng, mask), rng


# -- by hand ----------------------------------------------------------------------------------------------------------------------


def test_hello_world_by_hand() -> None:
    target = spans((-1, -1), (0, 3), (3, 5), (5, 11))  # <s>|hel|lo| world
    rows = rows_of(spans((0, 5), (5, 9), (9, 11)), [1.0, 2.0, 4.0])  # hello| wor|ld
    chunks = Chunks.of(rows, target)
    assert listed(chunks) == [(1, 3, 0, 1, 0, 5), (3, 4, 1, 3, 5, 11)]
    assert chunks.source_log_probs(rows).tolist() == [-1.0, -6.0]
    assert chunks.sum_over_tokens(np.array([100.0, -0.5, -0.25, -8.0])).tolist() == [-0.75, -8.0]
    assert len(chunks) == 2


def test_a_dummy_prefix_alone_belongs_to_the_chunk_that_it_begins() -> None:
    bare, plain = spans((0, 0), (0, 2), (2, 5)), spans((0, 2), (2, 3), (3, 5))
    assert listed(Chunks.of(rows_of(bare), plain)) == [(0, 1, 0, 2, 0, 2), (1, 3, 2, 3, 2, 5)]
    assert listed(Chunks.of(rows_of(plain), bare)) == [(0, 2, 0, 1, 0, 2), (2, 3, 1, 3, 2, 5)]


def test_masked_spans_break_chunks_on_either_side() -> None:
    whole, gap = spans((0, 2), (2, 6), (6, 8), (8, 9)), spans((0, 2), (2, 3), (-1, -1), (5, 6), (6, 7), (7, 9))
    assert [row[4:] for row in listed(Chunks.of(rows_of(gap), whole))] == [(0, 2), (6, 9)]
    assert listed(Chunks.of(rows_of(whole), gap)) == [(0, 1, 0, 1, 0, 2), (4, 6, 2, 4, 6, 9)]


def test_a_token_without_text_in_between_breaks_a_chunk() -> None:
    """Two turns of a conversation share a byte axis without a gap; a chunk does not reach across the template between them."""
    target = spans((0, 3), (-1, -1), (3, 6), (6, 7))
    assert listed(Chunks.of(rows_of(spans((0, 6), (6, 7))), target)) == [(3, 4, 1, 2, 6, 7)]
    assert [row[4:] for row in listed(Chunks.of(rows_of(spans((0, 3), (3, 7))), target))] == [(0, 3), (3, 7)]


def test_nothing_in_common() -> None:
    for source, target in ((spans((0, 2)), spans((1, 3))), (spans(), spans((0, 1))), (spans((0, 1)), spans()), (spans((-1, -1)), spans())):
        chunks = Chunks.of(rows_of(source), target)
        assert len(chunks) == 0
        assert chunks.sum_over_tokens(np.ones(len(target.ids))).tolist() == []


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="the target's tokens overlap"):
        Chunks.of(rows_of(spans((0, 1))), spans((0, 2), (1, 3)))
    with pytest.raises(ValueError, match="the source's tokens overlap or do not stand in the order of the text"):
        Chunks.of(rows_of(spans((2, 3), (0, 2))), spans((0, 3)))


# -- invariants -------------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.1, 0.4]))
def test_equal_a_slow_search(seed: int, mask: float) -> None:
    source, target, _ = two_views(seed, mask=mask)
    found = listed(Chunks.of(rows_of(source), target))
    stretches = {row[4:]: target.starts[row[0] : row[1]] for row in found}
    assert set(stretches) <= set(slow_chunks(source, target))
    assert all((starts >= 0).all() for starts in stretches.values())
    if not mask:
        assert [row[4:] for row in found] == slow_chunks(source, target)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.2]))
def test_cover_each_byte_once_at_most_and_all_where_both_do(seed: int, mask: float) -> None:
    source, target, _ = two_views(seed, mask=mask)
    chunks = Chunks.of(rows_of(source), target)
    assert (chunks.byte_start[1:] >= chunks.byte_end[:-1]).all()
    assert (chunks.byte_end > chunks.byte_start).all()
    for first, stop in ((chunks.source_first, chunks.source_stop), (chunks.target_first, chunks.target_stop)):
        assert (stop > first).all()
        assert (first[1:] >= stop[:-1]).all()
    rows = rows_of(source)
    for side, first, stop in ((rows, chunks.source_first, chunks.source_stop), (target, chunks.target_first, chunks.target_stop)):
        assert_array_equal(side.starts[first], chunks.byte_start)
        assert_array_equal(side.ends[stop - 1], chunks.byte_end)
    if not mask:
        assert int((chunks.byte_end - chunks.byte_start).sum()) == int(target.ends.max())
        assert_array_equal(chunks.target_stop - 1, np.flatnonzero(ends_together(rows, target) & (target.ends > target.starts)))


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.2]))
def test_swapping_the_sides_swaps_the_sides(seed: int, mask: float) -> None:
    source, target, _ = two_views(seed, mask=mask)
    one = Chunks.between(source.starts, source.ends, target.starts, target.ends)
    other = Chunks.between(target.starts, target.ends, source.starts, source.ends)
    swapped = (other.source_first, other.source_stop, other.target_first, other.target_stop, other.byte_start, other.byte_end)
    assert listed(one) == listed(Chunks(*swapped))


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.2]))
def test_start_tokens_and_padding_change_nothing(seed: int, mask: float) -> None:
    source, target, rng = two_views(seed, mask=mask)
    before, behind = (int(n) for n in rng.integers(0, 4, 2))
    starts, ends = (np.pad(array, (before, behind), constant_values=-1) for array in (target.starts, target.ends))
    padded = Encoding(np.pad(target.ids, (before, behind)), starts, ends)
    plain, moved = Chunks.of(rows_of(source), target), Chunks.of(rows_of(source), padded)
    assert listed(moved) == [(first + before, stop + before, *rest) for first, stop, *rest in listed(plain)]


@settings(max_examples=60, deadline=None)
@given(st.lists(SEEDS, min_size=1, max_size=4), SEEDS)
def test_documents_of_a_batch_keep_their_chunks_in_any_order(seeds: list[int], order: int) -> None:
    views = [two_views(seed, mask=0.1)[:2] for seed in seeds]
    views = [views[n] for n in np.random.default_rng(order).permutation(len(views))]
    rows, targets = [rows_of(source) for source, _ in views], [target for _, target in views]
    together = Chunks.of(*concatenate(rows, targets))
    tokens_before, rows_before = (np.append(0, np.cumsum([len(part) for part in parts])) for parts in ([t.ids for t in targets], rows))
    expected = [
        (row[0] + int(tokens), row[1] + int(tokens), row[2] + int(first), row[3] + int(first), row[5] - row[4])
        for own, target, tokens, first in zip(rows, targets, tokens_before, rows_before, strict=False)
        for row in listed(Chunks.of(own, target))
    ]
    assert [(*row[:4], row[5] - row[4]) for row in listed(together)] == expected


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_log_probabilities_have_the_same_total_whatever_the_cuts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text = bytes(rng.choice(np.frombuffer(b"ab cd\n", np.uint8), int(rng.integers(1, 60))))
    source, target = toy_vocabulary(rng, text), toy_vocabulary(rng, text)
    rows = random_rows(rng, source, encode(source, text, rng, dummy_prefix=bool(rng.integers(2))))
    for _ in range(3):
        view = encode(target, text, rng, dummy_prefix=bool(rng.integers(2)), start_token=True)
        chunks = Chunks.of(rows, view)
        assert_allclose(chunks.source_log_probs(rows).sum(), -rows.nll_nats.sum(dtype=np.float64), rtol=1e-6)
        values = rng.normal(size=len(view.ids))
        values[view.starts < 0] = np.nan
        assert_allclose(chunks.sum_over_tokens(values).sum(), values[view.starts >= 0].sum(), rtol=1e-6, atol=1e-9)
