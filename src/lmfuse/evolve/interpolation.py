"""Interpolation: Evolver's mutation and crossover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.evolve.draws import derived
from lmfuse.evolve.family import Evolve, Member, Probability, Turn, best_of, others
from lmfuse.evolve.genome import Genome, crossed, mixed


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Interpolation(Evolve):
    """Move a part of the numbers some of the way to another member, ``x + f (x_r - x)`` each with probability ``cr``.  Evolver, arXiv:2406.12208

    - ``f``: how far; 1 takes the other's numbers.
    - ``cr``: the share of numbers that move.
    - ``reference``: the other member. ``schedule``: a random one with probability ``.5 + .5 / (T - t)`` in generation t of T, else the best;
      ``random``, as the authors do where the population is merged before it is judged; ``best``.

    The rule is that of the authors' program; the paper's own formula could not be read.

    >>> from lmfuse.evolve.genome import Parent
    >>> members = [Member(Parent(0), 0.0), Member(Parent(1), 1.0)]
    >>> Interpolation(f=0.25, cr=1.0).offspring(members, Turn(slot=0, generation=0, num_generations=1, seed=0))
    Mix(parts=(Parent(index=0), Parent(index=1)), weights=(0.75, 0.25))
    """

    min_members: ClassVar[int] = 2
    name: Literal["interpolation"] = "interpolation"
    f: Probability = 0.5
    cr: Probability = 0.5
    reference: Literal["schedule", "random", "best"] = "schedule"

    @property
    def needs_scores(self) -> bool:
        """Return whether the best member is ever asked for."""
        return self.reference != "random"

    def offspring(self, members: Sequence[Member], turn: Turn) -> Genome:
        """Return a child for a slot."""
        draw = turn.draw()
        choices = others(members, turn.slot)
        chance = {"schedule": explore(turn.generation, turn.num_generations), "random": 1.0, "best": 0.0}[self.reference]
        random = draw.random() < chance
        reference = int(draw.choice(choices)) if random else best_of(members, choices)
        own, other = members[turn.slot].genome, members[reference].genome
        return crossed(own, mixed([(1 - self.f, own), (self.f, other)]), self.cr, derived(turn.seed, "mask"))


def explore(generation: int, num_generations: int) -> float:
    """Return with which probability a random member is the reference; at last always.

    >>> round(explore(0, 15), 3), explore(14, 15)
    (0.533, 1.0)
    """
    return 0.5 + 0.5 / max(1, num_generations - generation)
