import cma
import numpy as np
import pydantic
import pytest

from lmfuse.evolve.cma_es import CmaEs
from lmfuse.evolve.draws import derived
from tests.evolve.build import climb, parents, vectors


def test_by_hand():
    begun = CmaEs().begin(vectors((0.2, 0.4), (0.4, 0.8)), 3, seed=0)
    assert begun.num_slots == 6  # 4 + 3 ln 2
    assert begun._strategy.mean.tolist() == pytest.approx([0.3, 0.6])
    assert begun._strategy.sigma == pytest.approx(0.2)
    assert CmaEs(children=9, sigma=0.1).begin(vectors((0.0, 4.0), low=0, high=8), 1, seed=0)._strategy.sigma == pytest.approx(0.8)


def test_oracle_the_package_itself():
    draw = np.random.default_rng(derived(7, "cma"))
    options = {
        "bounds": [0, 1],
        "popsize": 6,
        "seed": np.nan,
        "randn": lambda *s: draw.standard_normal(s),
        "verbose": -9,
        "maxiter": np.inf,
    }
    strategy = cma.CMAEvolutionStrategy([0.5, 0.5, 0.5], 0.2, options)
    place, best = np.array([0.2, 0.9, 0.4]), np.inf
    for _ in range(30):
        asked = strategy.ask()
        costs = [float(((x - place) ** 2).sum()) for x in asked]
        strategy.tell(asked, costs)
        best = min(best, *costs)
    assert climb(CmaEs(children=6), vectors((0.5, 0.5, 0.5)), place, 30, seed=7)[0] == -best
    assert best < 1e-4


def test_invariants():
    members = vectors(*np.eye(3))
    for number in (3, 4):
        np.random.seed(number)  # what others draw changes nothing, and nobody's draws are changed
        before = np.random.get_state()[1].copy()
        found = climb(CmaEs(), members, (0.5, 0.25, 0.25), 15)
        assert found == climb(CmaEs(), members, (0.5, 0.25, 0.25), 15)
        assert (np.random.get_state()[1] == before).all()
    begun = CmaEs(children=5).begin(members, 9, seed=1)
    for turn in range(45):
        child = begun.child(turn)
        assert all(0 <= value <= 1 for value in child.values)
        begun.settle(turn, child, None if turn % 7 == 0 else -child.values[0], False)  # some are discarded


def test_a_generation_of_which_all_are_discarded_teaches_nothing():
    begun = CmaEs(children=4).begin(vectors((0.5, 0.5)), 2, seed=1)
    for turn in range(4):
        begun.settle(turn, begun.child(turn), None, False)
    assert begun._strategy.mean.tolist() == [0.5, 0.5]
    assert begun.child(4).values


def test_wrong_input():
    with pytest.raises(ValueError, match="scalar genes, expected coefficients"):
        CmaEs().begin(parents(2), 3, seed=0)
    with pytest.raises(ValueError, match="1 coefficient, expected 2 or more"):
        CmaEs().begin(vectors((0.5,)), 3, seed=0)
    for bad in ({"sigma": 0.0}, {"children": 2}, {"popsize": 9}):
        with pytest.raises(pydantic.ValidationError):
            CmaEs(**bad)
