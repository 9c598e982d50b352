"""A run as data: its schema, read from YAML and written back.

Every default is a value that a reader can see in ``recipe.yaml`` of the run's folder, where the recipe is written out in full.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.dtw import Dtw
from lmfuse.catalogue import AlignMethod, FuseMethod, LossMethod, misfit
from lmfuse.errors import RecipeError, did_you_mean
from lmfuse.fuse.min_ce import MinCE
from lmfuse.limits import Limits
from lmfuse.losses.cross_entropy import CrossEntropy
from lmfuse.losses.kl import KL
from lmfuse.models import ModelSpec
from lmfuse.text import TextSpec
from lmfuse.train.settings import Training
from lmfuse.yaml_strict import dump_yaml, load_yaml

NonNegative = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Text(_Section):
    """What is read, how it is cut, and what is kept apart.

    Attributes:
        train: corpora to learn from; each names its domain.
        evaluation: corpora to measure on, never trained on; overlap with ``train`` is refused.
        held_out: share of the training documents of each domain kept apart to tune the learning rate and to judge sources.
        window_tokens: longest window in tokens of any model, start token included; never more than the smallest context.
        max_overlap: share of an evaluation document's 13-word spans that may also stand in the training text.
        seed: of the held-out split.
    """

    train: tuple[TextSpec, ...] = Field(min_length=1)
    evaluation: tuple[TextSpec, ...] = Field(min_length=1)
    held_out: float = Field(0.1, gt=0, lt=0.9)
    window_tokens: int = Field(512, ge=16)
    max_overlap: NonNegative = 0.5
    seed: int = 0


class RowSettings(_Section):
    """How a source's knowledge is kept: ``k`` candidates a row, storage precision, padded tokens a batch, documents a shard."""

    k: int = Field(16, ge=1, le=4096)
    precision: Literal["float16", "float32"] = "float16"
    batch_tokens: int = Field(4096, ge=16)
    shard_documents: int = Field(256, ge=1)


class Arm(_Section):
    """One trained model of the comparison: who teaches it, and how.

    Attributes:
        name: its name in the report.
        teacher: ``none`` (plain continued training), ``self`` (the frozen target's own rows), ``sources`` (all of them, fused), ``best_single``
            (the source that does best on the held-out text) or the name of one source.
        align, fuse, loss: the methods.
        include_target: whether the target's own rows compete as one more source, as published.
        learning_rate: instead of the one found for plain training.
        clm_weight: per domain, instead of the loss's own.
    """

    name: str
    teacher: str = "sources"
    align: AlignMethod = ByteLaw()
    fuse: FuseMethod = MinCE()
    loss: LossMethod = KL()
    include_target: bool = False
    learning_rate: Rate | None = None
    clm_weight: dict[str, NonNegative] = {}


class Evaluation(_Section):
    """How models are measured: padded tokens a batch, bootstrap samples of an interval and their seed."""

    batch_tokens: int = Field(8192, ge=16)
    bootstrap_samples: int = Field(10_000, ge=100)
    seed: int = 0


PAPER = Arm(name="paper", align=Dtw(k=10), fuse=MinCE(unit="token", judge="training_text", reward_dtype="bfloat16", no_teacher=False),
            loss=CrossEntropy(clm_weight=0.9, tail="renormalise"), include_target=True)  # fmt: skip
WORDS: Mapping[str, str] = {
    "clm": "plain continued training on the same text: the control that fusion must beat",
    "self": "the frozen target teaches itself: the placebo, whatever it gains is regularisation",
    "fused": "the recipe's own align, fuse and loss over all sources",
    "best_single": "the same, from the one source that does best on held-out text",
    "paper": "FuseLLM as published (arXiv:2401.10491): DTW and MinED, per-token MinCE with the target among the sources, lambda 0.9",
}


class Recipe(_Section):
    """One run: a target, its sources, text, and the arms to compare.

    Attributes:
        learning_rates: tried for plain continued training; the one best on held-out text serves every arm that names none.
        seeds: every arm is trained once per seed; a document's value is the mean over them.
        sources_used: ``auto`` leaves out sources that do not beat the CLM-trained target on held-out text in any domain.
        arms: words (``clm``, ``self``, ``fused``, ``best_single``, ``paper``) or arms in full; ``clm`` always takes part.
        result: the arm that becomes the run's model.
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
    result: str = "fused"
    evaluate: Evaluation = Evaluation()
    limits: Limits = Limits()
    device: str = "auto"

    @field_validator("arms", mode="before")
    @classmethod
    def _known_words(cls, arms: Any) -> Any:
        for arm in arms if isinstance(arms, list | tuple) else ():
            if isinstance(arm, str) and arm not in WORDS:
                raise ValueError(did_you_mean(arm, WORDS))
        return arms

    @model_validator(mode="after")
    def _names_fit(self) -> Recipe:
        names = [source.label for source in self.sources]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"sources: {sorted(twice)[0]!r} stands twice; give each source its own name")
        taken = {"target", *names} & {arm.name for arm in self.resolved_arms}
        if taken or "target" in names:
            raise ValueError(f"{sorted(taken or {'target'})[0]!r} names both an arm and a model")
        arm_names = [arm.name for arm in self.resolved_arms]
        if len(set(arm_names)) < len(arm_names):
            raise ValueError("arms: two arms have the same name")
        if self.result not in arm_names:
            raise ValueError(f"result: {did_you_mean(self.result, arm_names)}")
        for arm in self.resolved_arms:
            if arm.teacher not in {"none", "self", "sources", "best_single", *names}:
                raise ValueError(
                    f"arms.{arm.name}.teacher: {did_you_mean(arm.teacher, ['none', 'self', 'sources', 'best_single', *names])}"
                )
        domains = {spec.domain for spec in self.text.train}
        for arm in self.resolved_arms:
            taught_by = (len(names) if arm.teacher == "sources" else 1) + (arm.include_target and arm.teacher != "self")
            if arm.teacher != "none" and (problem := misfit(arm.align, arm.loss, taught_by, arm.fuse)):
                raise ValueError(f"arms.{arm.name}: {problem}")
            for domain in arm.clm_weight.keys() - domains:
                raise ValueError(f"clm_weight: {did_you_mean(domain, domains)}")
        return self

    @property
    def resolved_arms(self) -> tuple[Arm, ...]:
        """Return every arm in full, plain continued training first."""
        mine = {"align": self.align, "fuse": self.fuse, "loss": self.loss, "clm_weight": self.clm_weight}
        known = {
            "clm": Arm(name="clm", teacher="none"),
            "self": Arm(name="self", teacher="self", **mine),
            "fused": Arm(name="fused", **mine),
            "best_single": Arm(name="best_single", teacher="best_single", **mine),
            "paper": PAPER,
        }
        arms = [known[arm] if isinstance(arm, str) else arm for arm in self.arms]
        return (known["clm"], *(arm for arm in arms if arm.name != "clm"))

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


def _explain(error: Mapping[str, Any], value: Any) -> str:
    """Turn one pydantic error into ``where: what``, with a suggestion where a name is unknown."""
    where = ".".join(str(part) for part in error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "union_tag_invalid":
        return f"{where}.name: {did_you_mean(str(context['tag']), [tag.strip(chr(39)) for tag in context['expected_tags'].split(', ')])}"
    if kind == "union_tag_not_found":
        return f"{where}.name: is missing; name the method (`lmfuse methods` lists them)"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: {did_you_mean(str(error['loc'][-1]), _fields_beside(error['loc']))}"
    if kind == "missing" or kind == "missing_argument":
        return f"{where}: is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    got = "" if isinstance(error.get("input"), dict | list) or kind == "value_error" else f" (got {error.get('input')!r})"
    return f"{where}: {message}{got}" if where else f"{message}{got}"


def _fields_beside(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are known where an unknown one stands, by walking the JSON schema along the location."""
    schema = recipe_schema()
    node: Any = schema
    for part in location[:-1]:
        node = _resolve(node, schema)
        options = [_resolve(option, schema) for option in node.get("anyOf", node.get("oneOf", [node]))]
        named = [o for o in options if o.get("properties", {}).get("name", {}).get("const") == part]
        if named:
            node = named[0]
            continue
        node = next((o["items"] if isinstance(part, int) and "items" in o else o.get("properties", {}).get(part) for o in options
                     if "items" in o or part in o.get("properties", {})), {})  # fmt: skip
    node = _resolve(node or {}, schema)
    options = [_resolve(option, schema) for option in node.get("anyOf", node.get("oneOf", [node]))]
    return [key for option in options for key in option.get("properties", {})]


def _resolve(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    reference = node.get("$ref")
    return schema["$defs"][reference.rsplit("/", 1)[1]] if reference else node


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
        problems = [_explain(problem, value) for problem in error.errors()]
        more = f" (and {len(problems) - 1} more: {'; '.join(problems[1:4])})" if len(problems) > 1 else ""
        raise RecipeError(f"{name}: {problems[0]}{more}", hint="docs/recipe.md explains every key") from None


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        RecipeError: the file is missing, not UTF-8, not plain YAML, or not a recipe.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {path}", hint="give the path of a .yaml file") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}", hint="save the recipe as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}", hint="give the path of a .yaml file") from None
    return parse_recipe(load_yaml(text, str(path)), str(path))
