from itertools import pairwise

import numpy as np
import pydantic
import pytest

from lmfuse.evolve.genome import Cross, Mix, Numbers, Parent
from lmfuse.evolve.interpolation import Interpolation, explore
from tests.evolve.build import climb, parents, turn, vectors


def test_by_hand():
    members = vectors((0.0, 0.4), (1.0, 0.8), scores=(0.0, 1.0))
    assert Interpolation(f=0.25, cr=1.0).offspring(members, turn()).values == pytest.approx((0.25, 0.5))
    child = Interpolation(f=0.5, cr=0.5).offspring(parents(2), turn())
    assert isinstance(child, Cross)
    assert (child.kept, child.changed, child.rate) == (Parent(0), Mix((Parent(0), Parent(1)), (0.5, 0.5)), 0.5)


def test_cr_0_is_the_member_and_f_1_cr_1_the_reference():
    for seed in range(5):
        assert Interpolation(cr=0.0).offspring(parents(4), turn(seed, slot=2)) == Parent(2)
        assert Interpolation(f=0.0).offspring(parents(4), turn(seed, slot=2)) == Parent(2)
        assert Interpolation(f=1.0, cr=1.0, reference="best").offspring(parents(4), turn(seed)) == Parent(3)
        assert Interpolation(f=1.0, cr=1.0, reference="best").offspring(parents(4), turn(seed, slot=3)) == Parent(2)


def test_oracle_the_rule_as_one_would_write_it_down():
    values = np.random.default_rng(0).random((5, 300))
    members = vectors(*values, scores=(3, 1, 4, 1, 5))
    for slot in range(5):
        child = np.array(Interpolation(f=0.3, cr=0.6, reference="best").offspring(members, turn(7, slot)).values)
        best = 4 if slot != 4 else 2
        moved = values[slot] + 0.3 * (values[best] - values[slot])
        assert np.isclose(child, np.where(child == values[slot], values[slot], moved)).all()
        assert 0.5 < (child != values[slot]).mean() < 0.7


def test_the_schedule():
    assert [round(explore(t, 15), 4) for t in (0, 7, 14)] == [0.5333, 0.5625, 1.0]
    taken = [Interpolation(f=1.0, cr=1.0).offspring(parents(5), turn(seed, generation=0)).index for seed in range(600)]
    share = taken.count(4) / len(taken)
    assert abs(share - (0.5 - 0.5 / 15 + (0.5 + 0.5 / 15) / 4)) < 0.06
    last = [Interpolation(f=1.0, cr=1.0).offspring(parents(5), turn(seed, generation=14)).index for seed in range(600)]
    assert abs(last.count(4) / len(last) - 0.25) < 0.06
    assert 0 not in taken + last


def test_invariants_no_slot_falls_and_children_stay_between_their_parents():
    corners = vectors(*np.eye(3))
    best, history = climb(Interpolation(), corners, (0.5, 0.25, 0.25), 60)
    assert all(x <= y for before, after in pairwise(history) for x, y in zip(before, after, strict=True))
    assert best > -0.05  # the first population is at -.375
    child = Interpolation().offspring(vectors((0.2, 0.9), (0.6, 0.1)), turn())
    assert isinstance(child, Numbers)
    assert 0.2 <= child.values[0] <= 0.6
    assert 0.1 <= child.values[1] <= 0.9


def test_wrong_input():
    for bad in ({"f": 1.5}, {"cr": -0.1}, {"f": float("nan")}, {"reference": "worst"}, {"F": 0.5}):
        with pytest.raises(pydantic.ValidationError):
            Interpolation(**bad)
    assert Interpolation().needs_scores
    assert not Interpolation(reference="random").needs_scores
