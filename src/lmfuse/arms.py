"""The models that a run trains and compares: who teaches each, by which methods, and which of them are merged afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.dtw import Dtw
from lmfuse.catalogue import FAMILIES, AlignMethod, FuseMethod, LossMethod, MergeMethod
from lmfuse.errors import did_you_mean
from lmfuse.fuse.min_ce import MinCE
from lmfuse.lessons import INFERENCE, PROGRESSIVE, REVERSED, SIMULTANEOUS, SMOOTH, Lesson, Optimizer, check_lessons, from_beta
from lmfuse.losses.cross_entropy import CrossEntropy
from lmfuse.losses.kl import KL
from lmfuse.merge_recipe import MergeModel, MergeRecipe, takes_base
from lmfuse.model_files import ModelSpec
from lmfuse.schema_errors import problems

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]


class Arm(BaseModel):
    """One trained model of the comparison: who teaches it, and how.

    Attributes:
        name: its name in the report.
        teacher: ``none`` (plain continued training), ``self`` (the frozen target's own rows), ``sources`` (all of them, fused), ``best_single``
            (the source that does best on the held-out text) or the name of one source.
        align, fuse, loss: the methods.
        include_target: whether the target's own rows compete as one more source, as published.
        learning_rate: instead of the one found for plain training.
        clm_weight: per domain, instead of the loss's own.
        lessons: which text weighs what, one lesson after the other: the ground truth, and the answers that the recipe's ``answers`` elects. None:
            the ground truth alone.
        optimizer: ``fresh``: each lesson is a training of its own, with its own schedule and moments, that begins with the model of the one
            before; ``continued``: one training for all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    teacher: str = "sources"
    align: AlignMethod = ByteLaw()
    fuse: FuseMethod = MinCE()
    loss: LossMethod = KL()
    include_target: bool = False
    learning_rate: Rate | None = None
    clm_weight: dict[str, Share] = {}
    lessons: tuple[Lesson, ...] = ()
    optimizer: Optimizer = "fresh"

    @field_validator("loss", mode="before")
    @classmethod
    def _beta(cls, loss: Any) -> Any:
        return from_beta(loss)

    @model_validator(mode="after")
    def _has_lessons(self) -> Arm:
        check_lessons(self.lessons)
        if self.lessons and self.teacher == "none":
            raise ValueError("lessons need a teacher; plain continued training has none")
        return self

    @property
    def reads_answers(self) -> bool:
        """Return whether it learns from the teachers' own answers."""
        return any(lesson.reads_answers for lesson in self.lessons)


class MergedArm(BaseModel):
    """One model of the comparison that is merged from trained arms, the target being their base.

    Attributes:
        name: its name in the report.
        method: how their weights become one.
        of: the arms; by default those that ``pairwise`` stands for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    method: MergeMethod
    of: tuple[str, ...] = ()


PAPER = Arm(name="paper", align=Dtw(k=10), fuse=MinCE(unit="token", judge="training_text", reward_dtype="bfloat16", no_teacher=False),
            loss=CrossEntropy(clm_weight=0.9, tail="renormalise"), include_target=True)  # fmt: skip
WORDS: Mapping[str, str] = {
    "clm": "plain continued training on the same text: the control that fusion must beat",
    "self": "the frozen target teaches itself: the placebo, whatever it gains is regularisation",
    "fused": "the recipe's own align, fuse and loss over all sources",
    "best_single": "the same, from the one source that does best on held-out text",
    "pairwise": "one arm per source, `pair-NAME`: that source and the target's own rows, fused; FuseChat's first step (arXiv:2408.07990). MinCE then judges "
    "each training text by itself, as published, whatever `fuse` says of judge and no_teacher",
    "all_at_once": "all sources and the target's own rows, fused in the same way: what `pairwise` and a merge are compared with",
    "training_mode": "ProFuser's first half (arXiv:2408.04998): as `all_at_once`, the model that is least surprised by the ground truth teaches it",
    "inference_mode": "its second half alone: all of them answer, judges elect the best answer, and its author's rows over it teach; no ground truth",
    "simultaneous": "both at once, with equal weights",
    "reversed": "ground truth first, then answers with a tenth of it",
    "progressive": "ProFuser as published: answers first, then ground truth with a tenth of the answers",
    "progressive_smooth": "the same as a ramp: the ground truth rises from 0 to 1, the answers fall from 1 to 0.1",
    "paper": "FuseLLM as published (arXiv:2401.10491): DTW and MinED, per-token MinCE with the target among the sources, lambda 0.9",
}
LESSONS: Mapping[str, tuple[Lesson, ...]] = {
    "inference_mode": INFERENCE, "simultaneous": SIMULTANEOUS, "reversed": REVERSED, "progressive": PROGRESSIVE, "progressive_smooth": SMOOTH,
}  # fmt: skip
TEACHERS = ("none", "self", "sources", "best_single")
MERGES = tuple(str(vars(member)["name"]) for family in FAMILIES if family.key == "merge" for member in family.members)


def pair_name(source: str) -> str:
    """Return the name of the arm that ``pairwise`` makes for a source."""
    return f"pair-{source}"


def check_words(values: Any, known: Iterable[str]) -> Any:
    """Return values as they are.

    Raises:
        ValueError: one of them is a word that is not known.
    """
    known = tuple(known)
    for value in values if isinstance(values, list | tuple) else ():
        if isinstance(value, str) and value not in known:
            raise ValueError(did_you_mean(value, known))
    return values


def resolve_arms(given: Sequence[str | Arm], sources: Sequence[str], methods: Mapping[str, Any]) -> tuple[Arm, ...]:
    """Return every arm in full, plain continued training first. ``methods`` are those of words that say nothing else.

    Raises:
        ValueError: an arm is called ``clm`` and has a teacher.
    """
    fuse = methods.get("fuse", MinCE())
    paired = {**methods, "fuse": replace(fuse, judge="training_text", no_teacher=False) if isinstance(fuse, MinCE) else fuse}
    known: dict[str, list[Arm]] = {
        "clm": [Arm(name="clm", teacher="none")],
        "self": [Arm(name="self", teacher="self", **methods)],
        "fused": [Arm(name="fused", **methods)],
        "best_single": [Arm(name="best_single", teacher="best_single", **methods)],
        "pairwise": [Arm(name=pair_name(source), teacher=source, include_target=True, **paired) for source in sources],
        "all_at_once": [Arm(name="all_at_once", include_target=True, **paired)],
        "paper": [PAPER],
        "training_mode": [Arm(name="training_mode", include_target=True, **paired)],
        **{word: [Arm(name=word, include_target=True, lessons=lessons, **paired)] for word, lessons in LESSONS.items()},
    }
    arms = [arm for each in given for arm in (known[each] if isinstance(each, str) else [each])]
    plain = [arm for arm in arms if arm.name == "clm"] or known["clm"]
    if any(arm.teacher != "none" for arm in plain):
        raise ValueError("arms.clm: this is the name of plain continued training; give an arm with a teacher another name")
    return (*plain, *(arm for arm in arms if arm.name != "clm"))


def resolve_merges(given: Sequence[str | MergedArm], arms: Sequence[Arm], sources: Sequence[str]) -> tuple[MergedArm, ...]:
    """Return every merge in full; a word is a merge method with its defaults.

    Raises:
        ValueError: there is nothing to merge, an arm that is to be merged does not exist, or a method cannot merge so many models.
    """
    names = [arm.name for arm in arms]
    pairs = tuple(pair_name(source) for source in sources if pair_name(source) in names)
    found = []
    for each in given:
        merge = MergedArm(name=each, method=_by_name(each)) if isinstance(each, str) else each
        merge = merge if merge.of else merge.model_copy(update={"of": pairs})
        if not merge.of:
            raise ValueError(f"merges.{merge.name}: nothing to merge; add `pairwise` to arms, or name arms in `of`")
        for name in merge.of:
            if name not in names:
                raise ValueError(f"merges.{merge.name}.of: {did_you_mean(name, names)}")
        _check_merge(merge, {arm.name: _training(arm, sources) for arm in arms})
        found.append(merge)
    return tuple(found)


def _training(arm: Arm, sources: Sequence[str]) -> Arm:
    """Return an arm so that arms whose trainings are the same are equal."""
    teacher = sources[0] if arm.teacher in ("sources", "best_single") and len(sources) == 1 else arm.teacher
    return arm.model_copy(update={"name": "", "teacher": teacher})


def _check_merge(merge: MergedArm, trainings: Mapping[str, Arm]) -> None:
    """Raise ValueError for a merge that could not be made, before anything is trained for it."""
    for name, other in combinations(merge.of, 2):
        if trainings[name] == trainings[other]:
            what = f"{name} stands twice" if name == other else f"{name} and {other} are the same training"
            raise ValueError(f"merges.{merge.name}.of: {what}")
    try:
        merge.method.check(len(merge.of), has_base=True)
        merge_recipe_of(merge, [f"arms/{name}" for name in merge.of], ModelSpec("target"))
    except ValidationError as problem:
        raise ValueError(f"merges.{merge.name}: {problems(problem, MergeRecipe)}") from None
    except ValueError as problem:
        raise ValueError(f"merges.{merge.name}: {problem}") from None


def merge_recipe_of(merge: MergedArm, folders: Sequence[str], target: ModelSpec) -> MergeRecipe:
    """Return how trained arms are merged: in the target's type, with the tokenizer and the chat template that they were trained with.

    Raises:
        ValidationError: the method cannot merge them.
    """
    models = [MergeModel(model=folder, name=name) for name, folder in zip(merge.of, folders, strict=True)]
    base = "target" if takes_base(merge.method) else None
    if base:
        models.append(MergeModel(model=target.model, revision=target.revision, name=base))
    return MergeRecipe(models=tuple(models), base=base, method=merge.method, dtype=target.dtype, tokenizer=merge.of[0])


def _by_name(word: str) -> Any:
    """Return a merge method with its defaults.

    Raises:
        ValueError: the method has a setting without a default.
    """
    try:
        return TypeAdapter(MergeMethod).validate_python({"name": word})
    except ValidationError as error:
        missing = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ValueError(f"merges: {word} needs {missing}; write the merge in full: name, method, of") from None
