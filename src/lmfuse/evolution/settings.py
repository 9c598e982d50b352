"""What decides a search: the method, its genes, how long it may run, and when a child is better."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass

from lmfuse.errors import InputError
from lmfuse.evolution.express import Genes
from lmfuse.evolution.judge import Racing
from lmfuse.evolve.family import Evolve
from lmfuse.evolve.interpolation import Interpolation
from lmfuse.merge.family import Merge

Control = Literal["average", "task_arithmetic", "greedy_soup", "best_random_draw"]
CONTROLS: tuple[Control, ...] = ("average", "task_arithmetic", "greedy_soup", "best_random_draw")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Budget:
    """How much a search may cost, controls and the last two splits apart; whatever is spent first ends it.

    Attributes:
        evaluations: different children that are scored, the first population included.
        minutes: since it began, interrupted runs included. A search that time ends depends on the machine's speed.
    """

    evaluations: int | None = None
    minutes: float | None = None

    def check(self, at_least: int) -> None:
        """Raise InputError where it does not suffice for the first population."""
        if self.evaluations is not None and self.evaluations < at_least:
            raise InputError(
                f"budget: {self.evaluations} evaluations, the first population alone needs {at_least}", "give more evaluations"
            )
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"budget: {self.minutes:g} minutes, expected more than 0", "give more time")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Acceptance:
    """When a child takes its parent's slot.

    Attributes:
        test: ``strict``: its score is higher; ``sign_test`` and ``bootstrap`` ask besides that chance alone would hardly do it, unit by
            unit: a one-sided sign test at 5%, or a paired bootstrap whose 95% interval lies above 0.
    """

    test: Literal["strict", "sign_test", "bootstrap"] = "strict"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SearchSettings:
    """A search.

    Attributes:
        method: how children are bred.
        genes: ``scalar``: every number of the weights; ``tensor`` or ``layer``: a coefficient per parent for each of these.
        express: with coefficients, the merge method whose weights they are (default ``linear``); with scalar genes, a merger: the
            population is merged by it before it is judged, and a child is kept if the merged model is better.
        low, high: bounds of coefficients.
        size: of the population; more than there are parents are filled up with copies that are changed a little. By default as many as
            parents, or as the method needs.
        jitter: how much those copies are changed.
        generations: at most.
        patience: generations without any gain after which the search ends.
        budget: see there.
        accept: see there.
        racing: None scores every child on all units.
        behind: how many children before it a child need not know the fate of. By default all others of its generation, so that so many
            workers never wait; 0 breeds each from the latest population, as the papers do, one at a time. The result depends on this
            number, and never on that of workers.
        finalists: of the children and the parents, how many are scored again on the second split to select the winner.
        controls: what the winner is compared with, beside every parent.
        task_arithmetic_scales: the best of these on the first split is that control.
        threads: of torch in each process.
        seed: of everything that is drawn.
    """

    method: SkipValidation[Evolve] = field(default_factory=Interpolation)
    genes: Genes = "scalar"
    express: SkipValidation[Merge | None] = None
    low: float = 0.0
    high: float = 1.0
    size: Annotated[int, Field(ge=2)] | None = None
    jitter: Annotated[float, Field(gt=0, le=1)] = 0.05
    generations: Annotated[int, Field(ge=1)] = 15
    patience: Annotated[int, Field(ge=1)] | None = None
    budget: Budget = Budget()
    accept: Acceptance = Acceptance()
    racing: Racing | None = None
    behind: Annotated[int, Field(ge=0)] | None = None
    finalists: Annotated[int, Field(ge=1)] = 3
    controls: tuple[Control, ...] = CONTROLS
    task_arithmetic_scales: tuple[float, ...] = (0.3, 0.5, 1.0)
    threads: Annotated[int, Field(ge=1)] = 1
    seed: int = 0

    def population(self, num_parents: int) -> int:
        """Return how many members there are."""
        return num_parents if self.method.by_generation else max(self.size or 0, self.method.min_members, num_parents)

    def check(self) -> None:
        """Raise InputError where settings contradict each other."""
        name = getattr(self.method, "name", type(self.method).__name__)
        if self.method.needs_numbers and self.genes == "scalar":
            raise InputError(f"evolve: {name} needs coefficients, and genes are scalar", "use genes: tensor or layer")
        if self.genes == "scalar" and self.express is not None:
            if self.method.needs_scores:
                raise InputError(
                    f"evolve: {name} asks how good single members are, and a merger judges the whole population",
                    "use interpolation with reference: random, or de_rand_1",
                )
            if self.behind:
                raise InputError(f"behind: {self.behind} with a merger, which keeps one child at a time", "leave it out, or set it to 0")
