import numpy as np
import pytest

from lmfuse.evolution.scores import UnitScore, _paired, compare, hopeless, mean_score, sign_test


def scored(values, weights=None, groups=None):
    weights, groups = weights or [1] * len(values), groups or [""] * len(values)
    rows = zip(values, weights, groups, strict=True)
    return {f"u{n}": UnitScore(float(v), w, g) for n, (v, w, g) in enumerate(rows)}


def test_by_hand():
    assert mean_score(scored([3, 1], [1, 3])) == 1.0
    assert mean_score(scored([3, 1, 5], [1, 3, 1], ["x", "x", "y"])) == 3.0
    assert sign_test(scored([1, 1, 1, 0]), scored([0, 0, 0, 0])) == 0.125
    assert sign_test(scored([1, 1, 1, 0]), scored([0, 0, 0, 1])) == 5 / 16
    assert sign_test(scored([0.0]), scored([0.0])) == 1.0
    found = compare(scored([2, 3, 4]), scored([1, 2, 3]))
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((1, 1, 1, 3))


def test_oracle_the_influence_is_the_derivative_of_the_difference():
    rng = np.random.default_rng(0)
    groups = ["x"] * 20 + ["y"] * 10
    a = scored(rng.random(30), [int(w) for w in rng.integers(1, 9, 30)], groups)
    b = scored(rng.random(30), [a[f"u{n}"].weight for n in range(30)], groups)
    influence, difference = _paired(a, b)
    assert difference == mean_score(a) - mean_score(b)
    draws = []
    for _ in range(3000):
        taken = np.concatenate([rng.integers(0, 20, 20), rng.integers(20, 30, 10)])
        again = [{str(n): each[f"u{unit}"] for n, unit in enumerate(taken)} for each in (a, b)]
        draws.append(mean_score(again[0]) - mean_score(again[1]))
    order = sorted(a)
    within = [np.var(influence[[order.index(f"u{n}") for n in part]]) * len(part) for part in (range(20), range(20, 30))]
    assert np.std(draws) == pytest.approx(np.sqrt(sum(within)) / 30, rel=0.1)


def test_a_hopeless_child_is_stopped_and_one_that_may_win_is_not():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=200)
    rival = scored(noise)
    some = {unit: rival[unit] for unit in list(rival)[:50]}

    def child(gap):
        shifted = rng.normal(size=50) * 0.2
        return {unit: UnitScore(score.value - gap + float(shift)) for (unit, score), shift in zip(some.items(), shifted, strict=True)}

    assert hopeless(child(0.5), rival, 200, 3.0)
    assert not hopeless(child(0.0), rival, 200, 3.0)
    assert not hopeless(child(-0.5), rival, 200, 3.0)
    assert not hopeless({"u0": UnitScore(-99.0)}, rival, 200, 3.0)  # one unit has no spread
    assert sum(hopeless(child(0.0), rival, 200, 3.0) for _ in range(300)) <= 3
    everything = {unit: UnitScore(score.value - 1e-9) for unit, score in rival.items()}
    assert hopeless(everything, rival, 200, 3.0)  # nothing is left to chance


def test_wrong_input():
    with pytest.raises(ValueError, match="a unit's weight is 0"):
        UnitScore(1.0, 0)
