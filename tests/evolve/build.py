"""Populations to breed from."""

from collections.abc import Sequence

import numpy as np

from lmfuse.evolve.family import Evolve, Member, Turn
from lmfuse.evolve.genome import Genome, Numbers, Parent


def vectors(*values: Sequence[float], scores: Sequence[float] | None = None, low: float = 0.0, high: float = 1.0) -> list[Member]:
    """Return members with coefficients; without scores the first is the worst."""
    marks = range(len(values)) if scores is None else scores
    return [
        Member(Numbers(tuple(map(float, each)), float(low), float(high)), float(score)) for each, score in zip(values, marks, strict=True)
    ]


def parents(count: int) -> list[Member]:
    return [Member(Parent(index), float(index)) for index in range(count)]


def turn(seed: int = 0, slot: int = 0, generation: int = 0, num_generations: int = 15) -> Turn:
    return Turn(slot, generation, num_generations, seed)


def climb(method: Evolve, members: list[Member], best: Sequence[float], generations: int, seed: int = 0) -> tuple[float, list[list[float]]]:
    """Evolve towards a place; return the best score, minus the squared distance, and those of each slot after each generation."""

    def score(genome: Genome) -> float:
        assert isinstance(genome, Numbers)
        return -float(np.sum((np.array(genome.values) - np.array(best)) ** 2))

    members = [Member(member.genome, score(member.genome)) for member in members]
    breeder = method.begin(members, generations, seed)
    slots = [member.score for member in members] if len(members) == breeder.num_slots else [-np.inf] * breeder.num_slots
    history = []
    for number in range(generations * breeder.num_slots):
        child = breeder.child(number)
        found, slot = score(child), number % breeder.num_slots
        breeder.settle(number, child, found, found > slots[slot])
        slots[slot] = max(slots[slot], found)
        if slot == breeder.num_slots - 1:
            history.append(list(slots))
    return max(slots), history
