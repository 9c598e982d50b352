"""Candidates into another vocabulary."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lmfuse.align.project import gather_targets, project
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


def test_a_pinned_id_is_never_cut() -> None:
    ids, mass = np.array([[5], [7], [9]]), np.array([[0.5], [0.3], [0.1]])
    assert gather_targets(ids, mass, 2)[0].tolist() == [[5, 7]]
    kept, heavy, lost, cut = gather_targets(ids, mass, 2, pinned=np.array([9]))
    assert (kept.tolist(), heavy.tolist(), lost.tolist(), cut.tolist()) == ([[5, 9]], [[0.5, 0.1]], [0.0], [0.3])
    assert gather_targets(ids, mass, 1, pinned=np.array([7]))[0].tolist() == [[7]]


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
