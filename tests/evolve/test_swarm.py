from itertools import pairwise

import numpy as np
import pydantic
import pytest

from lmfuse.evolve.draws import derived
from lmfuse.evolve.genome import Mix, Within
from lmfuse.evolve.swarm import Swarm
from tests.evolve.build import climb, parents, vectors


def test_by_hand():
    members = vectors((0.2,), (0.6,), (1.0,), scores=(1, 3, 2))
    pull = dict.fromkeys(("inertia", "own", "best", "worst"), 0.0)
    to_best = Swarm(**(pull | {"best": 1.0}), step=0.5).begin(members, 5, seed=0)
    assert [to_best.child(n).values[0] for n in range(3)] == pytest.approx([0.4, 0.6, 0.8])
    from_worst = Swarm(**(pull | {"worst": 1.0}), step=0.5).begin(members, 5, seed=0)
    assert [from_worst.child(n).values[0] for n in range(3)] == pytest.approx([0.2, 0.8, 1.4])
    mirrored = Swarm(**(pull | {"worst": 1.0}), step=0.5, repair="bounds").begin(members, 5, seed=0)
    assert [mirrored.child(n).values[0] for n in range(3)] == pytest.approx([0.2, 0.8, 0.6])


def test_oracle_positions_and_velocities_as_vectors():
    """The swarm keeps a velocity as the place it leads to; here it is kept as a velocity."""
    rule, seed = Swarm(restart=100), 4
    members = vectors(*np.random.default_rng(2).random((4, 6)), low=-9, high=9)
    swarm = rule.begin(members, 8, seed)
    x = np.array([member.genome.values for member in members])
    v = np.array([swarm._heading(slot, -1).values for slot in range(4)]) - x
    own, marks = x.copy(), [member.score for member in members]
    worst = (marks[0], x[0].copy())
    score = lambda place: -float(((place - 0.5) ** 2).sum())  # noqa: E731
    for turn in range(32):
        slot, generation = turn % 4, turn // 4
        draw = np.random.default_rng(derived(seed, "turn", turn))
        a, b, c, d = (s * (1 - draw.random()) for s in (rule.inertia, rule.own, rule.best, rule.worst))
        best = own[int(np.argmax(marks))]
        pulls = a * v[slot] + b * (own[slot] - x[slot]) + c * (best - x[slot]) - d * (worst[1] - x[slot])
        v[slot] = pulls / (a + b + c + d)
        x[slot] = x[slot] + max(rule.smallest_step, rule.step * rule.decay**generation) * v[slot]
        child = swarm.child(turn)
        assert np.allclose(child.values, x[slot], atol=1e-9)
        found = score(x[slot])
        swarm.settle(turn, child, found, found > marks[slot])
        if found > marks[slot]:
            own[slot], marks[slot] = x[slot].copy(), found
        if found < worst[0]:
            worst = (found, x[slot].copy())


def test_invariants():
    members = vectors(*np.eye(4))
    best, history = climb(Swarm(), members, (0.4, 0.3, 0.2, 0.1), 60, seed=1)
    assert best > -0.1  # the first population is at -.5
    assert all(x <= y for before, after in pairwise(history) for x, y in zip(before, after, strict=True))
    flights = [Swarm().begin(parents(3), 3, seed) for seed in (5, 5, 6)]
    one, same, other = ([flight.child(n) for n in range(3)] for flight in flights)
    assert one == same != other
    assert all(
        isinstance(child, Mix) and len(child.parts) <= 3 for child in one
    )  # without bounds a swarm mixes parents, however long it flies
    assert any(isinstance(Swarm(repair="bounds", worst=2.0).begin(parents(3), 3, n).child(1), Within) for n in range(20))


def test_idle_members_return_to_their_best_place():
    members = vectors((0.2,), (0.9,), scores=(1, 3))
    flight = Swarm(restart=2).begin(members, 9, seed=0)
    for turn in range(4):
        flight.settle(turn, flight.child(turn), 0.5, False)
    assert flight.child(4) == members[0].genome
    flight.settle(4, members[0].genome, 1.0, False)
    assert flight._places[0] == members[0].genome
    flight.settle(5, flight.child(5), None, False)  # discarded: it stays


def test_wrong_input():
    for bad in ({"inertia": -0.1}, {"step": 0.0}, {"decay": 1.5}, {"restart": 0}, {"phi": 1.0}):
        with pytest.raises(pydantic.ValidationError):
            Swarm(**bad)
    with pytest.raises(pydantic.ValidationError, match="are all 0, expected one that is not"):
        Swarm(inertia=0, own=0, best=0, worst=0)
