"""Questions of the evaluation text that every model answers by itself; what is reported is the share of right answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmfuse.asking import Reply
from lmfuse.errors import InputError
from lmfuse.evaluate.paired import paired_bootstrap
from lmfuse.judges.protocol import Case
from lmfuse.judges.verifier import VerifierScorer
from lmfuse.questions import questions_of
from lmfuse.recipe import Evaluation, Task
from lmfuse.results import mean_over_seeds
from lmfuse.types import Document, DocumentScore


def task_questions(task: Task, windows: Sequence[Document]) -> list[Case]:
    """Return the questions of a task: those of its domain whose truth can be compared with, the first ``limit`` of them.

    Raises:
        InputError: there is none.
    """
    scorer = VerifierScorer(task.verifier)
    cases = [case for case in questions_of([window for window in windows if window.domain == task.domain]) if case.truth.strip()]
    opinions = scorer.opinions(cases, [[case.truth] for case in cases])
    fit = [case for case, (opinion,) in zip(cases, opinions, strict=True) if not math.isnan(opinion.score)]
    if not fit:
        raise InputError(
            f"evaluate.tasks: no question of domain {task.domain!r} has a truth that `{task.verifier.check}` can compare with",
            hint="name a domain of conversations, or another check",
        )
    return fit[: task.limit or len(fit)]


def failures(task: Task, cases: Sequence[Case], replies: Mapping[str, Reply]) -> list[DocumentScore]:
    """Return for each question whether the answer is wrong, as one bit of one byte; an answer that is empty or not given is wrong.

    In this form the paired bootstrap and the mean over seeds are those of every other score.
    """
    opinions = VerifierScorer(task.verifier).opinions(cases, [[replies[case.id].text] for case in cases])
    return [
        DocumentScore(case.id, task.domain, math.log(2) * (opinion.score != 1), 1) for case, (opinion,) in zip(cases, opinions, strict=True)
    ]  # fmt: skip


def task_result(
    task: Task, failed: Mapping[str, Sequence[Sequence[DocumentScore]]], pairs: Sequence[tuple[str, str]], settings: Evaluation
) -> dict[str, Any]:
    """Return what a report says of a task.

    Args:
        task: what was asked.
        failed: for each model ``failures``, once per seed.
        pairs: the models to compare.
        settings: of the intervals.

    Returns:
        ``accuracy``: the share of right answers by model; ``comparisons``: a minus b with a 95% interval of the paired bootstrap over questions;
        above zero, a is better.
    """
    means = {name: mean_over_seeds(runs) for name, runs in failed.items()}
    comparisons = []
    for a, b in pairs:
        if a in means and b in means:
            found = paired_bootstrap(means[b], means[a], samples=settings.bootstrap_samples, seed=settings.seed)
            comparisons.append({"a": a, "b": b, "mean": found.mean, "ci95": [found.low, found.high], "n": found.n})
    questions = len(next(iter(means.values())))
    accuracy = {name: 1 - sum(score.nll_nats for score in scores) / math.log(2) / len(scores) for name, scores in means.items()}
    return {"domain": task.domain, "check": task.verifier.check, "questions": questions, "accuracy": accuracy, "comparisons": comparisons}
