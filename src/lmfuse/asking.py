"""Models answer questions: the stage of a run that writes text, batch by batch, so that no answer is written twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lmfuse.answers import Answering, answer_prompts, render
from lmfuse.artefacts import Publication, content_key, is_complete, publish, read_manifest, write_atomic
from lmfuse.chat_template import Unfit
from lmfuse.console import Console
from lmfuse.disk import full_disk_is_an_error
from lmfuse.evaluate.bits_per_byte import score_documents
from lmfuse.judges.protocol import Case
from lmfuse.models import LanguageModel, ModelSpec
from lmfuse.questions import questions_key
from lmfuse.workspace import ARTEFACT_VERSION, Workspace

COST_BATCH_TOKENS = 4096  # padded tokens of a batch in which a model reads its own answers; fixed, because it moves the last digits


@dataclass(frozen=True)
class Reply:
    """What one model said to one question.

    Attributes:
        text: without surrounding whitespace.
        finished: whether it ended by itself.
        num_tokens: that it took.
        problem: why the model could not be asked: the prompt is too long, or beyond its chat template.
        nats_per_byte: the model's own cross-entropy over its answer, which breaks ties between equally good ones; None where it has no bytes.
    """

    text: str
    finished: bool
    num_tokens: int
    problem: str = ""
    nats_per_byte: float | None = None


@dataclass(frozen=True)
class Respondent:
    """A model that is asked: its name in messages, what loads it, and the identities of its weights and of its tokenizer with the template."""

    name: str
    spec: ModelSpec
    key: str
    tokenizer_key: str


class Asking:
    """Lets models answer questions. ``load`` reads a model's weights."""

    def __init__(self, space: Workspace, console: Console, load: Callable[[ModelSpec], LanguageModel]) -> None:
        self.space, self.console, self.load = space, console, load

    def folder(self, who: Respondent, cases: Sequence[Case], writing: Answering) -> Path:
        """Return where a model's answers are, written or not."""
        identity = [ARTEFACT_VERSION, "answers", who.key, who.spec.dtype, who.spec.document_start, who.tokenizer_key]
        return self.space.artefact("answers", content_key([*identity, questions_key(cases), asdict(writing)]))

    def replies(self, who: Respondent, cases: Sequence[Case], writing: Answering) -> dict[str, Reply]:
        """Let a model answer; batches that an interrupted run has answered are kept."""
        folder = self.folder(who, cases, writing)
        if not is_complete(folder):
            with publish(folder, kind="answers", resume=True) as publication:
                if not publication.reused:
                    self._answer(who, cases, writing, publication)
            self.space.event("answered", model=who.name, key=folder.name, **read_manifest(folder).counters)
        lines = (folder / "answers.jsonl").read_text(encoding="utf-8").split("\n")
        records = [json.loads(line) for line in lines if line]
        return {record.pop("id"): Reply(**record) for record in records}

    def _answer(self, who: Respondent, cases: Sequence[Case], writing: Answering, publication: Publication) -> None:
        model, journal = self.load(who.spec), publication.path / "batches.jsonl"
        rendered = {case.id: render(model, case.prompt, writing) for case in cases}
        replies = {name: Reply("", False, 0, problem=said) for name, said in rendered.items() if isinstance(said, str)}
        left_out = len(replies)
        replies |= _read_batches(journal)
        prompts = {name: ids for name, ids in rendered.items() if name not in replies and not isinstance(ids, str)}
        waiting = list(prompts)
        with self.console.task(f"{who.name} answers {len(cases):,} questions", len(waiting) * writing.max_new_tokens) as advance:
            for batch in answer_prompts(model, list(prompts.values()), writing, advance):
                found = {waiting[place]: Reply(answer.text, answer.finished, answer.num_tokens) for place, answer in batch}
                _add_batch(journal, found)
                replies |= found
        replies = _with_costs(model, cases, replies)
        lines = [json.dumps({"id": case.id, **asdict(replies[case.id])}, ensure_ascii=False) for case in cases]
        write_atomic(publication.path / "answers.jsonl", ("\n".join(lines) + "\n").encode())
        publication.drop(journal.name)
        asked = [reply for reply in replies.values() if not reply.problem]
        publication.provenance |= {"model": who.key}
        publication.counters |= {
            "answers": len(asked), "answers_cut": sum(not reply.finished for reply in asked), "answers_empty": sum(not reply.text for reply in asked),
            "prompts_left_out": left_out, "tokens": sum(reply.num_tokens for reply in asked),
        }  # fmt: skip


def _read_batches(journal: Path) -> dict[str, Reply]:
    """Return what was answered before, and leave only whole lines in the file, so that the next one begins a line."""
    replies: dict[str, Reply] = {}
    whole = []
    for line in journal.read_text(encoding="utf-8", errors="replace").split("\n") if journal.exists() else []:
        with suppress(ValueError, TypeError, AttributeError):  # the last line of a process that was killed
            replies |= {name: Reply(**reply) for name, reply in json.loads(line).items()}
            whole.append(line)
    write_atomic(journal, "".join(line + "\n" for line in whole).encode())
    return replies


def _add_batch(journal: Path, replies: Mapping[str, Reply]) -> None:
    """Keep the answers of one batch: all of them or, if the process is killed, none, so that batches are the same afterwards."""
    with full_disk_is_an_error(journal), open(journal, "a", encoding="utf-8") as file:
        file.write(json.dumps({name: asdict(reply) for name, reply in replies.items()}) + "\n")


def _with_costs(model: LanguageModel, cases: Sequence[Case], replies: Mapping[str, Reply]) -> dict[str, Reply]:
    """Return replies with what the model's own words cost it."""
    said = {case.id: case.answered(replies[case.id].text) for case in cases if replies[case.id].text}
    encodings = model.tokenizer.try_encode_many(list(said.values()))
    fits = [
        name for name, each in zip(said, encodings, strict=True) if not isinstance(each, Unfit) and len(each.ids) <= model.context
    ]  # fmt: skip
    scores = score_documents(model, [said[name] for name in fits], batch_tokens=COST_BATCH_TOKENS, turn_ends=False) if fits else []
    costs = {name: score.nll_nats / score.num_bytes for name, score in zip(fits, scores, strict=True) if score.num_bytes}
    return {name: replace(reply, nats_per_byte=costs.get(name)) for name, reply in replies.items()}
