"""Two stages of a run: every teacher answers the training questions, and judges elect the best answer to each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lmfuse.artefacts import Publication, content_key, is_complete, publish, read_manifest
from lmfuse.asking import Asking, Reply, Respondent
from lmfuse.console import Console
from lmfuse.corpus import window_limits
from lmfuse.errors import InputError
from lmfuse.inputs import Inputs
from lmfuse.judges.family import Surroundings, make_judge
from lmfuse.judges.panel import Panel, judge_answers
from lmfuse.judges.protocol import Case
from lmfuse.judges.settings import Endpoint, JudgeMethod, label_of
from lmfuse.models import LanguageModel, ModelSpec
from lmfuse.questions import Elected, elected_documents, questions_of
from lmfuse.recipe import Answers
from lmfuse.workspace import ARTEFACT_VERSION, Workspace


@dataclass(frozen=True)
class Election:
    """Who answers each question best.

    Attributes:
        labels: the candidates.
        winners: who won and with which text, by question.
        summary: what the panel says of itself: ``panel.json``.
        scores: by judge and question the score of each candidate's answer; None where the judge abstains.
        replies: everything that was said, by candidate and question.
    """

    labels: tuple[str, ...]
    winners: Mapping[str, tuple[str, str]]
    summary: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Sequence[float | None]]] = field(repr=False)
    replies: Mapping[str, Mapping[str, Reply]] = field(repr=False)


def placed_judges(settings: Answers, base: Path) -> tuple[JudgeMethod, ...]:
    """Return a recipe's judges; a relative folder of a judge's model is one beside the recipe, where there is one."""
    judges: list[JudgeMethod] = []
    for judge in settings.judges:
        model = getattr(judge, "model", "")
        place = model and not isinstance(judge, Endpoint) and (base / model).is_dir()
        judges.append(replace(judge, model=str(base / model), label=label_of(judge)) if place else judge)  # type: ignore[arg-type]
    return tuple(judges)


class AnswerStages:
    """What a recipe's section ``answers`` asks for. ``load`` reads a model's weights."""

    def __init__(self, inputs: Inputs, space: Workspace, console: Console, device: str, load: Callable[[ModelSpec], LanguageModel]) -> None:
        self.inputs, self.space, self.console, self.device = inputs, space, console, device
        self.asking = Asking(space, console, load)
        self._elected: dict[tuple[str, ...], Elected] = {}

    @property
    def settings(self) -> Answers:
        """Return the recipe's section.

        Raises:
            InputError: there is none.
        """
        if self.inputs.recipe.answers is None:
            raise InputError("answers: the recipe has no such section", hint="say who judges answers")
        return self.inputs.recipe.answers

    @cached_property
    def cases(self) -> list[Case]:
        """Return the questions of the training windows.

        Raises:
            InputError: nothing is asked there.
        """
        found = questions_of(self.inputs.corpus.splits["train"], self.settings.truth_domains)
        if not found:
            raise InputError(
                "answers: no conversation in the training text, so there is nothing to answer", hint="see `user` and `assistant`"
            )
        return found

    @cached_property
    def panel(self) -> Panel:
        """Return the judges and their vote."""
        return replace(self.settings.panel, judges=placed_judges(self.settings, self.inputs.base))

    def surroundings(self, labels: Sequence[str]) -> Surroundings:
        """Return what judges are given when these models are the candidates."""
        for label in labels:
            self.inputs.facts(label)  # pins the commit of a hub model
        return Surroundings({label: self.inputs.specs[label] for label in labels}, self.device, self.space.cache)

    def judge_keys(self, labels: Sequence[str]) -> list[list[str]]:
        """Return label and identity of each judge; no weights are read.

        Raises:
            LmfuseError: a judge's model cannot be used, or it does not fit the candidates.
        """
        given = self.surroundings(labels)
        return [[label_of(judge), make_judge(judge, given).key] for judge in self.panel.judges]

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def respondent(self, label: str) -> Respondent:
        """Return one of the recipe's models as one that is asked."""
        key = self.inputs.facts(label).key  # first: it pins the commit of a hub model
        return Respondent(label, self.inputs.specs[label], key, self.inputs.tokenizer(label).key)

    def answers_folder(self, label: str) -> Path:
        """Return where a model's answers are, written or not."""
        return self.asking.folder(self.respondent(label), self.cases, self.settings.writing)

    def answers(self, label: str) -> dict[str, Reply]:
        """Let a model answer the training questions; batches that an interrupted run has answered are kept."""
        return self.asking.replies(self.respondent(label), self.cases, self.settings.writing)

    # ── election ─────────────────────────────────────────────────────────────────────────────────────────────────

    def election_folder(self, labels: Sequence[str]) -> Path:
        """Return where the judges' verdict on the answers of some models is, or will be."""
        answered = [[label, self.answers_folder(label).name] for label in labels]
        truths = [[case.id, case.truth] for case in self.cases]
        judges = [self.judge_keys(labels), self.settings.vote, self.settings.cut, self.panel_parameters]
        return self.space.artefact("elections", content_key([ARTEFACT_VERSION, "election", answered, truths, judges]))

    @property
    def panel_parameters(self) -> list[Any]:
        """Return the judges' parameters but for where their models lie, which their identities speak of."""
        return [
            {name: value for name, value in asdict(judge).items() if name not in ("model", "revision", "batch_tokens", "at_once")}
            for judge in self.settings.judges
        ]

    def election(self, labels: Sequence[str]) -> Election:
        """Judge the answers of some models to the training questions; a judge hears no batch of questions twice."""
        labels = tuple(labels)
        folder = self.election_folder(labels)
        replies = {label: self.answers(label) for label in labels}
        if not is_complete(folder):
            with publish(folder, kind="election", resume=True) as publication:
                if not publication.reused:
                    self._elect(labels, replies, publication)
            self.space.event("elected", key=folder.name, **read_manifest(folder).counters)
        votes = [json.loads(line) for line in (folder / "judged" / "votes.jsonl").read_text(encoding="utf-8").split("\n") if line]
        winners = {vote["id"]: (vote["winner"], replies[vote["winner"]][vote["id"]].text) for vote in votes if vote["winner"] is not None}
        summary = json.loads((folder / "judged" / "panel.json").read_text(encoding="utf-8"))
        scores = {judge: {vote["id"]: vote["scores"][judge] for vote in votes} for judge in summary["judges"]}
        return Election(labels, winners, summary, scores, replies)

    def _elect(self, labels: tuple[str, ...], replies: Mapping[str, Mapping[str, Reply]], publication: Publication) -> None:
        candidates = [[self._candidate(replies[label][case.id]) for label in labels] for case in self.cases]
        costs = [[replies[label][case.id].nats_per_byte for case in self.cases] for label in labels]
        given = self.surroundings(labels)
        hearings = len(self.cases) * sum(len(make_judge(judge, given).parts) for judge in self.panel.judges)
        with self.console.task(f"judge the answers to {len(self.cases):,} questions", hearings, unit="hearings") as advance:
            verdicts = judge_answers(
                self.panel, self.cases, candidates, given, publication.path / "judged",
                cross_entropy=np.array(costs, np.float64), progress=lambda _, questions: advance(questions),
            )  # fmt: skip
        publication.counters |= dict(verdicts.counters)
        publication.provenance |= {"answers": {label: self.answers_folder(label).name for label in labels}}

    def _candidate(self, reply: Reply) -> str:
        return reply.text if reply.finished or self.settings.cut == "keep" else ""

    def elected(self, labels: Sequence[str]) -> Elected:
        """Return the texts that training reads of an election."""
        labels = tuple(labels)
        if labels not in self._elected:
            specs = list(self.inputs.specs)
            tokenizers = [self.inputs.tokenizer(label) for label in specs]
            limits = window_limits(self.inputs.recipe.text, [self.inputs.facts(label).context for label in specs])
            found = elected_documents(self.inputs.corpus.splits["train"], self.election(labels).winners, tokenizers, limits)
            if not found.producers:
                reasons = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in found.counters.items() if count)
                raise InputError(
                    f"answers: not one elected answer can be read ({reasons})",
                    hint="allow more new tokens, keep answers that were cut (`cut: keep`), or choose judges that do not abstain",
                )
            self._elected[labels] = found
        return self._elected[labels]
