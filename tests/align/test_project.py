"""Candidates into another vocabulary."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lmfuse.align.project import Gathered, gather, project
from lmfuse.types import TopK, VocabularyMap
from tests.align.test_pair import total_mass


def random_topk(rng: np.random.Generator, num_rows: int, k: int, vocab_size: int) -> TopK:
    probs = rng.dirichlet(np.ones(k + 1), num_rows)
    probs[:, :k] = -np.sort(-probs[:, :k], axis=1)
    ids = np.array([rng.permutation(vocab_size)[:k] for _ in range(num_rows)])
    return TopK(ids, np.log(probs[:, :k]).astype(np.float32), np.log(probs[:, k]).astype(np.float32), vocab_size)


def random_map(rng: np.random.Generator, source_size: int, target_size: int, widest: int) -> VocabularyMap:
    counts = rng.integers(0, widest + 1, source_size)
    indptr = np.append(0, np.cumsum(counts)).astype(np.int64)
    targets = np.concatenate([rng.permutation(target_size)[:n] for n in counts]).astype(np.int64)
    weights = np.concatenate([rng.dirichlet(np.ones(n)) if n else np.zeros(0) for n in counts]).astype(np.float32)
    return VocabularyMap(indptr, targets, weights, target_size, "random")


def slow(topk: TopK, onto: VocabularyMap, k: int, keep: str) -> list[tuple[dict[int, float], float, float]]:
    """Per row: the k heaviest targets, the tail, the lost mass."""
    answer = []
    for ids, log_probs, tail in zip(topk.ids, topk.log_probs, topk.tail, strict=True):
        law: dict[int, float] = defaultdict(float)
        lost = 0.0
        shares = [(onto.indptr[i] + n, float(np.exp(lp)), i) for n in range(9) for i, lp in zip(ids, log_probs, strict=True)]
        for entry, p, i in shares:
            if onto.indptr[i] <= entry < onto.indptr[i + 1] and (keep == "sum" or int(onto.target_ids[entry]) not in law):
                law[int(onto.target_ids[entry])] += p * float(onto.weights[entry])
        lost = sum(float(np.exp(lp)) for i, lp in zip(ids, log_probs, strict=True) if onto.indptr[i] == onto.indptr[i + 1])
        kept = dict(sorted(law.items(), key=lambda item: -item[1])[:k])
        everything = float(np.exp(tail)) + float(np.exp(log_probs).sum())
        answer.append((kept, everything - sum(kept.values()), lost))
    return answer


def test_probabilities_that_meet_add_or_the_first_stays() -> None:
    onto = VocabularyMap.from_single(np.array([3, 3, 1, -1]), 4, "toy")
    rows = TopK(np.array([[0, 2, 1, 3]]), np.log(np.array([[0.4, 0.3, 0.1, 0.1]], np.float32)), np.log(np.array([0.1], np.float32)), 4)
    added, lost = project(rows, onto, 4)
    assert added.ids.tolist() == [[3, 1, 0, 0]]
    assert_allclose(np.exp(added.log_probs), [[0.5, 0.3, 0, 0]], atol=1e-6)
    assert_allclose([np.exp(added.tail[0]), lost[0]], [0.2, 0.1], rtol=1e-5)
    first, lost = project(rows, onto, 4, keep="first")
    assert_allclose(np.exp(first.log_probs), [[0.4, 0.3, 0, 0]], atol=1e-6)
    assert_allclose([np.exp(first.tail[0]), lost[0]], [0.3, 0.1], rtol=1e-5)


def gathered(ids: list[int], mass: list[float], k: int, pinned: int | None = None) -> Gathered:
    pins = None if pinned is None else np.array([pinned])
    return gather(np.array(ids)[:, None], np.array(mass)[:, None], np.array([1 - sum(mass)]), k, pinned=pins)


def test_a_pinned_id_is_never_cut() -> None:
    ids, mass = [5, 7, 9], [0.5, 0.3, 0.1]
    assert gathered(ids, mass, 2).ids.T.tolist() == [[5, 7]]
    kept = gathered(ids, mass, 2, pinned=9)
    assert (kept.ids.T.tolist(), kept.mass.T.tolist(), kept.lost.tolist()) == ([[5, 9]], [[0.5, 0.1]], [0.0])
    assert_allclose(kept.tail, [0.4])
    assert gathered(ids, mass, 1, pinned=7).ids.T.tolist() == [[7]]


def test_what_is_put_in_later_meets_its_like_or_takes_the_place_of_the_lightest() -> None:
    kept = gathered([5, 7], [0.5, 0.1], 2, pinned=9)
    one = np.array([0])
    kept.put(one, np.array([7]), np.array([0.05]))
    assert_allclose(kept.mass[:, 0], [0.5, 0.15])
    kept.put(one, np.array([3]), np.array([0.02]))  # lighter than all
    assert kept.ids[:, 0].tolist() == [5, 7]
    kept.put(one, np.array([9]), np.array([0.01]))  # pinned
    assert kept.ids[:, 0].tolist() == [5, 9]
    kept.put(one, np.array([2]), np.array([0.3]))  # lighter than 5, and 9 stays
    assert kept.ids[:, 0].tolist() == [5, 9]
    assert_allclose(kept.mass.sum() + kept.tail[0], 1 + 0.05 + 0.02 + 0.01 + 0.3, atol=1e-12)
    assert_allclose(total_mass(kept.topk(10)), 1.0, atol=1e-6)  # more than 1: scaled
    kept.forget(unless=np.array([False]))
    assert (kept.mass[:, 0].tolist(), kept.tail.tolist()) == ([0.0, 0.0], [1.0])


@pytest.mark.parametrize("seed", range(5))
def test_adding_later_equals_adding_at_once_where_nothing_is_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids, mass, tail = rng.integers(-1, 6, (9, 30)), rng.dirichlet(np.ones(10), 30).T[:9].copy(), np.full(30, 0.1)
    at_once = gather(ids, mass.copy(), tail, 9)
    later = gather(ids[:4], mass[:4].copy(), tail, 9)
    later.add(np.tile(np.arange(30), 4), ids[4:8].ravel(), mass[4:8].ravel())
    there = np.flatnonzero(ids[8] >= 0)
    later.put(there, ids[8, there], mass[8, there])
    later.add(np.flatnonzero(ids[8] < 0), ids[8, ids[8] < 0], mass[8, ids[8] < 0])
    for token in range(30):
        for wanted in range(6):
            assert_allclose(*(each.mass[each.ids[:, token] == wanted, token].sum() for each in (at_once, later)), atol=1e-12)
    assert_allclose(at_once.lost, later.lost)
    assert_allclose(at_once.tail, later.tail)


@pytest.mark.parametrize("keep", ["sum", "first"])
@pytest.mark.parametrize("widest", [1, 3])
@pytest.mark.parametrize("k", [1, 3, 8, 30])
def test_equals_a_loop_over_rows_and_candidates(keep: str, widest: int, k: int) -> None:
    rng = np.random.default_rng(k)
    rows, onto = random_topk(rng, 50, 8, 40), random_map(rng, 40, 12, widest)
    projected, lost = project(rows, onto, k, keep=keep)
    for n, (law, tail, lost_here) in enumerate(slow(rows, onto, k, keep)):
        mass = np.exp(projected.log_probs[n])
        assert sorted(projected.ids[n][mass > 0].tolist()) == sorted(law)
        assert_allclose(np.sort(mass[mass > 0]), np.sort(list(law.values())), rtol=1e-5)
        assert_allclose([np.exp(projected.tail[n]), lost[n]], [tail, lost_here], atol=1e-6)
    assert_allclose(total_mass(projected), 1.0, atol=1e-5)


def test_the_identity_changes_nothing() -> None:
    rows = random_topk(np.random.default_rng(0), 20, 5, 40)
    same, lost = project(rows, VocabularyMap.from_single(np.arange(40), 40, "exact"), 5)
    assert (same.ids == rows.ids).all()
    assert_allclose(same.log_probs, rows.log_probs, atol=1e-6)
    assert_allclose(same.tail, rows.tail, atol=1e-6)
    assert not lost.any()


def test_an_empty_map_loses_everything() -> None:
    rows = random_topk(np.random.default_rng(0), 20, 5, 40)
    nothing, lost = project(rows, VocabularyMap.from_single(np.full(40, -1), 7, "exact"), 5)
    assert not np.isfinite(nothing.log_probs).any()
    assert_allclose(nothing.tail, 0.0, atol=1e-6)
    assert_allclose(lost, np.exp(rows.log_probs).sum(1), rtol=1e-6)


def test_a_map_of_another_vocabulary_is_refused() -> None:
    rows = random_topk(np.random.default_rng(0), 2, 3, 40)
    with pytest.raises(ValueError, match="rows over 40 ids, but the map is from 41 ids"):
        project(rows, VocabularyMap.from_single(np.arange(41), 41, "exact"), 3)
