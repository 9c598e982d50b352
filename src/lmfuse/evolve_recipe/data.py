"""What children are measured on, in three parts that have nothing in common: text, questions, or names that only the user's function knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import InputError, TextError
from lmfuse.evaluate.choices import Question
from lmfuse.evaluate.paired import domains_by_window
from lmfuse.evolution.splits import PHASES, Splits
from lmfuse.overlap import find_overlap, refuse_overlap
from lmfuse.splits import deduplicate, split_held_out
from lmfuse.text import TextSpec, read_documents
from lmfuse.text_files import MAX_DOCUMENT_BYTES, find_files
from lmfuse.text_records import json_records
from lmfuse.types import Document
from lmfuse.windows import fit_windows, origin_of

T = TypeVar("T")
Share = Annotated[float, Field(gt=0, lt=1)]
RECORD_HINT = 'one object each, such as {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}'


class Parts(BaseModel, Generic[T]):
    """Data in three parts: named one by one, or one that is divided.

    Attributes:
        divided: what is divided, domain by domain, by a hash of seed and content; what stands twice or nearly so is left out of later parts.
        shares: for ``evolve``, ``select`` and ``report``, of what is divided.
        evolve: or what children are bred on,
        select: what the winner is chosen on,
        report: and what it is reported on. Overlap is refused.
        seed: another seed, another division.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    divided: tuple[T, ...] = ()
    shares: tuple[Share, Share, Share] = (0.5, 0.25, 0.25)
    evolve: tuple[T, ...] = ()
    select: tuple[T, ...] = ()
    report: tuple[T, ...] = ()
    seed: int = 0

    @model_validator(mode="after")
    def _complete(self) -> Parts[T]:
        given = [phase for phase in PHASES if self.part(phase)]
        if self.divided and given:
            raise ValueError(f"give either divided or evolve, select and report ({given[0]} is given, too)")
        if not self.divided and len(given) < len(PHASES):
            empty = next(phase for phase in PHASES if phase not in given)
            raise ValueError(f"{empty} is empty; give evolve, select and report, or divided")
        return self

    def part(self, phase: str) -> tuple[T, ...]:
        """Return what a part was given."""
        return tuple(getattr(self, phase))


class Text(Parts[TextSpec]):
    """Text, see ``Parts``; every entry is a corpus as in other recipes.

    Attributes:
        window_tokens: longest window in tokens, start token included; never more than the context.
        max_overlap: share of a document's 13-word spans that may also stand in an earlier part.
    """

    window_tokens: int = Field(512, ge=16)
    max_overlap: float = Field(0.5, gt=0, le=1)


class QuestionSpec(BaseModel):
    """JSON lines, or a JSON list, of questions with several answers.

    Attributes:
        path: a file, a folder or a pattern; relative to the recipe's folder.
        domain: what it counts for.
        question, choices, answer: the fields of a record: text, a list of texts, and the index of the right one or its text.
        separator: what stands between question and answer.
        limit: use so many of each file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = Field(min_length=1)
    domain: str = Field("choices", min_length=1)
    question: str = "question"
    choices: str = "choices"
    answer: str = "answer"
    separator: str = " "
    limit: int | None = Field(None, ge=1)


class Questions(Parts[QuestionSpec]):
    """Questions, see ``Parts``; ``max_overlap`` as for text."""

    max_overlap: float = Field(0.5, gt=0, le=1)


class Units(Parts[str]):
    """Names of what a function of yours measures, see ``Parts``: it is asked for some of them, and data are its own affair.

    Attributes:
        count: instead of names to divide: the numbers from 0 on, so many.
    """

    count: int | None = Field(None, ge=3)

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("count"), int) and "divided" not in values:
            return values | {"divided": [str(number) for number in range(values["count"])]}
        return values


@dataclass(frozen=True)
class Data:
    """Units in three parts, and what they stand for.

    Attributes:
        splits: names of the units.
        windows: of text, the pieces of each unit.
        questions: by unit.
        counters: what was left out, cut or moved.
    """

    splits: Splits
    windows: Mapping[str, tuple[Document, ...]] = field(default_factory=dict)
    questions: Mapping[str, Question] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)


def read_text(text: Text, base: Path, tokenizer: ByteTokenizer, context: int) -> Data:
    """Read text, divide it, cut it into windows. A unit is a document; in a domain of few documents a window.

    Raises:
        TextError: missing or malformed files, parts that overlap, nothing left in a part.
    """
    counters: Counter[str] = Counter()

    def read(spec: TextSpec) -> list[Document]:
        counted: dict[str, int] = {}
        found = list(read_documents(spec, base, counters=counted))
        counters.update({f"documents_{name}": count for name, count in counted.items()})
        return found

    windows: dict[str, tuple[Document, ...]] = {}
    names: dict[str, list[str]] = {}
    seen: set[str] = set()
    for phase, documents in _in_parts(text, read, text.max_overlap, counters).items():
        cut = fit_windows(documents, [tokenizer], [min(text.window_tokens, context)])
        counters.update({f"{phase}_{name}": count for name, count in cut.counters.items()})
        fresh = [window for window in deduplicate(cut.documents)[0] if window.id not in seen]
        counters["windows_left_out_twice"] += len(cut.documents) - len(fresh)
        seen |= {window.id for window in fresh}
        found = _by_unit(fresh, documents)
        if not found:
            raise TextError(f"text.{phase}: no text is left after cutting windows", hint="give more text, or a larger text.window_tokens")
        windows |= found
        names[phase] = list(found)
    return Data(Splits.checked(*(names[phase] for phase in PHASES)), windows, counters=dict(counters))


def _by_unit(windows: Sequence[Document], documents: Sequence[Document]) -> dict[str, tuple[Document, ...]]:
    """Return windows by the document that they were cut from, or by themselves where documents of their domain are few."""
    ids = {origin_of(document): document.id for document in documents}
    owner = {window.id: ids.get(origin_of(window), window.id) for window in windows}
    alone = domains_by_window([(window.domain, owner[window.id]) for window in windows])
    found: dict[str, tuple[Document, ...]] = {}
    for window in windows:
        unit = window.id if window.domain in alone else owner[window.id]
        found[unit] = (*found.get(unit, ()), window)
    return found


def read_questions(questions: Questions, base: Path) -> Data:
    """Read questions and divide them.

    Raises:
        TextError: missing or malformed files, parts that overlap, nothing left in a part.
    """
    counters: Counter[str] = Counter()
    by_id: dict[str, Question] = {}

    def read(spec: QuestionSpec) -> list[Document]:
        found = []
        for question in _questions(spec, base):
            document = Document.plain(" ".join([question.text, *question.choices]), question.domain, question.origin)
            by_id.setdefault(document.id, question)
            found.append(document)
        counters["questions_read"] += len(found)
        return found

    parts = _in_parts(questions, read, questions.max_overlap, counters)
    names = {phase: [by_id[document.id].id for document in documents] for phase, documents in parts.items()}
    kept = {by_id[document.id].id: by_id[document.id] for documents in parts.values() for document in documents}
    return Data(Splits.checked(*(names[phase] for phase in PHASES)), questions=kept, counters=dict(counters))


def _questions(spec: QuestionSpec, base: Path) -> Iterator[Question]:
    for name, path in find_files(spec.path, base):
        for number, record in enumerate(json_records(path, name, MAX_DOCUMENT_BYTES)):
            if spec.limit is not None and number >= spec.limit:
                break
            yield _question(spec, record.values, record.where, record.origin)


def _question(spec: QuestionSpec, values: Mapping[str, Any], where: str, origin: str) -> Question:
    for key in (spec.question, spec.choices, spec.answer):
        if key not in values:
            raise TextError(f"{where}: no field {key!r}", hint=RECORD_HINT)
    text, choices, answer = values[spec.question], values[spec.choices], values[spec.answer]
    if not isinstance(text, str) or not text:
        raise TextError(f"{where}: {spec.question} is {text!r:.40}, expected text", hint=RECORD_HINT)
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(each, str) and each for each in choices):
        raise TextError(f"{where}: {spec.choices} is {choices!r:.60}, expected two texts or more", hint=RECORD_HINT)
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        expected = f"expected 0 to {len(choices) - 1}, or one of the choices"
        raise TextError(f"{where}: {spec.answer} is {values[spec.answer]!r:.40}, {expected}", hint=RECORD_HINT)
    return Question(text + spec.separator, tuple(choices), answer, spec.domain, origin)


def read_units(units: Units) -> Data:
    """Return names in three parts.

    Raises:
        InputError: a name stands in two of them.
    """
    if units.divided:
        return Data(Splits.drawn(units.divided, units.shares, seed=units.seed))
    return Data(Splits.checked(units.evolve, units.select, units.report))


def _in_parts(
    parts: Parts[T], read: Callable[[T], list[Document]], max_overlap: float, counters: Counter[str]
) -> dict[str, list[Document]]:
    """Read data into three parts without anything in common."""
    if parts.divided:
        documents, twice = deduplicate([document for spec in parts.divided for document in read(spec)])
        counters["left_out_twice"] += twice
        return _divided(documents, parts.shares, parts.seed, max_overlap, counters)
    found: dict[str, list[Document]] = {}
    for phase in PHASES:
        found[phase], twice = deduplicate([document for spec in parts.part(phase) for document in read(spec)])
        counters["left_out_twice"] += twice
    before: list[Document] = []
    for earlier, phase in pairwise(PHASES):
        before += found[earlier]
        try:
            refuse_overlap(before, found[phase], max_share=max_overlap)
        except TextError as error:
            where = str(error).replace("evaluation documents", f"documents of {phase}").replace("the training text", "earlier parts")
            raise InputError(f"splits: {where}", "remove these documents from one side, or let one text be `divided`") from None
    return found


def _divided(
    documents: Sequence[Document], shares: tuple[float, float, float], seed: int, max_overlap: float, counters: Counter[str]
) -> dict[str, list[Document]]:
    first, second, third = shares
    rest, report = split_held_out(documents, third / (first + second + third), seed=seed)
    evolve, select = split_held_out(rest, second / (first + second), seed=seed)
    found, before = {"evolve": evolve}, list(evolve)
    for phase, some in (("select", select), ("report", report)):
        alike = {overlap.evaluation_id for overlap in find_overlap(before, some, threshold=max_overlap)}
        counters["left_out_alike"] += len(alike)
        found[phase] = [document for document in some if document.id not in alike]
        if not found[phase]:
            raise TextError(f"splits: {phase} is empty: all of it stands in earlier parts, too", hint="give more, and more different, text")
        before += some
    return found
