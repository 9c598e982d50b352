"""DE/best/1: differential evolution from the best member."""

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
class DeBest1(Differential):
    """From the best member go along the difference of two others, ``x_best + f (x_b - x_c)``.
    Storn and Price, Journal of Global Optimization 11 (1997), section 2

    - ``f``: how far.
    - ``cr``: the share of numbers taken from the mutant.
    - ``repair``: ``bounds`` brings numbers back that left their range; ``none`` lets them.

    With ``f`` 0 and ``cr`` 1 the child is the best member.

    >>> from lmfuse.evolve.family import Turn
    >>> from lmfuse.evolve.genome import Numbers
    >>> members = [Member(Numbers((0.2 * n,)), score) for n, score in enumerate((0.0, 3.0, 1.0, 2.0))]
    >>> DeBest1(f=0.0, cr=1.0).offspring(members, Turn(0, 0, 1, seed=0)).values
    (0.2,)
    """

    name: Literal["de_best_1"] = "de_best_1"

    def mutant(self, members: Sequence[Member], slot: int, draw: np.random.Generator) -> list[tuple[float, Genome]]:
        """Return the weights and the members of the mutant."""
        best = best_of(members, range(len(members)))
        b, c = (members[index].genome for index in distinct(draw, others(members, slot, best), 2))
        return [(1.0, members[best].genome), (self.f, b), (-self.f, c)]
