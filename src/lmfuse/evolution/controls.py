"""What evolution must beat: the parents, simple ways to merge them, and luck."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmfuse.evolution.bench import Bench
from lmfuse.evolution.express import Expression
from lmfuse.evolution.scores import mean_score
from lmfuse.evolution.settings import SearchSettings
from lmfuse.evolve.draws import derived
from lmfuse.evolve.family import Member
from lmfuse.evolve.genome import Base, Genome, Numbers, Parent, crossed, mixed


def average(num_parents: int) -> Genome:
    """Return the mean of all parents.

    >>> average(2)
    Mix(parts=(Parent(index=0), Parent(index=1)), weights=(0.5, 0.5))
    """
    return mixed([(1 / num_parents, Parent(index)) for index in range(num_parents)])


def task_vectors(num_parents: int, scale: float) -> Genome:
    """Return the base and what every parent has learnt, so many times.  Task arithmetic, arXiv:2212.04089, section 2

    >>> task_vectors(2, 0.25)
    Mix(parts=(Parent(index=0), Parent(index=1), Base()), weights=(0.25, 0.25, 0.5))
    """
    return mixed([(1 - num_parents * scale, Base()), *((scale, Parent(index)) for index in range(num_parents))])


def random_draw(expression: Expression, number: int, seed: int) -> Genome:
    """Return an individual that nobody bred, from the room that the search has.

    Coefficients are drawn evenly within their bounds. Scalar genes: two averages with weights drawn evenly from all there are, crossed at
    a rate drawn evenly.
    """
    draw = np.random.default_rng(derived(seed, "draw", number))
    if expression.genes != "scalar":
        values = draw.uniform(expression.low, expression.high, len(expression.groups) * expression.num_parents)
        return Numbers(tuple(map(float, values)), expression.low, expression.high)
    one, other = (
        mixed([(float(weight), Parent(index)) for index, weight in enumerate(draw.dirichlet(np.ones(expression.num_parents)))])
        for _ in range(2)
    )
    return crossed(one, other, float(draw.random()), derived(seed, "draw mask", number))


class Controls:
    """Controls that must choose, on the units that the search has seen and no others."""

    def __init__(self, settings: SearchSettings, expression: Expression, bench: Bench, units: tuple[str, ...]) -> None:
        self._settings, self._expression, self._bench, self._units = settings, expression, bench, units
        self.seen: list[Member] = []  # everything that was scored
        self.failed: dict[Genome, str] = {}  # everything that was not, and why

    def scored(self, genomes: Sequence[Genome]) -> list[Member]:
        """Return those that can be scored, best first, of equals the first; a failure that may pass is tried again by the next run."""
        tickets = [self._bench.submit(genome, self._units, keep_failure=False) for genome in genomes]
        members = []
        for genome, verdict in zip(genomes, [ticket.result() for ticket in tickets], strict=True):
            if verdict.failure:
                self.failed[genome] = verdict.message
            else:
                members.append(Member(genome, mean_score(verdict.scores)))
        self.seen += members
        return sorted(members, key=lambda member: -member.score)

    def parents(self) -> list[Member]:
        """Return the parents as they are, best first."""
        return self.scored([Parent(index) for index in range(self._expression.num_parents)])

    def task_arithmetic(self) -> Genome | None:
        """Return the best of the scales that are tried."""
        found = self.scored([task_vectors(self._expression.num_parents, scale) for scale in self._settings.task_arithmetic_scales])
        return found[0].genome if found else None

    def greedy_soup(self) -> Genome | None:
        """Return the average of as many parents as help: best first, each stays if the average is no worse.  arXiv:2203.05482, section 2, recipe 1"""
        ranked = self.parents()
        if not ranked:
            return None
        soup, score = [ranked[0].genome], ranked[0].score
        for member in ranked[1:]:
            tried = [*soup, member.genome]
            found = self.scored([mixed([(1 / len(tried), genome) for genome in tried])])
            if found and found[0].score >= score:
                soup, score = tried, found[0].score
        return mixed([(1 / len(soup), genome) for genome in soup])

    def random_draws(self, count: int) -> list[Member]:
        """Return so many random draws, best first."""
        return self.scored([random_draw(self._expression, number, self._settings.seed) for number in range(count)])
