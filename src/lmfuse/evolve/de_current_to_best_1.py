"""DE/current-to-best/1: differential evolution from a member towards the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.evolve.differential import Differential, distinct
from lmfuse.evolve.family import Member, best_of, others
from lmfuse.evolve.genome import Genome


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DeCurrentToBest1(Differential):
    """Go towards the best member and along the difference of two others, ``x + f (x_best - x) + f (x_b - x_c)``.
    Price, Storn and Lampinen, Differential Evolution (2005)

    - ``f``: how far.
    - ``cr``: the share of numbers taken from the mutant.
    - ``repair``: ``bounds`` brings numbers back that left their range; ``none`` lets them.

    The two others are equal here: half of the way from .2 to .6 is .4.

    >>> from lmfuse.evolve.family import Turn
    >>> from lmfuse.evolve.genome import Numbers
    >>> members = [Member(Numbers((value,)), score) for value, score in ((0.2, 0.0), (0.6, 3.0), (0.8, 1.0), (0.8, 2.0))]
    >>> round(DeCurrentToBest1(f=0.5, cr=1.0).offspring(members, Turn(0, 0, 1, seed=0)).values[0], 12)
    0.4
    """

    name: Literal["de_current_to_best_1"] = "de_current_to_best_1"

    def mutant(self, members: Sequence[Member], slot: int, draw: np.random.Generator) -> list[tuple[float, Genome]]:
        """Return the weights and the members of the mutant."""
        best = best_of(members, range(len(members)))
        b, c = (members[index].genome for index in distinct(draw, others(members, slot, best), 2))
        return [(1 - self.f, members[slot].genome), (self.f, members[best].genome), (self.f, b), (-self.f, c)]
