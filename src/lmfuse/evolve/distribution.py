"""The package ``cma`` at work on coefficients: asked for a generation, told its scores when all are there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmfuse.evolve.draws import derived
from lmfuse.evolve.family import Member
from lmfuse.evolve.genome import Genome, Numbers

if TYPE_CHECKING:
    from lmfuse.evolve.cma_es import CmaEs


class Distribution:
    """A distribution over coefficients."""

    def __init__(self, method: CmaEs, members: Sequence[Member], seed: int) -> None:
        import cma

        genomes = [member.genome for member in members]
        vectors = [genome.values for genome in genomes if isinstance(genome, Numbers)]
        if len(vectors) != len(genomes):
            raise ValueError("cma_es: scalar genes, expected coefficients (genes tensor or layer)")
        first = genomes[0]
        assert isinstance(first, Numbers)
        if len(first.values) < 2:
            raise ValueError("cma_es: 1 coefficient, expected 2 or more")
        self._low, self._high = first.low, first.high
        self.num_slots = method.children or 4 + math.floor(3 * math.log(len(first.values)))
        draw = np.random.default_rng(derived(seed, "cma"))
        options = {
            "bounds": [self._low, self._high],
            "popsize": self.num_slots,
            "seed": np.nan,  # and numbers of our own: the package would draw from numpy's one generator, which others draw from too
            "randn": lambda *shape: draw.standard_normal(shape),
            "CMA_diagonal": method.diagonal,
            "verbose": -9,
            "maxiter": np.inf,
        }
        mean = np.mean(vectors, axis=0)
        self._strategy = cma.CMAEvolutionStrategy(mean, method.sigma * (self._high - self._low), options)
        self._asked: list[np.ndarray] = []
        self._costs: list[float | None] = []

    def child(self, turn: int) -> Genome:
        """Return a draw; the first of a generation draws all of it."""
        slot = turn % self.num_slots
        if slot == 0:
            self._asked, self._costs = self._strategy.ask(), []
        return Numbers(tuple(map(float, self._asked[slot])), self._low, self._high)

    def settle(self, turn: int, genome: Genome, score: float | None, accepted: bool) -> None:
        """Take a score; with the last of a generation the distribution is adapted. A child without one counts as the worst."""
        self._costs.append(None if score is None else -score)
        if len(self._costs) == self.num_slots:
            known = [cost for cost in self._costs if cost is not None]
            if known:
                self._strategy.tell(self._asked, [max(known) if cost is None else cost for cost in self._costs])
