"""Swarm: particles that fly towards what was good and away from what was worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from lmfuse.evolve.family import Breeder, Evolve, Member, Positive
from lmfuse.evolve.flight import Flight

Pull = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Swarm(Evolve):
    """Each member flies on with some inertia, towards its own best place and the best of all, away from the worst of all.
    Model Swarms, arXiv:2410.11163

    ``v = (a v + b (own - x) + c (best - x) - d (worst - x)) / (a + b + c + d)``, each of a to d its setting times a number drawn from [0, 1);
    then ``x = x + step v``. A place is taken even if it is worse; the best ones are remembered.

    - ``inertia``, ``own``, ``best``, ``worst``: what a, b, c and d are made of.
    - ``step``: of the first generation, multiplied by ``decay`` after each, down to ``smallest_step``.
    - ``restart``: a member that found nothing better for so many generations goes back to its best place, with a new velocity.
    - ``repair``: ``none`` lets numbers leave their range, as the authors do; ``bounds`` brings them back.

    Settings are the defaults of the authors' program. A first or new velocity leads to another member's place.

    >>> from lmfuse.evolve.genome import Numbers
    >>> still = Swarm(inertia=0, own=0, best=1, worst=0, step=1.0).begin([Member(Numbers((v,)), v) for v in (0.2, 0.6)], 1, seed=0)
    >>> [round(still.child(turn).values[0], 12) for turn in range(2)]      # straight to the best place
    [0.6, 0.6]
    """

    name: Literal["swarm"] = "swarm"
    inertia: Pull = 0.2
    own: Pull = 0.3
    best: Pull = 0.4
    worst: Pull = 0.05
    step: Positive = 0.5
    decay: Annotated[float, Field(gt=0, le=1)] = 0.95
    smallest_step: Pull = 0.1
    restart: Annotated[int, Field(ge=1)] = 3
    repair: Literal["bounds", "none"] = "none"

    @model_validator(mode="after")
    def _moves(self) -> Swarm:
        if not self.inertia + self.own + self.best + self.worst:
            raise ValueError("inertia, own, best and worst are all 0, expected one that is not")
        return self

    def begin(self, members: Sequence[Member], num_generations: int, seed: int) -> Breeder:
        """Begin with a population."""
        return Flight(self, members, seed)
