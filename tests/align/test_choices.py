"""Which of the tokens that were counted get a source token's probability."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from lmfuse.align.choices import METHOD_NAMES, RULES, most_frequent, released, shares
from lmfuse.align.counts import Counts
from lmfuse.types import Vocabulary

WORDS = ["a", "ab", "abc", "b", "bc", "cab", "Ġa", "Ġab"]


def counted(pairs: dict[tuple[int, int], int], source: Vocabulary, target: Vocabulary) -> Counts:
    codes = np.array(sorted(n * target.size + m for n, m in pairs), np.int64)
    return Counts(codes, np.array([pairs[divmod(int(code), target.size)] for code in codes], np.int64), source.size, target.size)


def spelled(strings: list[str]) -> Vocabulary:
    return Vocabulary.from_tokens([s.replace("▁", " ").replace("Ġ", " ").encode() for s in strings], strings=strings)


def by_pair(rule, counts: Counts, source: Vocabulary, target: Vocabulary, min_share: float = 0.0) -> dict[tuple[int, int], float]:
    weights = rule(counts, source, target, min_share)
    return {divmod(int(code), target.size): weight for code, weight in zip(counts.codes, weights.tolist(), strict=True) if weight}


def test_by_hand() -> None:
    source, target = spelled(["cat", "dogs", "x"]), spelled(["cart", "cast", "dog", "do", "cat"])
    counts = counted({(0, 0): 5, (0, 1): 5, (0, 4): 1, (1, 2): 3, (1, 3): 1, (2, 1): 1, (2, 4): 1}, source, target)
    # cat: cart and cast are as frequent and as near, the lower id wins; x: `cat` is nearer than `cast`
    assert by_pair(most_frequent, counts, source, target) == {(0, 0): 1.0, (1, 2): 1.0, (2, 4): 1.0}
    assert by_pair(shares, counts, source, target) == pytest.approx(
        {(0, 0): 5 / 11, (0, 1): 5 / 11, (0, 4): 1 / 11, (1, 2): 0.75, (1, 3): 0.25, (2, 1): 0.5, (2, 4): 0.5}
    )
    assert by_pair(shares, counts, source, target, 0.3) == pytest.approx({(0, 0): 0.5, (0, 1): 0.5, (1, 2): 1.0, (2, 1): 0.5, (2, 4): 0.5})
    assert by_pair(shares, counts, source, target, 1.0) == by_pair(shares, counts, source, target, 0.46) | {}  # the largest always stay
    # cat: distance 0 whatever the count; dogs: .1 * 1 * sigmoid(3) < .1 * 2 * sigmoid(1); x: 3 sigmoid(1) < 4 sigmoid(1)
    assert by_pair(released, counts, source, target) == {(0, 4): 1.0, (1, 2): 1.0, (2, 4): 1.0}


def test_the_released_code_prefers_what_was_seen_less() -> None:
    source, target = spelled(["cat"]), spelled(["cot", "cut"])
    counts = counted({(0, 0): 9, (0, 1): 1}, source, target)
    assert by_pair(released, counts, source, target) == {(0, 1): 1.0}
    assert by_pair(most_frequent, counts, source, target) == {(0, 0): 1.0}


def slow_released(pairs: dict[tuple[int, int], int], source: Vocabulary, target: Vocabulary) -> dict[tuple[int, int], float]:
    best: dict[int, tuple[float, int]] = {}
    for (n, m), count in sorted(pairs.items()):
        theirs, ours = source.strings[n].replace("Ġ", ""), target.strings[m].replace("▁", "")
        distance = Levenshtein.distance(theirs, ours) * (0.1 if theirs in ours or ours in theirs else 1)
        best[n] = min(best.get(n, (math.inf, -1)), (distance / (1 + math.exp(-count)), m))
    return {(n, m): 1.0 for n, (_, m) in best.items()}


def slow_most_frequent(pairs: dict[tuple[int, int], int], source: Vocabulary, target: Vocabulary) -> dict[tuple[int, int], float]:
    best: dict[int, tuple[int, int, int]] = {}
    for (n, m), count in pairs.items():
        distance = Levenshtein.distance(source.bytes_of(n), target.bytes_of(m))
        best[n] = min(best.get(n, (1, 0, 0)), (-count, distance, m))
    return {(n, m): 1.0 for n, (_, _, m) in best.items()}


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.tuples(st.integers(0, 7), st.integers(0, 7)), st.integers(1, 4), max_size=30))
def test_equal_slow_loops(pairs: dict[tuple[int, int], int]) -> None:
    source, target = spelled(WORDS), spelled([word.replace("Ġ", "▁") for word in WORDS[::-1]])
    counts = counted(pairs, source, target)
    assert by_pair(released, counts, source, target) == slow_released(pairs, source, target)
    assert by_pair(most_frequent, counts, source, target) == slow_most_frequent(pairs, source, target)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.tuples(st.integers(0, 7), st.integers(0, 7)), st.integers(1, 300), max_size=30), st.floats(0, 1))
def test_every_counted_id_is_given_away_whole(pairs: dict[tuple[int, int], int], min_share: float) -> None:
    words = spelled(WORDS)
    counts = counted(pairs, words, words)
    for rule in RULES.values():
        weights = rule(counts, words, words, min_share)
        total = np.bincount(counts.codes // 8, weights, minlength=8)
        np.testing.assert_allclose(total[sorted({n for n, _ in pairs})], 1.0)
    kept = by_pair(shares, counts, words, words, min_share)
    for n in {n for n, _ in pairs}:
        total = sum(count for (i, _), count in pairs.items() if i == n)
        most = max(count for (i, _), count in pairs.items() if i == n)
        expected = {m for (i, m), count in pairs.items() if i == n and (count / total >= min_share or count == most)}
        assert {m for i, m in kept if i == n} == expected


def test_every_rule_has_the_name_of_a_map() -> None:
    assert RULES.keys() == METHOD_NAMES.keys()
    assert all(name.startswith("co_occurrence") for name in METHOD_NAMES.values())


def test_a_token_outside_the_vocabulary_is_an_error() -> None:
    words = spelled(["a", "b"])
    with pytest.raises(IndexError):
        released(Counts(np.array([9]), np.array([1]), 5, 2), words, words, 0.0)
