"""What the classical forms of differential evolution share: a mutant, crossed with the member whose slot it may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.evolve.draws import derived
from lmfuse.evolve.family import Evolve, Factor, Member, Probability, Turn
from lmfuse.evolve.genome import Genome, crossed, mixed, repaired


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Differential(Evolve):
    """A mutant ``sum_i w_i x_i``, of whose numbers each is taken with probability ``cr``, then brought back within bounds."""

    min_members: ClassVar[int] = 4
    f: Factor = 0.5
    cr: Probability = 0.9
    repair: Literal["bounds", "none"] = "bounds"

    def mutant(self, members: Sequence[Member], slot: int, draw: np.random.Generator) -> list[tuple[float, Genome]]:
        """Return the weights and the members of the mutant."""
        raise NotImplementedError

    def offspring(self, members: Sequence[Member], turn: Turn) -> Genome:
        """Return a child for a slot."""
        own = members[turn.slot].genome
        mutant = mixed(self.mutant(members, turn.slot, turn.draw()))
        return crossed(own, repaired(mutant) if self.repair == "bounds" else mutant, self.cr, derived(turn.seed, "mask"))


def distinct(draw: np.random.Generator, choices: Sequence[int], count: int) -> list[int]:
    """Return some of the choices, none twice.

    >>> sorted(distinct(np.random.default_rng(0), [3, 5, 8], 3))
    [3, 5, 8]
    """
    return [int(each) for each in draw.choice(np.asarray(choices), count, replace=False)]
