"""One child judged: made, scored on some units or all, or discarded. It runs in this process or in a worker, with the same result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from lmfuse.errors import InputError, LmfuseError, ModelError, ResourceError
from lmfuse.evolution.express import Expression
from lmfuse.evolution.fitness import Fitness
from lmfuse.evolution.journal import finite
from lmfuse.evolution.models import Materialise, Model
from lmfuse.evolution.scores import Scores, UnitScore, hopeless
from lmfuse.evolve.program import Line, from_program
from lmfuse.memory import is_out_of_memory


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class Racing:
    """When a child is stopped before it was scored on all units: after ``first`` of them and each time that number has doubled.

    It is stopped if its difference from the member whose slot it would take, plus ``deviations`` standard errors, is below zero
    (``scores.hopeless``), and not before every group had two units. With 3 of them about one child in a thousand that would have won
    is lost; docs/evolve.md has what was measured.

    Attributes:
        first: a share of the units.
        deviations: the fewer, the more children are stopped.
        fewest: units that are scored at least.
    """

    first: Annotated[float, Field(gt=0, lt=1)] = 0.25
    deviations: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3.0
    fewest: Annotated[int, Field(ge=2)] = 20

    def stops(self, num_units: int) -> list[int]:
        """Return after how many units a child is looked at, the last one being all.

        >>> Racing(first=0.25).stops(100), Racing().stops(10)
        ([25, 50, 100], [10])
        """
        found, stop = [], max(self.fewest, round(self.first * num_units))
        while stop < num_units:
            found.append(stop)
            stop *= 2
        return [*found, num_units]


@dataclass(frozen=True)
class Task:
    """Everything that judging needs and that all children share.

    Attributes:
        threads: of torch; scores may depend on their number in the last digits, so it is the same in every worker.
    """

    materialise: Materialise
    expression: Expression
    fitness: Fitness
    scratch: Path
    threads: int = 1
    racing: Racing | None = None


@dataclass(frozen=True)
class Question:
    """A child to be judged.

    Attributes:
        program: of its genome.
        units: to score it on, in the order in which they are scored.
        known: what it scored before.
        rival: what the member scored whose slot it would take; None where it is not to be raced.
    """

    program: tuple[Line, ...]
    units: tuple[str, ...]
    known: Scores
    rival: Scores | None = None


@dataclass(frozen=True)
class Verdict:
    """What came of it.

    Attributes:
        scores: of the units asked for, those known before included; fewer where the child was stopped.
        new: the units that were scored for this verdict.
        stopped: the child was stopped as hopeless.
        failure: ``raised``, ``not_finite``, ``not_made``, or ``""``.
        message: why, in one line.
    """

    scores: Mapping[str, UnitScore] = field(default_factory=dict)
    new: tuple[str, ...] = ()
    stopped: bool = False
    failure: str = ""
    message: str = ""


class Unanswered(Exception):  # noqa: N818 - no error, but the answer that work is needed
    """What is known does not decide."""


def judge(task: Task, question: Question, *, only_known: bool = False) -> Verdict:
    """Judge a child.

    Args:
        task: what all children share.
        question: which child, on what.
        only_known: answer from what is known, without making the child.

    Raises:
        Unanswered: with ``only_known``, where that does not suffice.
        ResourceError: memory or disk do not suffice.
        ModelError: the parents' files were damaged or changed.
    """
    scores, new, units = dict(question.known), list[str](), question.units
    racing = task.racing if question.rival else None
    with ExitStack() as stack:
        model: Model | Verdict | None = None
        for stop in racing.stops(len(units)) if racing else [len(units)]:
            if missing := [unit for unit in units[:stop] if unit not in scores]:
                if only_known:
                    raise Unanswered
                model = _made(task, question, stack) if model is None else model
                found = model if isinstance(model, Verdict) else _scored(task.fitness, model, missing)
                if isinstance(found, Verdict):
                    return found
                scores |= found
                new += missing
            seen = {unit: scores[unit] for unit in units[:stop]}
            if racing and question.rival and stop < len(units) and hopeless(seen, question.rival, racing.deviations):
                return Verdict(seen, tuple(new), stopped=True)
    return Verdict({unit: scores[unit] for unit in units}, tuple(new))


def _made(task: Task, question: Question, stack: ExitStack) -> Model | Verdict:
    """Return the child, there until the stack is left, or the verdict on one that cannot be made."""
    try:
        return stack.enter_context(task.materialise.child(task.expression, from_program(question.program), task.scratch))
    except ModelError:  # the parents are at fault
        raise
    except (ValueError, InputError) as reason:
        return Verdict(failure="not_made", message=_line(reason))


def _scored(fitness: Fitness, model: Model, units: Sequence[str]) -> dict[str, UnitScore] | Verdict:
    """Return scores, or the verdict on a child that has none."""
    try:
        found = dict(zip(units, fitness(model, units), strict=True))
    except Exception as reason:
        if isinstance(reason, ResourceError) or is_out_of_memory(reason):
            raise
        name = "" if isinstance(reason, LmfuseError) else f"{type(reason).__name__}: "
        return Verdict(failure="raised", message=f"{name}{_line(reason)}")
    if not finite(found):
        bad = next(unit for unit, score in found.items() if not finite({unit: score}))
        return Verdict(failure="not_finite", message=f"{bad} scored {found[bad].value}")
    return found


def _line(reason: BaseException) -> str:
    return next(iter(str(reason).splitlines()), type(reason).__name__)
