"""What the target writes instead of a short token, counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.counts import Counts
from lmfuse.align.longer import OFTEN, longer_map
from lmfuse.align.pair import Pair, build_pair
from lmfuse.types import Encoding, Rows, TopK, Vocabulary
from tests.align.test_pair import longest_first, toy_vocabulary


def as_dict(source: Vocabulary, target: Vocabulary, counts: Counts) -> dict[bytes, dict[bytes, float]]:
    found = longer_map(counts, source, target)
    return {
        source.bytes_of(token): {
            target.bytes_of(int(found.target_ids[n])): round(float(found.weights[n]), 4)
            for n in range(found.indptr[token], found.indptr[token + 1])
        }
        for token in np.flatnonzero(np.diff(found.indptr)).tolist()
    }


def counted(source: Vocabulary, target: Vocabulary, *times: tuple[bytes, bytes, int]) -> Counts:
    theirs, ours = ({vocabulary.bytes_of(i): i for i in range(vocabulary.size)} for vocabulary in (source, target))
    ids = [pair for s, t, n in times for pair in [(theirs[s], ours[t])] * n]
    return Counts.nothing(source.size, target.size).plus(*np.array(ids, np.int64).reshape(-1, 2).T)


def test_by_hand() -> None:
    source = Vocabulary.from_tokens([b"", b"1", b"2", b"the", b"new"])
    target = Vocabulary.from_tokens([b"", b"1", b"12", b"15", b"2", b"the", b"then", b"t", b"news"])
    counts = counted(source, target, (b"1", b"1", 2), (b"1", b"12", 6), (b"1", b"15", 1), (b"2", b"2", 9), (b"the", b"the", 999),
                     (b"the", b"then", 1), (b"the", b"t", 5), (b"new", b"news", 50))  # fmt: skip
    assert as_dict(source, target, counts) == {b"1": {b"1": 0.3, b"12": 0.6, b"15": 0.1}}  # `then` is rare, `new` is no target token


def test_a_token_that_never_stands_alone_is_believed_to_once() -> None:
    source, target = Vocabulary.from_tokens([b"1"]), Vocabulary.from_tokens([b"1", b"12"])
    assert as_dict(source, target, counted(source, target, (b"1", b"12", 9))) == {b"1": {b"1": 0.1, b"12": 0.9}}
    assert as_dict(source, target, counted(source, target)) == {}


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_loop_over_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = toy_vocabulary(rng), toy_vocabulary(rng)
    drawn = np.array([(s, t) for s, t in rng.integers(1, [source.size - 1, target.size - 1], (4000, 2)) if rng.random() < 0.5])
    close = [(s, t) for s in range(source.size) for t in range(target.size)
             if source.bytes_of(s) and target.bytes_of(t).startswith(source.bytes_of(s)) for _ in range(int(rng.integers(0, 30)))]  # fmt: skip
    both = np.concatenate([drawn, np.array(close)])
    found = as_dict(source, target, Counts.nothing(source.size, target.size).plus(both[:, 0], both[:, 1]))
    times: dict[bytes, Counter[bytes]] = {}
    for s, t in both.tolist():
        theirs, ours = source.bytes_of(s), target.bytes_of(t)
        if theirs and ours.startswith(theirs):
            times.setdefault(theirs, Counter())[ours] += 1
    written = {target.bytes_of(t) for t in range(target.size)}
    expected = {}
    for token, counter in times.items():
        if token in written:
            counter[token] += 1
            total = sum(counter.values())
            if total - counter[token] > OFTEN * total:
                kept = {ours: n for ours, n in counter.items() if n > 0.01 * total}
                expected[token] = {ours: round(n / sum(kept.values()), 4) for ours, n in kept.items()}
    assert found.keys() == expected.keys()
    for token, shares in expected.items():
        assert found[token].keys() == shares.keys()
        assert_allclose([found[token][ours] for ours in shares], list(shares.values()), atol=2e-4)


def test_a_candidate_that_did_not_follow_is_shared_and_one_that_did_is_not() -> None:
    source, target = Vocabulary.from_tokens([b"1", b"2", b"x"]), Vocabulary.from_tokens([b"1", b"12", b"2", b"x"])
    shares = longer_map(counted(source, target, (b"1", b"12", 2)), source, target)
    first = longest_first(target)
    pair = Pair.from_arrays(source, target, build_pair(source, target, first).to_arrays(), None, shares, first)
    topk = TopK(np.array([[0, 2], [0, 2]]), np.log(np.array([[0.6, 0.3], [0.6, 0.3]], np.float32)), np.log(np.full(2, 0.1, np.float32)), 3)
    rows = Rows(np.array([0, 1]), np.array([1, 2]), np.array([2, 0]), -np.log(np.array([0.3, 0.6], np.float32)), topk)
    aligned = ByteLaw(k=4)(rows, Encoding(np.array([3, 0]), np.array([0, 1]), np.array([1, 2])), pair)
    rows_of_it = zip(aligned.topk.ids, np.exp(aligned.topk.log_probs), strict=True)
    said = [{int(i): float(p) for i, p in zip(ids, probs, strict=True) if p > 0} for ids, probs in rows_of_it]
    assert (said[0][3], said[0][0], said[0][1]) == pytest.approx((0.3, 0.2, 0.4), abs=1e-3)  # `x` followed: `1` may be `12`
    assert (said[1][0], said[1][3]) == pytest.approx((0.6, 0.3), abs=1e-3)  # `1` followed, and the text says that it is `1`


def test_counts_of_other_vocabularies_are_refused() -> None:
    one, two = Vocabulary.from_tokens([b"a"]), Vocabulary.from_tokens([b"a", b"b"])
    with pytest.raises(ValueError, match=r"counts between 1 and 1 ids, expected 1 and 2"):
        longer_map(Counts.nothing(1, 1), one, two)
