"""Several judges, one after the other, and their vote: which source's answer to each question is the best one."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.artefacts import lock, write_atomic
from lmfuse.errors import InputError, did_you_mean
from lmfuse.judges.agreement import Agreement, agreement
from lmfuse.judges.family import Surroundings, make_judge
from lmfuse.judges.journal import Journal, Opinions
from lmfuse.judges.protocol import Case, Judge, Judgement, Scorer, distinct
from lmfuse.judges.settings import Count, JudgeMethod, label_of
from lmfuse.vote.ballots import Ballots, Outcome
from lmfuse.vote.family import VoteMethod
from lmfuse.vote.first_places import FirstPlaces
from lmfuse.vote.single import Single

Progress = Callable[[str, int], None]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Panel:
    """Which judges, how they vote, and how many questions they hear at a time; an interrupted run repeats such a batch at most."""

    judges: Annotated[tuple[JudgeMethod, ...], Field(min_length=1)]
    vote: VoteMethod = Field(default_factory=FirstPlaces)
    batch_questions: Count = 64

    def __post_init__(self) -> None:
        labels = [label_of(judge) for judge in self.judges]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"judges: {', '.join(twice)} stands twice; give each a label of its own")
        if isinstance(self.vote, Single) and self.vote.judge and self.vote.judge not in labels:
            raise ValueError(f"vote.judge: {did_you_mean(self.vote.judge, labels)}")


@plain_dataclass(frozen=True)
class Verdicts:
    """What J judges make of the answers of S sources to N questions.

    Attributes:
        judges: their labels.
        scores: higher is better; ``nan`` where a judge abstains.
        outcomes: for each question the winner and why.
        counters: empty and identical answers, abstentions, what each judge met (``judge.what``), decisions by criterion (``by_...``), and
            ``all_judges_differ``.
        agreement: between the judges.
    """

    judges: tuple[str, ...]
    scores: Float[np.ndarray, "J S N"]
    outcomes: tuple[Outcome, ...]
    counters: Mapping[str, int]
    agreement: Agreement

    @property
    def winners(self) -> Int[np.ndarray, "N"]:
        """Return the index of the winning source, -1 where the question is dropped."""
        return np.array([outcome.winner for outcome in self.outcomes], np.int64)

    @property
    def win_rates(self) -> Float[np.ndarray, "S"]:
        """Return for each source the share of the questions with a winner that it wins; ``nan`` where there are none."""
        won = np.array([(self.winners == source).sum() for source in range(self.scores.shape[1])], np.float64)
        return won / won.sum() if won.sum() else np.full(len(won), np.nan)


def judge_answers(
    panel: Panel,
    cases: Sequence[Case],
    candidates: Sequence[Sequence[str]],
    given: Surroundings,
    folder: Path,
    *,
    cross_entropy: Float[np.ndarray, "S N"] | None = None,
    progress: Progress | None = None,
) -> Verdicts:
    """Let every judge score every answer, then vote. An interrupted call is continued by the same one: no batch is judged twice.

    Writes to ``folder``: ``<judge>/<number>-<scorer>.jsonl``, everything that each scorer was given and said; ``votes.jsonl``, scores, winner and
    reason by question; ``panel.json``, counters and agreement. The texts come from strangers.

    Args:
        panel: the judges and the vote.
        cases: the questions, with different ids.
        candidates: for each question the answers of all sources, in the order of ``given.sources``; ``""`` where there is none.
        given: the sources, the device, the cache.
        folder: what is kept; no other process may write it meanwhile.
        cross_entropy: of the sources on what decides ties, ``nan`` where it is not known.
        progress: called with a scorer's label and the number of questions just judged.

    Raises:
        InputError: numbers of questions, answers and sources do not fit together, or an id stands twice; or a journal is of another judge.
        BusyError: another process writes the folder.
        LmfuseError: see ``Scorer.opinions``.
    """
    _check(cases, candidates, given)
    judges = [make_judge(settings, given) for settings in panel.judges]
    with lock(folder):
        heard = [_hear(judge, panel.batch_questions, cases, candidates, folder, progress) for judge in judges]
        labels = tuple(judge.label for judge in judges)
        scores = np.stack([judgement.scores for judgement in heard])
        votes = _ballots(scores, candidates, cross_entropy, labels)
        outcomes = tuple(panel.vote(ballots) for ballots in votes)
        found = agreement(votes)
        verdicts = Verdicts(labels, scores, outcomes, _count(labels, heard, outcomes, found), found)
        _write(folder, verdicts, cases, list(given.sources))
    return verdicts


def _check(cases: Sequence[Case], candidates: Sequence[Sequence[str]], given: Surroundings) -> None:
    if not cases or len(cases) != len(candidates):
        raise InputError(
            f"judges: {len(candidates)} lists of answers for {len(cases)} questions", "give one list for each, and one question at least"
        )
    for case, texts in zip(cases, candidates, strict=True):
        if len(texts) != len(given.sources):
            raise InputError(
                f"judges: question {case.id} has {len(texts)} answers of {len(given.sources)} sources", 'say "" where there is none'
            )
    twice = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    if twice:
        raise InputError(f"judges: the question {twice[0]!r} stands twice", "give each an id of its own")


def _ballots(
    scores: Float[np.ndarray, "J S N"],
    candidates: Sequence[Sequence[str]],
    costs: Float[np.ndarray, "S N"] | None,
    labels: tuple[str, ...],
) -> list[Ballots]:
    places = range(len(candidates))
    return [Ballots(scores[:, :, n], list(candidates[n]), None if costs is None else costs[:, n], labels) for n in places]


def _hear(
    judge: Judge, batch_questions: int, cases: Sequence[Case], candidates: Sequence[Sequence[str]], folder: Path, progress: Progress | None
) -> Judgement:
    """Return a judge's scores; each of its parts is loaded, hears everything that it has not heard yet, and goes."""
    found = []
    for number, part in enumerate(judge.parts):
        journal = Journal(folder / judge.label / f"{number}-{_file_name(part)}.jsonl", part.key)
        opinions: Opinions = []
        try:
            for begin in range(0, len(cases), batch_questions):
                some = slice(begin, begin + batch_questions)
                opinions += _batch(part, journal, cases[some], [distinct(texts) for texts in candidates[some]])
                if progress is not None:
                    progress(part.label, len(cases[some]))
        finally:
            part.close()
        found.append(opinions)
    return judge.judgement(candidates, found)


def _batch(part: Scorer, journal: Journal, cases: Sequence[Case], texts: Sequence[Sequence[str]]) -> Opinions:
    batch = journal.batch_key(cases, texts)
    known = journal.find(batch)
    if known is None:
        known = part.opinions(cases, texts)
        if not any(opinion.passing for opinions in known for opinion in opinions):  # else the same call asks again
            journal.add(batch, cases, texts, known)
    return known


def _file_name(part: Scorer) -> str:
    return "".join(letter if (letter.isascii() and letter.isalnum()) or letter in "_-." else "_" for letter in part.label)[:80]


def _count(labels: Sequence[str], heard: Sequence[Judgement], outcomes: Sequence[Outcome], found: Agreement) -> dict[str, int]:
    counters: Counter[str] = Counter(questions=len(outcomes), all_judges_differ=found.all_differ)
    for label, judgement in zip(labels, heard, strict=True):
        counters.update({f"{label}.{what}": number for what, number in judgement.counters.items()})
        counters[f"{label}.nan"] = int(np.isnan(judgement.scores).sum())
    for outcome in outcomes:
        counters.update(outcome.counters)
        counters.update(["dropped" if outcome.winner < 0 else "won", f"by_{outcome.why}"])
    return dict(sorted(counters.items()))


def _write(folder: Path, verdicts: Verdicts, cases: Sequence[Case], sources: Sequence[str]) -> None:
    lines = []
    for n, (case, outcome) in enumerate(zip(cases, verdicts.outcomes, strict=True)):
        scores = {judge: _plain(verdicts.scores[j, :, n]) for j, judge in enumerate(verdicts.judges)}
        winner = sources[outcome.winner] if outcome.winner >= 0 else None
        lines.append(json.dumps({"id": case.id, "winner": winner, "why": outcome.why, "scores": scores}))
    write_atomic(folder / "votes.jsonl", ("\n".join(lines) + "\n").encode())
    summary: dict[str, Any] = {
        "sources": list(sources), "judges": list(verdicts.judges), "win_rates": _plain(verdicts.win_rates), "counters": dict(verdicts.counters),
        "equal_winners": [_plain(row) for row in verdicts.agreement.equal_winners], "questions_of_both": verdicts.agreement.questions.tolist(),
        "kendall_tau": [_plain(row) for row in verdicts.agreement.kendall_tau],
    }  # fmt: skip
    write_atomic(folder / "panel.json", (json.dumps(summary, indent=1) + "\n").encode())


def _plain(values: Float[np.ndarray, "N"]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
