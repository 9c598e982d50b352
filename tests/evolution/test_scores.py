import json
from collections import Counter

import numpy as np
import pytest
import torch

from lmfuse.evolution.judge import Racing
from lmfuse.evolution.scores import (
    UnitScore,
    _margin,
    _variance,
    compare,
    expected,
    hopeless,
    in_turn,
    mean_score,
    sign_test,
    student,
)


def scored(values, weights=None, groups=None):
    weights, groups = weights or [1] * len(values), groups or [""] * len(values)
    rows = zip(values, weights, groups, strict=True)
    return {f"u{n}": UnitScore(float(v), w, g) for n, (v, w, g) in enumerate(rows)}


def unchecked(value, weight):
    """Return a score as a user's function makes it: types are checked in tests only."""
    found = object.__new__(UnitScore)
    for name, given in (("value", value), ("weight", weight), ("group", "")):
        object.__setattr__(found, name, given)
    found.__post_init__()
    return found


def test_by_hand():
    assert mean_score(scored([3, 1], [1, 3])) == 1.0
    assert mean_score(scored([3, 1, 5], [1, 3, 1], ["x", "x", "y"])) == 3.0
    assert sign_test(scored([1, 1, 1, 0]), scored([0, 0, 0, 0])) == 0.125
    assert sign_test(scored([1, 1, 1, 0]), scored([0, 0, 0, 1])) == 5 / 16
    assert sign_test(scored([0.0]), scored([0.0])) == 1.0
    found = compare(scored([2, 3, 4]), scored([1, 2, 3]))
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((1, 1, 1, 3))


def test_oracle_the_error_is_the_spread_of_samples_drawn_without_return():
    """Of three groups 12 of 60, 12 of 15 and all 3 units are seen; samples are drawn again and again."""
    rng = np.random.default_rng(0)
    groups = ["x"] * 60 + ["y"] * 15 + ["z"] * 3
    a = scored(rng.random(78), [int(w) for w in rng.integers(1, 9, 78)], groups)
    b = scored(rng.random(78), [a[f"u{n}"].weight for n in range(78)], groups)
    sizes, seen = {"x": 60, "y": 15, "z": 3}, {"x": 12, "y": 12, "z": 3}
    margin = _margin({group: _variance(a, b, group) for group in "xy"}, seen, sizes, 1.0)
    draws = []
    for _ in range(3000):
        taken = [*rng.permutation(60)[:12], *60 + rng.permutation(15)[:12], 75, 76, 77]
        draws.append(mean_score({f"u{n}": a[f"u{n}"] for n in taken}) - mean_score({f"u{n}": b[f"u{n}"] for n in taken}))
    assert margin == pytest.approx(np.std(draws), rel=0.1)


def test_oracle_student_is_hardly_ever_narrower_than_scipy_says():
    from scipy.stats import norm, t

    for deviations in (1.0, 2.0, 3.0, 4.0):
        for freedom in (1.0, 2.0, 3.5, 5.0, 10.0, 30.0, 1000.0):
            exact = t.isf(norm.sf(deviations), freedom)
            assert exact * (1 - 5e-3) <= student(deviations, freedom)
            assert freedom < 5 or deviations > 3 or student(deviations, freedom) < exact * 1.1
    assert student(100.0, 1.0) == np.inf


def test_a_margin_by_hand():
    # one group: variance 4, 4 of 8 seen: error sqrt(4 (1/4 - 1/8)) with 3 degrees of freedom
    assert _margin({"x": 4.0}, {"x": 4}, {"x": 8}, 2.0) == pytest.approx(student(2.0, 3.0) * 0.5**0.5)
    # a quiet group of few units is taken to be as loud as both together: (3 * 4 + 3 * 0) / 6 = 2; parts 4/32 and 2/32, so freedom 27/5
    assert _margin({"x": 4.0, "y": 0.0}, {"x": 4, "y": 4}, {"x": 8, "y": 8}, 2.0) == pytest.approx(student(2.0, 5.4) * (6 / 32) ** 0.5)
    # and one of many units is not
    assert _margin({"x": 4.0, "y": 0.0}, {"x": 10, "y": 10}, {"x": 20, "y": 20}, 2.0) == pytest.approx(student(2.0, 9.0) * (4 / 80) ** 0.5)
    assert _margin({}, {"x": 2}, {"x": 2}, 3.0) == 0.0


def lost(num_units, num_groups, searches=300, **racing):
    """Return how many children won on all units, and how many of these were stopped; no model is better than another."""
    rng = np.random.default_rng(0)
    rule = Racing(**racing)
    won = stopped = 0
    for _ in range(searches):
        groups = [str(n % num_groups) for n in range(num_units)]
        names = in_turn([f"u{n}" for n in rng.permutation(num_units)], {f"u{n}": group for n, group in enumerate(groups)})
        rival = scored(rng.normal(-100, 30, num_units), [int(w) for w in rng.integers(50, 200, num_units)], groups)
        change = rng.normal(size=num_units)
        child = {f"u{n}": UnitScore(r.value + change[n] * r.weight, r.weight, r.group) for n, r in enumerate(rival.values())}
        if mean_score(child) > mean_score(rival):
            looks = [{unit: child[unit] for unit in names[:stop]} for stop in rule.stops(num_units)[:-1]]
            won, stopped = won + 1, stopped + any(hopeless(seen, rival, rule.deviations) for seen in looks)
    return won, stopped


@pytest.mark.parametrize("num_groups", [1, 10, 40])
def test_of_children_that_win_hardly_any_is_stopped(num_groups):
    won, stopped = lost(80, num_groups)
    assert won > 120
    assert stopped <= 1


def test_groups_take_turns_and_none_is_judged_by_one_unit():
    units = [f"u{n}" for n in range(40)]
    groups = {unit: "common" if n % 8 else "rare" for n, unit in enumerate(units)}
    order = in_turn(units, groups)
    assert sorted(order) == sorted(units)
    assert order[0] == "u0"
    assert Counter(groups[unit] for unit in order[:10]) == {"rare": 5, "common": 5}
    rival = {unit: UnitScore(0.0, 1, groups[unit]) for unit in units}
    child = {unit: UnitScore(-1.0 - 0.01 * n, 1, groups[unit]) for n, unit in enumerate(order)}
    assert not hopeless({unit: child[unit] for unit in order[:3]}, rival, 1.0)
    assert hopeless({unit: child[unit] for unit in order[:4]}, rival, 1.0)
    other = {unit: UnitScore(score.value, 1, "else") for unit, score in child.items()}
    assert not hopeless(other, rival, 1.0)  # in groups of its own nothing can be compared


def test_a_stopped_child_is_worth_its_rival_and_their_difference():
    rival = scored([0, -10, -20], groups=["x", "x", "y"])
    assert expected({"u0": UnitScore(-1.0, 1, "x"), "u2": UnitScore(-23.0, 1, "y")}, rival) == -12.5 - 2.0
    assert expected(rival, None) == mean_score(rival)


def test_numbers_of_numpy_and_torch_become_plain():
    for value, weight in ((np.float32(0.5), np.int64(3)), (torch.tensor(0.5), 3.0)):
        found = unchecked(value, weight)
        assert (type(found.value), type(found.weight)) == (float, int)
        assert json.dumps([found.value, found.weight]) == "[0.5, 3]"


def test_a_hopeless_child_is_stopped_and_one_that_may_win_is_not():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=200)
    rival = scored(noise)
    some = {unit: rival[unit] for unit in list(rival)[:50]}

    def child(gap):
        shifted = rng.normal(size=50) * 0.2
        return {unit: UnitScore(score.value - gap + float(shift)) for (unit, score), shift in zip(some.items(), shifted, strict=True)}

    assert hopeless(child(0.5), rival, 3.0)
    assert not hopeless(child(0.0), rival, 3.0)
    assert not hopeless(child(-0.5), rival, 3.0)
    assert not hopeless({"u0": UnitScore(-99.0)}, rival, 3.0)  # one unit has no spread
    assert sum(hopeless(child(0.0), rival, 3.0) for _ in range(300)) <= 3
    everything = {unit: UnitScore(score.value - 1e-6 * (1 + n % 2)) for n, (unit, score) in enumerate(rival.items())}
    assert hopeless(everything, rival, 3.0)  # nothing is left to chance


def test_wrong_input():
    with pytest.raises(ValueError, match="a unit's weight is 0"):
        UnitScore(1.0, 0)
    with pytest.raises(ValueError, match=r"a unit's weight is 1.5, expected a whole number"):
        unchecked(1.0, 1.5)
    with pytest.raises(ValueError, match="a unit's weight is nan"):
        unchecked(1.0, float("nan"))
