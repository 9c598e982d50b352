"""The three classical forms: numbers by hand, scipy as the oracle, what never changes, and what is refused."""

from itertools import pairwise

import numpy as np
import pydantic
import pytest

from lmfuse.evolve.de_best_1 import DeBest1
from lmfuse.evolve.de_current_to_best_1 import DeCurrentToBest1
from lmfuse.evolve.de_rand_1 import DeRand1
from lmfuse.evolve.genome import Parent, Within
from tests.evolve.build import climb, parents, turn, vectors

ALL = [DeRand1, DeBest1, DeCurrentToBest1]


def test_by_hand():
    members = vectors((0.1,), (0.2,), (0.5,), (0.9,), scores=(0, 0, 9, 0), low=-5, high=5)
    found = {round(DeRand1(f=0.5, cr=1.0).offspring(members, turn(seed)).values[0], 9) for seed in range(60)}
    others = (0.2, 0.5, 0.9)
    assert found == {round(a + 0.5 * (b - c), 9) for a in others for b in others for c in others if len({a, b, c}) == 3}
    found = {round(DeBest1(f=0.5, cr=1.0).offspring(members, turn(seed)).values[0], 9) for seed in range(30)}
    assert found == {0.15, 0.85}  # .5 + .5 (.2 - .9), .5 + .5 (.9 - .2)
    found = {round(DeCurrentToBest1(f=0.5, cr=1.0).offspring(members, turn(seed)).values[0], 9) for seed in range(30)}
    assert found == {-0.05, 0.65}  # .1 + .5 (.5 - .1), and the same differences


@pytest.mark.parametrize(("method", "strategy"), [(DeRand1, "rand1bin"), (DeBest1, "best1bin"), (DeCurrentToBest1, "currenttobest1bin")])
def test_oracle_scipy_needs_as_many_generations(method, strategy):
    from scipy.optimize import differential_evolution

    start = np.random.default_rng(1).random((12, 4))
    place = np.array([0.5, 0.25, 0.8, 0.1])
    ours, theirs = [], []
    for seed in range(3):
        ours.append(-climb(method(f=0.6, cr=0.9), vectors(*start), place, 15, seed)[0])
        found = differential_evolution(
            lambda x: float(((x - place) ** 2).sum()), [(0, 1)] * 4, strategy=strategy, init=start, mutation=0.6, recombination=0.9,
            maxiter=15, polish=False, seed=seed, tol=0,
        )  # fmt: skip
        theirs.append(found.fun)
    gap = np.mean(np.log10(ours)) - np.mean(np.log10(theirs))
    assert abs(gap) < 1.5  # orders of magnitude, after a fall of many
    assert max(ours) < 0.05


@pytest.mark.parametrize("method", ALL)
def test_invariants(method):
    rng = np.random.default_rng(0)
    members = vectors(*rng.random((6, 50)))
    for seed in range(20):
        child = method(f=2.0).offspring(members, turn(seed, slot=seed % 6))
        assert all(0 <= value <= 1 for value in child.values)
        assert child == method(f=2.0).offspring(members, turn(seed, slot=seed % 6))
    assert method(cr=0.0).offspring(members, turn(1, slot=2)) == members[2].genome
    same = vectors(*[[0.3, 0.7]] * 5)
    assert method(f=0.8, cr=1.0).offspring(same, turn()).values == pytest.approx((0.3, 0.7))
    _, history = climb(method(), members, rng.random(50), 10)
    assert all(x <= y for before, after in pairwise(history) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("method", ALL)
def test_a_child_has_at_least_one_coefficient_of_the_mutant(method):
    """Storn and Price (1997), equation 4. Where no two members share a number, no child is its parent."""
    members = vectors(*np.random.default_rng(0).random((5, 3)))
    for cr, changed in ((1e-9, 1), (1.0, 3)):
        for seed in range(50):
            child = method(cr=cr).offspring(members, turn(seed)).values
            assert sum(x != y for x, y in zip(child, members[0].genome.values, strict=True)) == changed
    places = {np.not_equal(method(cr=1e-9).offspring(members, turn(seed)).values, members[0].genome.values).argmax() for seed in range(50)}
    assert places == {0, 1, 2}


@pytest.mark.parametrize("method", ALL)
def test_scalar_genes_are_kept_within_the_parents_range(method):
    child = method(f=0.5, cr=1.0).offspring(parents(4), turn(slot=1))
    assert isinstance(child, Within)
    assert not method(f=0.5, cr=1.0, repair="none").offspring(parents(4), turn(slot=1)).inside


@pytest.mark.parametrize("method", ALL)
def test_wrong_input(method):
    for bad in ({"f": float("inf")}, {"cr": 2.0}, {"repair": "wrap"}, {"crossover": 0.5}):
        with pytest.raises(pydantic.ValidationError):
            method(**bad)
    assert method.min_members == 4


def test_a_random_member_is_never_the_own_one():
    taken = {DeRand1(f=0.0, cr=1.0).offspring(parents(5), turn(seed, slot=3)) for seed in range(80)}
    assert taken == {Parent(0), Parent(1), Parent(2), Parent(4)}
