"""A search for a better model as data: parents, what a child is worth, on which data, how children are bred. Read from YAML and written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from lmfuse.catalogue import EvolveMethod, MergeMethod
from lmfuse.errors import RecipeError
from lmfuse.evolution.express import Genes
from lmfuse.evolution.judge import Racing
from lmfuse.evolution.settings import CONTROLS, Acceptance, Budget, Control, SearchSettings
from lmfuse.evolve.interpolation import Interpolation
from lmfuse.evolve_recipe.data import Questions, Text, Units
from lmfuse.models import ModelSpec
from lmfuse.schema_errors import problems
from lmfuse.yaml_strict import dump_yaml, read_yaml

HINT = "docs/evolve-recipe.md explains every key"
DATA = {"bits_per_byte": "text", "choices": "questions", "function": "units"}  # what each fitness is measured on
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextFitness(_Section):
    """The bits that a child needs for a byte of ``text``; fewer are better."""

    name: Literal["bits_per_byte"] = "bits_per_byte"


class ChoiceFitness(_Section):
    """The share of ``questions`` to which a child finds the right answer the likeliest.

    Attributes:
        by: how answers of different lengths are compared: nats per ``bytes``, or ``sum``: nats of the whole answer.
    """

    name: Literal["choices"] = "choices"
    by: Literal["bytes", "sum"] = "bytes"


class FunctionFitness(_Section):
    """What a function of yours says of each of ``units``. **Naming it runs its code, with all your rights.**

    Attributes:
        function: ``module:function``; modules beside the recipe and in the current folder are found, too.
    """

    name: Literal["function"] = "function"
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")


FitnessMethod = Annotated[TextFitness | ChoiceFitness | FunctionFitness, Field(discriminator="name")]


class Measuring(_Section):
    """How models are measured: padded tokens a batch, bootstrap samples of an interval and their seed."""

    batch_tokens: int = Field(4096, ge=16)
    bootstrap_samples: int = Field(10_000, ge=100)
    seed: int = 0


class EvolveRecipe(_Section):
    """One search.

    Attributes:
        parents: models of one architecture and one tokenizer; all are held in the same type and read text in the same way.
        base: the model that they were tuned from; without one there is no control ``task_arithmetic``.
        fitness: what a child is worth.
        text, questions, units: what it is measured on, the one that belongs to ``fitness``.
        method: how children are bred.
        genes: ``scalar``: every number of the weights; ``tensor`` or ``layer``: a coefficient per parent for each of these.
        express: with coefficients, the merge method whose weights they are (default ``linear``); with scalar genes, a merger: the
            population is merged by it before it is judged.
        low, high: bounds of coefficients.
        size: of the population; by default as many as parents, or as the method needs.
        jitter: how much copies of parents are changed where they fill up a population.
        generations: at most.
        patience: generations without any gain after which the search ends.
        budget: ``evaluations`` or ``minutes`` after which the search ends; controls and the last two splits come on top.
        accept: ``strict``: a child must be better; ``sign_test`` and ``bootstrap``: and chance alone would hardly make it so.
        racing: stop children that cannot be expected to win; ``{}`` for the defaults.
        behind: how many children before it a child need not know the fate of; by default all others of its generation.
        finalists: how many are scored again on the second split to select the winner.
        controls: what the winner is compared with, beside every parent.
        task_arithmetic_scales: the best of these on the first split is that control.
        dtype: of the result; by default what the parents are stored in. What a model is held in while it is measured, ``parents`` say.
        resident: hold all parents in memory, in every worker: faster, with the same bytes.
        threads: of torch in each process.
        seed: of everything that is drawn.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    parents: tuple[ModelSpec, ...] = Field(min_length=2)
    base: ModelSpec | None = None
    fitness: FitnessMethod = TextFitness()
    text: Text | None = None
    questions: Questions | None = None
    units: Units | None = None
    method: EvolveMethod = Interpolation()
    genes: Genes = "scalar"
    express: MergeMethod | None = None
    low: Finite = 0.0
    high: Finite = 1.0
    size: int | None = Field(None, ge=2)
    jitter: float = Field(0.05, gt=0, le=1)
    generations: int = Field(15, ge=1)
    patience: int | None = Field(None, ge=1)
    budget: Budget = Budget()
    accept: Literal["strict", "sign_test", "bootstrap"] = "strict"
    racing: Racing | None = None
    behind: int | None = Field(None, ge=0)
    finalists: int = Field(3, ge=1)
    controls: tuple[Control, ...] = CONTROLS
    task_arithmetic_scales: tuple[Finite, ...] = Field((0.3, 0.5, 1.0), min_length=1)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    resident: bool = False
    threads: int = Field(1, ge=1)
    seed: int = 0
    evaluate: Measuring = Measuring()
    device: str = "auto"

    @model_validator(mode="after")
    def _fits(self) -> EvolveRecipe:
        given = [name for name in DATA.values() if getattr(self, name) is not None]
        wanted = DATA[self.fitness.name]
        if wanted not in given:
            raise ValueError(f"{wanted}: is missing; fitness {self.fitness.name} is measured on it")
        if len(given) > 1:
            other = next(name for name in given if name != wanted)
            raise ValueError(f"{other}: fitness {self.fitness.name} is measured on {wanted}; leave {other} out")
        labels = [spec.label for spec in self.parents]
        taken = ("evolved", *CONTROLS, *([self.base.label] if self.base else []))
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"parents: {label!r} stands twice; give each model its own name")
            if label in taken:
                raise ValueError(f"parents: {label!r} means something else in reports; give the model another name")
        first = self.parents[0]
        for spec in (*self.parents[1:], *([self.base] if self.base else [])):
            for key in ("dtype", "document_start", "chat_template"):
                if getattr(spec, key) != getattr(first, key):
                    raise ValueError(
                        f"{spec.label}: {key} is {getattr(spec, key)!r}, of {first.label} {getattr(first, key)!r}; "
                        "children have one for all"
                    )
        return self

    @property
    def settings(self) -> SearchSettings:
        """Return what decides the search."""
        same = ("method", "genes", "express", "low", "high", "size", "jitter", "generations", "patience", "budget", "racing", "behind")
        more = ("finalists", "controls", "task_arithmetic_scales", "threads", "seed")
        return SearchSettings(accept=Acceptance(self.accept), **{name: getattr(self, name) for name in (*same, *more)})

    def to_yaml(self) -> str:
        """Return the recipe in full, every default written out."""
        return dump_yaml(json.loads(TypeAdapter(EvolveRecipe).dump_json(self)))


def evolve_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors."""
    return EvolveRecipe.model_json_schema()


def parse_evolve_recipe(value: Any, name: str = "recipe") -> EvolveRecipe:
    """Validate plain values as a recipe.

    Raises:
        RecipeError: every problem in one line, the first one first, with suggestions for unknown names.
    """
    if not isinstance(value, dict):
        what = "nothing" if value is None else "a list" if isinstance(value, list) else f"{value!r:.60}"
        raise RecipeError(f"{name}: a recipe is a mapping of keys to values, got {what}", hint=HINT)
    try:
        return EvolveRecipe.model_validate(value)
    except ValidationError as error:
        raise RecipeError(f"{name}: {problems(error, EvolveRecipe)}", hint=HINT) from None


def load_evolve_recipe(path: Path) -> EvolveRecipe:
    """Read a recipe from a YAML file.

    Raises:
        RecipeError: the file is missing, not UTF-8, not plain YAML, or not a recipe.
    """
    return parse_evolve_recipe(read_yaml(path), str(path))
