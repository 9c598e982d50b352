"""What the classical forms of differential evolution share: a mutant, crossed with the member whose slot it may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.evolve.draws import derived
from lmfuse.evolve.family import Evolve, Factor, Member, Probability, Turn
from lmfuse.evolve.genome import Genome, Numbers, crossed, mixed, repaired


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Differential(Evolve):
    """A mutant ``sum_i w_i x_i``, of whose numbers each is taken with probability ``cr``, then brought back within bounds.

    Of coefficients one is taken in any case, as the paper's equation 4 has it, unless ``cr`` is 0: the child of few coefficients
    would often be its parent. Of the numbers of scalar genes there are so many that it makes no difference.
    """

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
        changed = repaired(mutant) if self.repair == "bounds" else mutant
        child = crossed(own, changed, self.cr, derived(turn.seed, "mask"))
        return with_one(child, changed, derived(turn.seed, "one")) if self.cr > 0 else child


def with_one(child: Genome, changed: Genome, seed: int) -> Genome:
    """Return a child with one more coefficient of ``changed``, whichever; other genes as they are.

    >>> sum(with_one(Numbers((0.0,) * 5), Numbers((1.0,) * 5), seed=3).values)
    1.0
    """
    if not (isinstance(child, Numbers) and isinstance(changed, Numbers)):
        return child
    one = int(np.random.default_rng(seed).integers(len(child.values)))
    return Numbers((*child.values[:one], changed.values[one], *child.values[one + 1 :]), child.low, child.high)


def distinct(draw: np.random.Generator, choices: Sequence[int], count: int) -> list[int]:
    """Return some of the choices, none twice.

    >>> sorted(distinct(np.random.default_rng(0), [3, 5, 8], 3))
    [3, 5, 8]
    """
    return [int(each) for each in draw.choice(np.asarray(choices), count, replace=False)]
