"""What a student reads in which order: the ground truth, the answers of its teachers, or both, and how the one gives way to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lmfuse.errors import InputError
from lmfuse.train.reader import Knots

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Weights = Weight | tuple[Weight, Weight]
Optimizer = Literal["fresh", "continued"]
PLAIN: Knots = ((0.0, 1.0),)


def _ends(weight: Weights) -> tuple[float, float]:
    return weight if isinstance(weight, tuple) else (weight, weight)


class Lesson(BaseModel):
    """A part of an arm's training: what the two texts of every sample weigh in it.  ProFuser, arXiv:2408.04998

    A weight is one number, or ``[begin, end]``: it moves from one to the other in a straight line.

    Attributes:
        truth: the weight of the loss on the ground truth (the paper's w2, training mode).
        answers: the weight of the loss on the answers that the judges elected (w1, inference mode).
        share: of ``train.epochs``; an arm's shares sum to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    truth: Weights
    answers: Weights
    share: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _teaches(self) -> Lesson:
        if not self.reads_truth and not self.reads_answers:
            raise ValueError("a lesson in which neither text weighs anything teaches nothing; give truth or answers a weight above 0")
        return self

    @property
    def reads_truth(self) -> bool:
        """Return whether the ground truth ever weighs anything."""
        return any(_ends(self.truth))

    @property
    def reads_answers(self) -> bool:
        """Return whether the answers ever weigh anything."""
        return any(_ends(self.answers))


PROGRESSIVE = (Lesson(truth=0, answers=1, share=0.5), Lesson(truth=1, answers=0.1, share=0.5))
REVERSED = (Lesson(truth=1, answers=0, share=0.5), Lesson(truth=0.1, answers=1, share=0.5))
SIMULTANEOUS = (Lesson(truth=1, answers=1),)
INFERENCE = (Lesson(truth=0, answers=1),)
SMOOTH = (Lesson(truth=(0, 1), answers=(1, 0.1)),)


@dataclass(frozen=True)
class Course:
    """One training of an arm: as many samples as ``epochs`` says, from the one at ``first`` on, and what its texts weigh at which share of it.

    Attributes:
        truth, answers: weights; None where that text is never read, so that nothing about it can change the result.
        first: the samples that were read before: training goes on in the stream of samples where it stopped.
        epochs: how often all samples are read.
    """

    truth: Knots | None = PLAIN
    answers: Knots | None = None
    first: int = 0
    epochs: float = 1.0


def check_lessons(lessons: Sequence[Lesson]) -> None:
    """Raise ValueError unless the shares of some lessons, if there are any, sum to 1.

    >>> check_lessons([Lesson(truth=1, answers=0, share=0.5)])
    Traceback (most recent call last):
    ...
    ValueError: lessons: their shares sum to 0.5, expected 1
    """
    total = sum(lesson.share for lesson in lessons)
    if lessons and abs(total - 1) > 1e-6:
        raise ValueError(f"lessons: their shares sum to {total:g}, expected 1")


def courses(lessons: Sequence[Lesson], optimizer: Optimizer, epochs: float, num_samples: int) -> list[Course]:
    """Return the trainings that lessons stand for, in order: one each with a fresh optimizer, else one for all.

    Together they read as many samples as one training without lessons, one after the other: none twice before all were read once.

    Raises:
        InputError: there are so few samples that a lesson has none.

    >>> [(course.first, course.epochs) for course in courses(PROGRESSIVE, "fresh", 1.0, 5)]
    [(0, 0.4), (2, 0.6)]
    >>> courses(REVERSED, "continued", 1.0, 5)[0].answers
    ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (1.0, 1.0))
    """
    if not lessons:
        return [Course(epochs=epochs)]
    if optimizer == "continued" or len(lessons) == 1:
        return [_course(lessons, 0, epochs)]
    ends = [0, *(round(epochs * num_samples * share) for share in accumulate(lesson.share for lesson in lessons))]
    if any(begin >= end for begin, end in pairwise(ends)):
        raise InputError(
            f"lessons: {num_samples} samples and {epochs:g} epochs leave one of {len(lessons)} lessons without any sample",
            hint="give more text or epochs",
        )
    return [
        _course([lesson], begin, (end - begin) / num_samples) for lesson, (begin, end) in zip(lessons, pairwise(ends), strict=True)
    ]  # fmt: skip


def _course(lessons: Sequence[Lesson], first: int, epochs: float) -> Course:
    truth = _knots([lesson.truth for lesson in lessons], lessons) if any(lesson.reads_truth for lesson in lessons) else None
    answers = _knots([lesson.answers for lesson in lessons], lessons) if any(lesson.reads_answers for lesson in lessons) else None
    return Course(truth, answers, first, epochs)


def _knots(weights: Sequence[Weights], lessons: Sequence[Lesson]) -> Knots:
    """Return weights over the shares of one training, each lesson from where the one before ended."""
    total = sum(lesson.share for lesson in lessons)
    ends = [0.0, *(min(1.0, done / total) for done in accumulate(lesson.share for lesson in lessons))]
    found: list[tuple[float, float]] = []
    for weight, (begin, end) in zip(weights, pairwise(ends), strict=True):
        first, last = _ends(weight)
        found += [(begin, first), (end, last)]
    constant = len({value for _, value in found}) == 1
    return (found[0],) if constant else tuple(found)


def from_beta(loss: Any) -> Any:
    """Return a loss's plain values with ProFuser's ``beta`` as ``clm_weight``.

    ``SFT + beta * KL`` is, up to a factor, ``lambda * SFT + (1 - lambda) * KL`` with ``lambda = 1 / (1 + beta)``.

    Raises:
        ValueError: beta is no number of at least 0, or ``clm_weight`` is given as well.

    >>> from_beta({"name": "kl", "beta": 0.25})
    {'name': 'kl', 'clm_weight': 0.8}
    """
    if not isinstance(loss, dict) or "beta" not in loss:
        return loss
    beta = loss["beta"]
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta < float("inf"):
        raise ValueError(f"beta is {beta!r}, expected a number of at least 0")
    if "clm_weight" in loss:
        raise ValueError("beta and clm_weight say the same (clm_weight = 1 / (1 + beta)); give one of them")
    return {name: value for name, value in loss.items() if name != "beta"} | {"clm_weight": 1 / (1 + beta)}
