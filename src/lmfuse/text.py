"""Text from files or from the Hugging Face hub, as documents that say where they came from.

One iterator for everything: plain text (a document a file, or split at a separator), JSON lines and lists, Parquet, hub datasets; records
are texts or conversations. Strangers wrote the files, so nothing in them is trusted: memory is bounded, decompression streams, templates
name fields and nothing else, and every fault is one line that names file and line. What is skipped is counted.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from lmfuse.conversations import COUNTERS, LISTS, UnfitError, clean, read_turns, turns_field
from lmfuse.errors import TextError, did_you_mean
from lmfuse.overlap import Overlap as Overlap
from lmfuse.overlap import find_overlap as find_overlap
from lmfuse.overlap import refuse_overlap as refuse_overlap
from lmfuse.splits import deduplicate as deduplicate
from lmfuse.splits import split_held_out as split_held_out
from lmfuse.text_files import MAX_DOCUMENT_BYTES, decode, find_files, read_pieces
from lmfuse.text_records import Record, hub_rows, json_lines, json_records, parquet_rows
from lmfuse.text_templates import PLAIN, fill
from lmfuse.text_templates import template_fields as template_fields
from lmfuse.types import Document, Segment, UnfitRule


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TextSpec:
    """Where one domain's text comes from, and how much of it is used.

    Attributes:
        domain: what it counts for: results are reported by domain.
        path: a file, a folder or a pattern such as ``src/**/*.py``; relative to the recipe's folder. Files may be packed (.gz, .zst).
        dataset: or a dataset of the Hugging Face hub, read as a stream; never runs its code.
        subset: of the dataset, where it has several.
        split: of the dataset; "train" if not given.
        revision: of the dataset: a commit makes a run repeatable.
        text: how a record becomes text, with fields in braces: ``{question}\\n{answer}``. Plain text files have no fields.
        user, assistant, system: or how it becomes a conversation of one question and one answer, ``user: "{question}"``.
        format: of the files; ``auto`` goes by their names and takes what it does not know for plain text. ``conversations``: each record
            holds the turns of one, as ShareGPT or OpenAI write them; ``auto`` sees that in records without a field ``text``.
        separator: splits plain text files into documents, such as a blank line; otherwise each file is one document.
        keep_separator: leave it at the beginning of the document that follows it, where it is a heading's mark.
        shuffle_seed: shuffle before ``skip`` and ``limit``: by a hash of seed and content, so the order of files does not matter.
            A hub stream is shuffled through a buffer of 10,000 documents.
        min_bytes: shorter documents are left out, and blank ones always.
        skip: leave out so many documents first.
        limit: use so many documents.
        limit_bytes: stop before the document that would exceed so many bytes of text.
    """

    domain: Annotated[str, Field(min_length=1)]
    path: Annotated[str, Field(min_length=1)] | None = None
    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")] | None = None
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    text: str = PLAIN
    user: str | None = None
    assistant: str | None = None
    system: str | None = None
    format: Literal["auto", "txt", "jsonl", "json", "parquet", "conversations"] = "auto"
    separator: Annotated[str, Field(min_length=1)] | None = None
    keep_separator: bool = False
    shuffle_seed: int | None = None
    min_bytes: Annotated[int, Field(ge=1)] = 1
    skip: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1)] | None = None
    limit_bytes: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> TextSpec:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either a path or a dataset" + (", not both" if self.path else ""))
        if self.dataset is None and (self.subset or self.split or self.revision):
            raise ValueError("subset, split and revision belong to a dataset, not to a path")
        if self.dataset is not None and (self.format not in ("auto", "conversations") or self.separator):
            raise ValueError("format and separator belong to a path, not to a dataset")
        if self.keep_separator and not self.separator:
            raise ValueError("keep_separator needs a separator")
        if (self.user is None) != (self.assistant is None) or (self.system is not None and self.user is None):
            raise ValueError("user and assistant belong together: give both, or neither")
        if self.text != PLAIN and (self.user or self.format == "conversations"):
            raise ValueError("a record is a text or a conversation: give `text`, or `user` and `assistant`, or `format: conversations`")
        if self.user and self.format in ("conversations", "txt"):
            raise ValueError(f"format {self.format!r} has no fields for user and assistant: leave it out")
        for template in self.templates:
            template_fields(template)
        return self

    @property
    def templates(self) -> tuple[str, ...]:
        """Return how a record becomes text, or the turns of a conversation."""
        turns = tuple(template for template in (self.system, self.user, self.assistant) if template is not None)
        return turns or (self.text,)

    @property
    def label(self) -> str:
        """Return the path or the dataset, for messages and origins."""
        return self.path or "/".join(part for part in (self.dataset, self.subset, self.split) if part)


def read_documents(
    spec: TextSpec,
    base: Path,
    *,
    counters: dict[str, int] | None = None,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    unfit: UnfitRule = "stop",
) -> Iterator[Document]:
    """Yield the documents of one specification, in an order that depends on nothing but the files and the specification.

    Only a shuffle without ``limit`` holds all documents in memory; otherwise it is one document at a time (a shuffle: ``skip + limit``).

    Args:
        spec: what to read.
        base: the folder that relative paths start at.
        counters: gets ``read``, ``blank`` and ``short`` documents added, and of conversations what ``conversations.clean`` did to them.
        max_document_bytes: refuse longer lines and documents.
        unfit: whether a record that is no conversation of user and assistant in turn stops everything, or is left out and counted.

    Raises:
        TextError: a file is missing, malformed, not UTF-8, lacks a field, or nothing is left; names file and line.
    """
    counts = counters if counters is not None else {}
    for name in ("read", "blank", "short"):
        counts.setdefault(name, 0)
    before = dict(counts)
    read = _hub_documents(spec, counts, unfit) if spec.dataset else _file_documents(spec, base, max_document_bytes, counts, unfit)
    documents: Iterable[Document] = _usable(read, spec, counts, max_document_bytes)
    if spec.shuffle_seed is not None and not spec.dataset:
        documents = _shuffled(documents, spec)
    total = used = 0
    for document in islice(documents, spec.skip, None if spec.limit is None else spec.skip + spec.limit):
        total += len(document.trained_bytes)
        if spec.limit_bytes is not None and total > spec.limit_bytes:
            break
        used += 1
        yield document
    if not used:
        read_, blank, short = (counts[name] - before[name] for name in ("read", "blank", "short"))
        why = f"{read_} read, {blank} of them blank, {short} shorter than min_bytes {spec.min_bytes}, skip {spec.skip}"
        why += f", {left_out} unfit" if (left_out := counts.get("unfit", 0) - before.get("unfit", 0)) else ""
        why += f", the next one has {total} bytes and limit_bytes is {spec.limit_bytes}" if total else ""
        raise TextError(f"{spec.label}: no document is left ({why})", hint="give more text, a separator that splits it, or other limits")


def _usable(read: Iterator[Document | None], spec: TextSpec, counts: dict[str, int], max_bytes: int) -> Iterator[Document]:
    for document in read:
        counts["read"] += 1
        if document is None:
            continue
        size = len(document.trained_bytes) + sum(len(segment.text) for segment in document.segments if not segment.trained)
        if size > max_bytes:
            raise TextError(f"{document.origin}: a document of {size:,} bytes, at most {max_bytes:,} are allowed", hint="split it")
        if not any(segment.trained and segment.text.strip() for segment in document.segments):
            counts["blank"] += 1
        elif len(document.trained_bytes) < spec.min_bytes:
            counts["short"] += 1
        else:
            yield document


def _shuffled(documents: Iterable[Document], spec: TextSpec) -> list[Document]:
    def place(document: Document) -> bytes:
        return hashlib.sha256(f"{spec.shuffle_seed}\0{document.id}".encode()).digest()

    return sorted(documents, key=place) if spec.limit is None else heapq.nsmallest(spec.skip + spec.limit, documents, key=place)


# ------------------------------------------------------------------------------------------------------------------ records


def reads_conversations(spec: TextSpec, base: Path) -> bool:
    """Return whether a specification means conversations; looks at the first record of each file where nothing else tells.

    Raises:
        TextError: such a file is missing or malformed.
    """
    if spec.user is not None or spec.format == "conversations":
        return True
    if spec.dataset or spec.text != PLAIN:
        return False
    for name, path in find_files(spec.path or "", base):
        records = _records(spec, path, name, MAX_DOCUMENT_BYTES)
        first = None if records is None else next(records, None)
        if first is not None and _holds_turns(spec, first.values):
            return True
    return False


def _holds_turns(spec: TextSpec, record: Mapping[str, Any]) -> bool:
    """Return whether a record is a conversation; of a hub dataset the specification has to say so."""
    if spec.user is not None or spec.format == "conversations":
        return True
    return spec.dataset is None and spec.text == PLAIN and "text" not in record and turns_field(record) is not None


def _documents(records: Iterator[Record], spec: TextSpec, counts: dict[str, int], unfit: UnfitRule) -> Iterator[Document | None]:
    """Yield what each record holds, None for one that is left out; the first record tells what all of them are."""
    first = next(records, None)
    if first is None:
        return
    talks = _holds_turns(spec, first.values)
    for name in COUNTERS if talks else ():
        counts.setdefault(name, 0)
    for record in chain([first], records):
        if not talks:
            yield Document.plain(fill(spec.text, record.values, record.where), spec.domain, record.origin)
            continue
        try:
            yield Document(_segments(spec, record, counts), spec.domain, record.origin)
        except UnfitError:
            if unfit == "stop":
                raise
            counts["unfit"] += 1
            yield None


def _segments(spec: TextSpec, record: Record, counts: dict[str, int]) -> tuple[Segment, ...]:
    if spec.user is None:
        return clean(read_turns(record.values, record.where), record.where, counts)
    named = {"system": spec.system, "user": spec.user, "assistant": spec.assistant}
    turns = [(role, fill(text, record.values, record.where), role == "assistant") for role, text in named.items() if text is not None]
    return clean(turns, record.where, counts)


def _hub_documents(spec: TextSpec, counts: dict[str, int], unfit: UnfitRule) -> Iterator[Document | None]:
    assert spec.dataset is not None
    rows = hub_rows(spec.dataset, spec.subset, spec.split or "train", spec.revision, spec.shuffle_seed, spec.label)
    yield from _documents(rows, spec, counts, unfit)


# -------------------------------------------------------------------------------------------------------------------- files


def _file_documents(spec: TextSpec, base: Path, max_bytes: int, counts: dict[str, int], unfit: UnfitRule) -> Iterator[Document | None]:
    for name, path in find_files(spec.path or "", base):
        records = _records(spec, path, name, max_bytes)
        yield from _plain_texts(spec, path, name, max_bytes) if records is None else _documents(records, spec, counts, unfit)


def _records(spec: TextSpec, path: Path, name: str, max_bytes: int) -> Iterator[Record] | None:
    """Return the records of a file, None for plain text."""
    suffix = Path(path.stem).suffix if path.suffix in (".gz", ".zst") else path.suffix
    known = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
    kind = {"auto": known.get(suffix, "txt"), "conversations": "parquet" if suffix == ".parquet" else "json"}.get(spec.format, spec.format)
    if kind == "txt":
        return None
    if spec.separator:
        raise TextError(f"{name}: a separator splits plain text, records are documents already", hint="remove `separator`")
    if kind == "parquet":
        return parquet_rows(path, name, _columns(spec, name))
    return {"jsonl": json_lines, "json": json_records}[kind](path, name, max_bytes)


def _plain_texts(spec: TextSpec, path: Path, name: str, max_bytes: int) -> Iterator[Document]:
    if spec.templates != (PLAIN,):
        raise TextError(f"{name}: plain text has no fields for {spec.templates[0]!r}", hint="leave `text` out, or set `format: jsonl`")
    separator = spec.separator
    line = in_line = 0
    for number, piece in enumerate(read_pieces(path, name, separator.encode() if separator else None, max_bytes)):
        text = decode(piece, name)
        in_line = in_line + 1 if piece.line == line else 1
        line = piece.line
        origin = f"{name}:{line}" + (f".{in_line}" if in_line > 1 else "")  # the second document that begins in line 7 is 7.2
        text = separator + text if separator and spec.keep_separator and number else text
        yield Document.plain(text, spec.domain, origin if separator else name)


def _columns(spec: TextSpec, name: str) -> Callable[[Any], list[str]]:
    """Return what chooses the columns of a Parquet file by its schema: those that templates name, or the one that holds turns."""
    from pyarrow import types

    def choose(schema: Any) -> list[str]:
        turns = [field for field in LISTS if field in schema.names]
        if spec.format == "conversations" or (spec.templates == (PLAIN,) and "text" not in schema.names and turns):
            if not turns:
                raise TextError(f"{name}: no column {' and none '.join(LISTS)}", hint=f"its columns: {', '.join(schema.names)[:120]}")
            return turns[:1]
        fields = [field for template in spec.templates for field in template_fields(template)]
        for field in fields:
            if field not in schema.names:
                raise TextError(f"{name}: column {did_you_mean(field, schema.names)}", hint="`text` names the columns in braces")
            kind = schema.field(field).type
            kind = kind.value_type if types.is_dictionary(kind) else kind
            if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
                raise TextError(f"{name}: column {field!r} holds {kind}, expected text", hint="name a column of strings")
        return fields

    return choose
