"""The plain join."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lmfuse.align.exact import exact_map
from lmfuse.align.first_piece import first_piece_map
from lmfuse.align.join import Join
from lmfuse.align.pair import build_pair
from lmfuse.types import Encoding, Rows, TopK, Vocabulary
from tests.align.test_pair import TEXT, encode, longest_first, random_rows, total_mass, toy_vocabulary


def test_by_hand() -> None:
    source = Vocabulary.from_tokens([b"hello", b" wor", b"ld", b"help"])
    target = Vocabulary.from_tokens([b"hel", b"lo", b" world", b"p", b"ld", b"hello"])
    first = longest_first(target)
    pair = build_pair(source, target, first, first_piece_map(source, target, first))
    topk = TopK(np.array([[0, 3], [2, 0], [3, 0]]), np.log([[0.5, 0.25], [0.5, 0.25], [0.5, 0.25]]), np.log([0.25, 0.25, 0.25]), 4)
    topk = replace(topk, log_probs=topk.log_probs.astype(np.float32), tail=topk.tail.astype(np.float32))
    nll = -np.log(np.array([0.5, 0.125, 0.125], np.float32))
    rows = Rows(np.array([0, 5, 9]), np.array([5, 9, 11]), np.array([0, 1, 2]), nll, topk)
    aligned = Join()(rows, Encoding(np.array([5, 2]), np.array([0, 5]), np.array([5, 11])), pair)
    assert aligned.source_row.tolist() == [0, 1]
    assert aligned.topk.ids.tolist() == [[5, 0], [4, 5]]  # "help" goes to "hel"; " wor" has no target piece at all
    assert_allclose(np.exp(aligned.topk.log_probs), [[0.5, 0.25], [0.5, 0.25]], rtol=1e-5)
    assert_allclose(aligned.lost_mass, [0.0, 0.125], atol=1e-6)
    assert_allclose(aligned.truth_nll_nats, [np.log(2), np.nan], rtol=1e-6)
    inside = Join()(rows, Encoding(np.array([0, 1, 2]), np.array([0, 3, 5]), np.array([3, 5, 11])), pair)
    assert inside.source_row.tolist() == [0, -1, 1]
    assert np.exp(inside.topk.tail)[1] == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_the_same_vocabulary_and_tokens_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocabulary = toy_vocabulary(rng)
    pair = build_pair(vocabulary, vocabulary, longest_first(vocabulary), exact_map(vocabulary, vocabulary))
    encoding = encode(vocabulary, TEXT, rng, dummy_prefix=seed == 1, start_token=True)
    rows = random_rows(rng, vocabulary, encoding)
    aligned = Join(map="exact", k=rows.topk.k + 1)(rows, encoding, pair)
    assert aligned.source_row.tolist() == [-1, *range(len(rows))]
    assert (aligned.topk.ids[1:, :-1] == rows.topk.ids).all()
    assert_allclose(aligned.topk.log_probs[1:, :-1], rows.topk.log_probs, atol=1e-4)
    assert_allclose(aligned.truth_nll_nats[1:], rows.nll_nats)
    assert not aligned.lost_mass.any()


def test_true_tokens_keep_their_mass_on_average_where_the_map_is_exact() -> None:
    """Off-by-one guard."""
    rng = np.random.default_rng(0)
    source, target = (Vocabulary.from_tokens([bytes([b]) for b in order]) for order in (range(256), range(255, -1, -1)))
    text = bytes(rng.integers(0, 256, 300).astype(np.uint8))
    encoding = encode(target, text, rng)
    rows = random_rows(rng, source, encode(source, text, rng))
    aligned = Join(map="exact")(rows, encoding, build_pair(source, target, longest_first(target), exact_map(source, target)))
    on_truth = np.where(aligned.topk.ids == encoding.ids[:, None], np.exp(aligned.topk.log_probs), 0.0).sum(1)
    assert_allclose(on_truth, np.exp(-rows.nll_nats), rtol=1e-4)
    assert_allclose(total_mass(aligned.topk), 1.0, atol=1e-5)


def test_another_map_or_none_is_refused() -> None:
    rng = np.random.default_rng(0)
    vocabulary = toy_vocabulary(rng)
    encoding = encode(vocabulary, b"hello", rng)
    rows = random_rows(rng, vocabulary, encoding)
    pair = build_pair(vocabulary, vocabulary, longest_first(vocabulary))
    with pytest.raises(ValueError, match="the pair holds no map of tokens, expected 'first_piece'"):
        Join()(rows, encoding, pair)
    with pytest.raises(ValueError, match="the pair holds the map 'exact', expected 'min_ed'"):
        Join(map="min_ed")(rows, encoding, replace(pair, tokens=exact_map(vocabulary, vocabulary)))
    with pytest.raises(ValueError, match="rows over 2 ids"):
        Join(map="exact")(
            replace(rows, topk=TopK.unknown(len(rows), 2, 2)), encoding, replace(pair, tokens=exact_map(vocabulary, vocabulary))
        )


def test_by_hand_without_a_map_rows_stay_in_the_sources_vocabulary() -> None:
    source = Vocabulary.from_tokens([b"hello", b" wor", b"ld", b"help"])
    target = Vocabulary.from_tokens([b"hel", b"lo", b" world", b"hello"])
    topk = TopK(np.array([[3, 0], [2, 0], [3, 0]]), np.log([[0.5, 0.25], [0.5, 0.25], [0.5, 0.25]]), np.log([0.25, 0.25, 0.25]), 4)
    nll = np.array([1.0, 2.0, 3.0], np.float32)
    rows = Rows(np.array([0, 5, 9]), np.array([5, 9, 11]), np.array([0, 1, 2]), nll, topk)
    pair = build_pair(source, target, longest_first(target))
    aligned = Join(map="none")(rows, Encoding(np.array([0, 1, 2]), np.array([0, 3, 5]), np.array([3, 5, 11])), pair)
    assert aligned.topk.vocab_size == 4
    assert aligned.source_row.tolist() == [0, -1, 1]
    assert aligned.topk.ids[[0, 2]].tolist() == [[3, 0], [2, 0]]
    assert_allclose(np.exp(aligned.topk.log_probs), [[0.5, 0.25], [0, 0], [0.5, 0.25]], rtol=1e-6)
    assert_allclose(np.exp(aligned.topk.tail), [0.25, 1.0, 0.25], rtol=1e-6)
    assert np.isnan(aligned.truth_nll_nats).all()
    assert aligned.boundary.tolist() == [False, True, True]
    whole = Join(map="none", k=1)(rows, Encoding(np.array([3, 2]), np.array([0, 5]), np.array([5, 11])), pair)
    assert whole.topk.ids.tolist() == [[3], [2]]
    assert_allclose(np.exp(whole.topk.tail), [0.5, 0.5], rtol=1e-6)
    assert_allclose(whole.truth_nll_nats, [1.0, np.nan])
    empty = Join(map="none")(rows_of_nobody(), Encoding(np.array([0]), np.array([0]), np.array([3])), pair)
    assert (len(empty.topk), empty.topk.vocab_size, empty.taught.any()) == (1, 4, False)


def rows_of_nobody() -> Rows:
    nothing = np.zeros(0, np.int64)
    return Rows(nothing, nothing, nothing, np.zeros(0, np.float32), TopK.unknown(0, 2, 4))


@pytest.mark.parametrize("seed", range(3))
def test_without_a_map_the_rows_are_those_of_the_exact_map_between_equal_vocabularies(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocabulary = toy_vocabulary(rng)
    pair = build_pair(vocabulary, vocabulary, longest_first(vocabulary))
    encoding = encode(vocabulary, TEXT, rng, dummy_prefix=seed == 1, start_token=True)
    rows = random_rows(rng, vocabulary, encoding)
    aligned = Join(map="none")(rows, encoding, pair)
    assert (aligned.topk.ids[1:] == rows.topk.ids).all()
    assert_allclose(aligned.topk.log_probs[1:], rows.topk.log_probs)
    assert_allclose(aligned.topk.tail[1:], rows.topk.tail)
    assert_allclose(aligned.truth_nll_nats[1:], rows.nll_nats)
