"""DE/rand/1: differential evolution from a random member."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.evolve.differential import Differential, distinct
from lmfuse.evolve.family import Member, others
from lmfuse.evolve.genome import Genome


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DeRand1(Differential):
    """From a random member go along the difference of two others, ``x_a + f (x_b - x_c)``.
    Storn and Price, Journal of Global Optimization 11 (1997), section 2

    - ``f``: how far.
    - ``cr``: the share of numbers taken from the mutant.
    - ``repair``: ``bounds`` brings numbers back that left their range; ``none`` lets them.

    Four members of which three are drawn, at coefficients 0, .2, .4 and .6; with ``f`` 0 the child is one of the three.

    >>> from lmfuse.evolve.family import Turn
    >>> from lmfuse.evolve.genome import Numbers
    >>> members = [Member(Numbers((0.2 * n,)), 0.0) for n in range(4)]
    >>> DeRand1(f=0.0, cr=1.0).offspring(members, Turn(0, 0, 1, seed=0)) in [each.genome for each in members[1:]]
    True
    """

    name: Literal["de_rand_1"] = "de_rand_1"

    @property
    def needs_scores(self) -> bool:
        """Return False: every member is as likely."""
        return False

    def mutant(self, members: Sequence[Member], slot: int, draw: np.random.Generator) -> list[tuple[float, Genome]]:
        """Return the weights and the members of the mutant."""
        a, b, c = (members[index].genome for index in distinct(draw, others(members, slot), 3))
        return [(1.0, a), (self.f, b), (-self.f, c)]
