"""A run as data: its schema, read from YAML and written back.

Every default is a value that a reader can see in ``recipe.yaml`` of the run's folder, where the recipe is written out in full.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from lmfuse.align.byte_law import ByteLaw
from lmfuse.answers import Answering
from lmfuse.arms import MERGES, TEACHERS, WORDS, Arm, MergedArm, Rate, check_words, resolve_arms, resolve_merges
from lmfuse.catalogue import AlignMethod, FuseMethod, LossMethod, misfit
from lmfuse.errors import RecipeError, did_you_mean
from lmfuse.fuse.min_ce import MinCE
from lmfuse.judges.panel import Panel
from lmfuse.judges.settings import JudgeMethod, Likelihood, UnitTests, Verifier, label_of
from lmfuse.lessons import from_beta
from lmfuse.limits import Limits
from lmfuse.losses.kl import KL
from lmfuse.models import ModelSpec
from lmfuse.schema_errors import problems
from lmfuse.text import TextSpec
from lmfuse.train.settings import Training
from lmfuse.vote.family import VoteMethod
from lmfuse.vote.first_places import FirstPlaces
from lmfuse.yaml_strict import dump_yaml, read_yaml

NonNegative = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Text(_Section):
    """What is read, how it is cut, and what is kept apart.

    Attributes:
        train: corpora to learn from; each names its domain.
        evaluation: corpora to measure on, never trained on; overlap with ``train`` is refused.
        held_out: share of the training documents of each domain kept apart to tune the learning rate and to judge sources.
        window_tokens: longest window in tokens, start token included; never more than the smallest context.
        windows_by: whose tokens: those of every model (``all``), or the target's alone (``target``), so that another source changes no window
            (unless its context is too short for one, or its chat template cannot express a conversation).
        max_overlap: share of an evaluation document's 13-word spans that may also stand in the training text.
        seed: of the held-out split.
        chat_template: how models read conversations: each with its ``own`` template, all with FuseChat's one for all (``openchat``), or with the
            jinja file of this path.
        unfit_conversations: whether a conversation that a template cannot express, or that is none, stops the run (``stop``) or is left out.
    """

    train: tuple[TextSpec, ...] = Field(min_length=1)
    evaluation: tuple[TextSpec, ...] = Field(min_length=1)
    held_out: float = Field(0.1, gt=0, lt=0.9)
    window_tokens: int = Field(512, ge=16)
    windows_by: Literal["all", "target"] = "all"
    max_overlap: NonNegative = 0.5
    seed: int = 0
    chat_template: str = "own"
    unfit_conversations: Literal["stop", "leave_out"] = "stop"


class RowSettings(_Section):
    """How a source's knowledge is kept: ``k`` candidates a row, storage precision, padded tokens a batch, documents a shard."""

    k: int = Field(16, ge=1, le=4096)
    precision: Literal["float16", "float32"] = "float16"
    batch_tokens: int = Field(4096, ge=16)
    shard_documents: int = Field(256, ge=1)


class Task(_Section):
    """Questions of one evaluated domain that every model answers by itself; the share of right answers is reported.

    Attributes:
        domain: of the evaluation text; its conversations ask.
        verifier: what is right, as the judge ``verifier``: the final number by default.
        limit: the most questions; 0: all.
        max_new_tokens, batch_prompts: of the answers, which are the likeliest ones (temperature 0). One that is cut is judged as it stands.
    """

    domain: str
    verifier: Verifier = Verifier()
    limit: int = Field(0, ge=0)
    max_new_tokens: int = Field(512, ge=1)
    batch_prompts: int = Field(8, ge=1)

    @property
    def writing(self) -> Answering:
        """Return how answers are written."""
        return Answering(self.max_new_tokens, batch_prompts=self.batch_prompts)


class Evaluation(_Section):
    """How models are measured.

    Attributes:
        batch_tokens: padded tokens a batch.
        bootstrap_samples, seed: of an interval.
        tasks: questions that every model answers, beside bits per byte.
    """

    batch_tokens: int = Field(8192, ge=16)
    bootstrap_samples: int = Field(10_000, ge=100)
    seed: int = 0
    tasks: tuple[Task, ...] = ()


class Answers(_Section):
    """How the teachers answer the training questions, and who says which answer is the best one.

    A question is what stands before the last trained answer of a training window that is a conversation; that answer is the ground truth.

    Attributes:
        judges: who scores answers, see docs/judges.md.
        vote: how their scores become one decision.
        max_new_tokens, batch_prompts, temperature, seed: of the answers, as for ``lmfuse answer``.
        cut: whether an answer that met the limit of tokens is no candidate (``leave_out``), or one as it is (``keep``).
        truth_domains: the domains whose ground truth judges may compare answers with (``verifier``); by default all.
        batch_questions: questions that a judge hears at a time; an interrupted run repeats such a batch at most.
    """

    judges: tuple[JudgeMethod, ...] = Field(min_length=1)
    vote: VoteMethod = FirstPlaces()
    max_new_tokens: int = Field(512, ge=1)
    batch_prompts: int = Field(8, ge=1)
    temperature: float = Field(0.0, ge=0, le=10)
    seed: int = 0
    cut: Literal["leave_out", "keep"] = "leave_out"
    truth_domains: tuple[str, ...] = ()
    batch_questions: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _judges_fit(self) -> Answers:
        for judge in self.judges:
            if isinstance(judge, UnitTests):
                raise ValueError(
                    f"judges: {label_of(judge)} has nothing to run: training conversations carry no tests; choose another judge"
                )
        assert self.panel
        return self

    @property
    def panel(self) -> Panel:
        """Return the judges and their vote."""
        return Panel(self.judges, self.vote, self.batch_questions)

    @property
    def writing(self) -> Answering:
        """Return how answers are written."""
        return Answering(self.max_new_tokens, self.temperature, self.batch_prompts, self.seed)


class Recipe(_Section):
    """One run: a target, its sources, text, and the arms to compare.

    Attributes:
        learning_rates: tried for plain continued training; the one best on held-out text serves every arm that names none.
        seeds: every arm is trained once per seed; a document's value is the mean over them.
        sources_used: ``auto`` leaves out sources that do not beat the CLM-trained target on held-out text in any domain.
        arms: words (``clm``, ``self``, ``fused``, ``best_single``, ``pairwise``, ``all_at_once``, ``paper``, and for conversations ``training_mode``,
            ``inference_mode``, ``simultaneous``, ``reversed``, ``progressive``, ``progressive_smooth``) or arms in full; ``clm`` always takes part.
        merges: models merged from trained arms, the target being their base: the name of a merge method, or a merge in full.
        called: what the report calls the ``target`` and plain training (``clm``), such as ``pivot`` and ``sft``.
        answers: how teachers answer and are judged; needed where an arm learns from their answers.
        result: the arm or merge that becomes the run's model.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    target: ModelSpec
    sources: tuple[ModelSpec, ...] = Field(min_length=1)
    text: Text
    rows: RowSettings = RowSettings()
    align: AlignMethod = ByteLaw()
    fuse: FuseMethod = MinCE()
    loss: LossMethod = KL()
    clm_weight: dict[str, NonNegative] = {}
    train: Training = Training()
    learning_rates: tuple[Rate, ...] = ()
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    sources_used: Literal["auto", "all"] = "auto"
    arms: tuple[str | Arm, ...] = ("clm", "self", "fused")
    merges: tuple[str | MergedArm, ...] = ()
    called: dict[Literal["target", "clm"], str] = {}
    answers: Answers | None = None
    result: str = "fused"
    evaluate: Evaluation = Evaluation()
    limits: Limits = Limits()
    device: str = "auto"

    @field_validator("loss", mode="before")
    @classmethod
    def _beta(cls, loss: Any) -> Any:
        return from_beta(loss)

    @field_validator("arms", mode="before")
    @classmethod
    def _known_arms(cls, arms: Any) -> Any:
        return check_words(arms, WORDS)

    @field_validator("merges", mode="before")
    @classmethod
    def _known_merges(cls, merges: Any) -> Any:
        return check_words(merges, MERGES)

    @model_validator(mode="after")
    def _names_fit(self) -> Recipe:
        names, arms = [source.label for source in self.sources], [arm.name for arm in self.resolved_arms]
        made = [*arms, *(merge.name for merge in self.resolved_merges)]
        if words := set(names).intersection({*TEACHERS, *self.called.values()}):
            raise ValueError(f"sources: {sorted(words)[0]!r} means something else here; give the source another name")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"sources: {sorted(twice)[0]!r} stands twice; give each source its own name")
        shown = [self.shown(name) for name in made]
        if taken := {"target", self.shown("target"), *names}.intersection(shown) | {"target", self.shown("target")}.intersection(names):
            raise ValueError(f"{sorted(taken)[0]!r} names both an arm and a model")
        if len(set(shown)) < len(shown):
            raise ValueError("arms: two arms have the same name")
        if self.result not in made:
            raise ValueError(f"result: {did_you_mean(self.result, made)}")
        teachers = [*TEACHERS, *names]
        for arm in self.resolved_arms:
            if arm.teacher not in teachers:
                raise ValueError(f"arms.{arm.name}.teacher: {did_you_mean(arm.teacher, teachers)}")
        domains = {spec.domain for spec in self.text.train}
        for arm in self.resolved_arms:
            taught_by = (len(names) if arm.teacher == "sources" else 1) + (arm.include_target and arm.teacher != "self")
            if arm.teacher != "none" and (problem := misfit(arm.align, arm.loss, taught_by, arm.fuse)):
                raise ValueError(f"arms.{arm.name}: {problem}")
            for domain in arm.clm_weight.keys() - domains:
                raise ValueError(f"clm_weight: {did_you_mean(domain, domains)}")
        self._check_answers(["target", *names], domains)
        evaluated = {spec.domain for spec in self.text.evaluation}
        for task in self.evaluate.tasks:
            if task.domain not in evaluated:
                raise ValueError(f"evaluate.tasks: {did_you_mean(task.domain, evaluated)}")
        return self

    def _check_answers(self, labels: Sequence[str], domains: Iterable[str]) -> None:
        """Raise ValueError where an arm needs answers that the recipe does not describe, or they name what is not there."""
        if self.answers is None:
            if needing := next((arm.name for arm in self.resolved_arms if arm.reads_answers), None):
                raise ValueError(f"arms.{needing}: learns from answers; add a section `answers` that says who judges them")
            return
        for domain in self.answers.truth_domains:
            if domain not in domains:
                raise ValueError(f"answers.truth_domains: {did_you_mean(domain, domains)}")
        for judge in self.answers.judges:
            for name in judge.sources if isinstance(judge, Likelihood) else ():
                if name not in labels:
                    raise ValueError(f"answers.judges.{label_of(judge)}.sources: {did_you_mean(name, labels)}")

    @property
    def resolved_arms(self) -> tuple[Arm, ...]:
        """Return every arm in full, plain continued training first."""
        methods = {"align": self.align, "fuse": self.fuse, "loss": self.loss, "clm_weight": self.clm_weight}
        return resolve_arms(self.arms, [source.label for source in self.sources], methods)

    @property
    def resolved_merges(self) -> tuple[MergedArm, ...]:
        """Return every merge in full."""
        return resolve_merges(self.merges, self.resolved_arms, [source.label for source in self.sources])

    def shown(self, name: str) -> str:
        """Return what the report calls the target, an arm or a merge."""
        return self.called.get(name, name)  # type: ignore[call-overload]

    @property
    def judged_sources(self) -> tuple[str, ...]:
        """Return the sources that an arm learns from by the recipe's own ``align``: those that ``limits`` speak of."""
        teachers = {arm.teacher for arm in self.resolved_arms if arm.align == self.align}
        everyone = bool(teachers & {"sources", "best_single"})
        return tuple(source.label for source in self.sources if everyone or source.label in teachers)

    def to_yaml(self) -> str:
        """Return the recipe in full, every default written out."""
        return dump_yaml(json.loads(TypeAdapter(Recipe).dump_json(self)))


def model_specs(recipe: Recipe, base: Path) -> dict[str, ModelSpec]:
    """Return the recipe's models by label, the target first; a relative folder is one beside the recipe, where there is one."""
    specs = {"target": recipe.target, **{source.label: source for source in recipe.sources}}
    beside = {label: base / spec.model for label, spec in specs.items()}
    return {label: replace(spec, model=str(beside[label])) if beside[label].is_dir() else spec for label, spec in specs.items()}


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors."""
    return Recipe.model_json_schema()


def parse_recipe(value: Any, name: str = "recipe") -> Recipe:
    """Validate plain values as a recipe.

    Raises:
        RecipeError: every problem in one line each, the first one first, with suggestions for unknown names.
    """
    if not isinstance(value, dict):
        raise RecipeError(
            f"{name}: a recipe is a mapping of keys to values, got {type(value).__name__}", hint="start from `lmfuse demo --show-recipe`"
        )
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise RecipeError(f"{name}: {problems(error, Recipe)}", hint="docs/recipe.md explains every key") from None


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        RecipeError: the file is missing, not UTF-8, not plain YAML, or not a recipe.
    """
    return parse_recipe(read_yaml(path), str(path))
