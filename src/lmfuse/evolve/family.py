"""What all methods of evolution have in common: they breed one child after the other, from members and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.evolve.draws import derived
from lmfuse.evolve.genome import Genome

Probability = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@plain_dataclass(frozen=True)
class Member:
    """An individual and its score; more is better."""

    genome: Genome
    score: float


@plain_dataclass(frozen=True)
class Turn:
    """When and where a child is bred: its slot in the population, its generation of how many, and what may be drawn."""

    slot: int
    generation: int
    num_generations: int
    seed: int

    def draw(self) -> np.random.Generator:
        """Return a generator that belongs to this turn alone."""
        return np.random.default_rng(self.seed)


@runtime_checkable
class Breeder(Protocol):
    """A method at work. Turns are numbered from 0; turn ``k`` is slot ``k % num_slots`` of generation ``k // num_slots``."""

    num_slots: int

    def child(self, turn: int) -> Genome:
        """Return the child of a turn, bred from what was settled before."""
        ...

    def settle(self, turn: int, genome: Genome, score: float | None, accepted: bool) -> None:
        """Say what became of a child, in the order of turns; without a score it was discarded."""
        ...


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Evolve:
    """How children are bred.

    Attributes:
        min_members: the smallest population it works with.
        needs_numbers: whether genes must be coefficients.
        by_generation: whether all children of a generation must be settled before the next begins.
    """

    min_members: ClassVar[int] = 2
    needs_numbers: ClassVar[bool] = False
    by_generation: ClassVar[bool] = False

    @property
    def needs_scores(self) -> bool:
        """Return whether it asks how good single members are; with a merger, only the whole population has a score."""
        return True

    def offspring(self, members: Sequence[Member], turn: Turn) -> Genome:
        """Return a child for a slot."""
        raise NotImplementedError

    def begin(self, members: Sequence[Member], num_generations: int, seed: int) -> Breeder:
        """Begin with a population."""
        return Slots(self, members, num_generations, seed)


class Slots:
    """A population in which a child takes its parent's slot where it was accepted."""

    def __init__(self, method: Evolve, members: Sequence[Member], num_generations: int, seed: int) -> None:
        self._method, self._members = method, list(members)
        self._num_generations, self._seed = num_generations, seed
        self.num_slots = len(self._members)

    def child(self, turn: int) -> Genome:
        """Return the child of a turn."""
        generation, slot = divmod(turn, self.num_slots)
        place = Turn(slot, generation, self._num_generations, derived(self._seed, "turn", turn))
        return self._method.offspring(self._members, place)

    def settle(self, turn: int, genome: Genome, score: float | None, accepted: bool) -> None:
        """Put an accepted child into its slot."""
        if accepted and score is not None:
            self._members[turn % self.num_slots] = Member(genome, score)


def best_of(members: Sequence[Member], among: Sequence[int]) -> int:
    """Return which of some members has the best score; of equals the first.

    >>> from lmfuse.evolve.genome import Parent
    >>> best_of([Member(Parent(0), 1.0), Member(Parent(1), 3.0), Member(Parent(2), 2.0)], [0, 2])
    2
    """
    return max(among, key=lambda index: (members[index].score, -index))


def others(members: Sequence[Member], *but: int) -> list[int]:
    """Return the numbers of all members but some.

    >>> from lmfuse.evolve.genome import Parent
    >>> others([Member(Parent(n), 0.0) for n in range(4)], 1, 2)
    [0, 3]
    """
    return [index for index in range(len(members)) if index not in but]
