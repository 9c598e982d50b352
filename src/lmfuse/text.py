"""Text from files or from the Hugging Face hub, as documents that say where they came from.

One iterator for everything: plain text (a document a file, or split at a separator), JSON lines, Parquet, hub datasets. Strangers wrote
the files, so nothing in them is trusted: memory is bounded, decompression streams, templates name fields and nothing else, and every
fault is one line that names file and line. What is skipped is counted.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from lmfuse.errors import TextError, did_you_mean
from lmfuse.overlap import Overlap as Overlap
from lmfuse.overlap import find_overlap as find_overlap
from lmfuse.overlap import refuse_overlap as refuse_overlap
from lmfuse.splits import deduplicate as deduplicate
from lmfuse.splits import split_held_out as split_held_out
from lmfuse.text_files import MAX_DOCUMENT_BYTES, decode, find_files, read_pieces
from lmfuse.types import Document

SHUFFLE_BUFFER = 10_000  # documents of a hub stream that are shuffled at a time; a stream has no end that one could wait for
PLAIN = "{text}"


def template_fields(template: str) -> list[str]:
    """Return the fields that a template names, in order; ``{{`` and ``}}`` stand for braces.

    Raises:
        ValueError: no field, or more than a plain name between braces: no attribute, index, conversion or format is ever evaluated.

    >>> template_fields("Q: {question}\\nA: {answer}")
    ['question', 'answer']
    """
    parts = list(Formatter().parse(template))
    fields = [field for _, field, _, _ in parts if field is not None]
    for _, field, spec, conversion in parts:
        if field is not None and (not field.strip() or re.search(r"[.\[\]{}]", field) or spec or conversion):
            raise ValueError(f"text: {{{field}}} is no plain field name; write {{name}}, and double a brace that is meant as one")
    if not fields:
        raise ValueError("text: names no field; write for example '{question}\\n{answer}'")
    return fields


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
        format: of the files; ``auto`` goes by their names and takes what it does not know for plain text.
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
    format: Literal["auto", "txt", "jsonl", "parquet"] = "auto"
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
        if self.dataset is not None and (self.format != "auto" or self.separator):
            raise ValueError("format and separator belong to a path, not to a dataset")
        if self.keep_separator and not self.separator:
            raise ValueError("keep_separator needs a separator")
        template_fields(self.text)
        return self

    @property
    def label(self) -> str:
        """Return the path or the dataset, for messages and origins."""
        return self.path or "/".join(part for part in (self.dataset, self.subset, self.split) if part)


def read_documents(
    spec: TextSpec, base: Path, *, counters: dict[str, int] | None = None, max_document_bytes: int = MAX_DOCUMENT_BYTES
) -> Iterator[Document]:
    """Yield the documents of one specification, in an order that depends on nothing but the files and the specification.

    Only a shuffle without ``limit`` holds all documents in memory; otherwise it is one document at a time (a shuffle: ``skip + limit``).

    Args:
        spec: what to read.
        base: the folder that relative paths start at.
        counters: gets ``read``, ``blank`` and ``short`` documents added.
        max_document_bytes: refuse longer lines and documents.

    Raises:
        TextError: a file is missing, malformed, not UTF-8, lacks a field, or nothing is left; names file and line.
    """
    counts = counters if counters is not None else {}
    for name in ("read", "blank", "short"):
        counts.setdefault(name, 0)
    before = dict(counts)
    records = _hub_texts(spec) if spec.dataset else _file_texts(spec, base, max_document_bytes)
    documents: Iterable[Document] = _usable(records, spec, counts, max_document_bytes)
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
        read, blank, short = (counts[name] - before[name] for name in ("read", "blank", "short"))
        why = f"{read} read, {blank} of them blank, {short} shorter than min_bytes {spec.min_bytes}, skip {spec.skip}"
        why += f", the next one has {total} bytes and limit_bytes is {spec.limit_bytes}" if total else ""
        raise TextError(f"{spec.label}: no document is left ({why})", hint="give more text, a separator that splits it, or other limits")


def _usable(records: Iterator[tuple[str, str]], spec: TextSpec, counts: dict[str, int], max_bytes: int) -> Iterator[Document]:
    for text, origin in records:
        counts["read"] += 1
        document = Document.plain(text, spec.domain, origin)
        if len(document.trained_bytes) > max_bytes:
            raise TextError(
                f"{origin}: a document of {len(document.trained_bytes):,} bytes, at most {max_bytes:,} are allowed", hint="split it"
            )
        if not text.strip():
            counts["blank"] += 1
        elif len(document.trained_bytes) < spec.min_bytes:
            counts["short"] += 1
        else:
            yield document


def _shuffled(documents: Iterable[Document], spec: TextSpec) -> list[Document]:
    def place(document: Document) -> bytes:
        return hashlib.sha256(f"{spec.shuffle_seed}\0{document.id}".encode()).digest()

    return sorted(documents, key=place) if spec.limit is None else heapq.nsmallest(spec.skip + spec.limit, documents, key=place)


# -------------------------------------------------------------------------------------------------------------------- files


def _file_texts(spec: TextSpec, base: Path, max_bytes: int) -> Iterator[tuple[str, str]]:
    assert spec.path is not None
    for name, path in find_files(spec.path, base):
        yield from READERS[_format_of(spec, path, name)](spec, path, name, max_bytes)


def _format_of(spec: TextSpec, path: Path, name: str) -> str:
    if spec.format != "auto":
        return spec.format
    suffix = Path(path.stem).suffix if path.suffix in (".gz", ".zst") else path.suffix
    if suffix == ".json":
        raise TextError(f"{name}: a .json file is one value", hint="write one object a line and name it .jsonl, or set format: txt")
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(suffix, "txt")


def _plain_texts(spec: TextSpec, path: Path, name: str, max_bytes: int) -> Iterator[tuple[str, str]]:
    if spec.text != PLAIN:
        raise TextError(f"{name}: plain text has no fields for {spec.text!r}", hint="leave `text` out, or set `format: jsonl`")
    separator = spec.separator
    line = in_line = 0
    for number, piece in enumerate(read_pieces(path, name, separator.encode() if separator else None, max_bytes)):
        text = decode(piece, name)
        in_line = in_line + 1 if piece.line == line else 1
        line = piece.line
        origin = f"{name}:{line}" + (f".{in_line}" if in_line > 1 else "")  # the second document that begins in line 7 is 7.2
        yield (separator + text if separator and spec.keep_separator and number else text), origin if separator else name


def _json_texts(spec: TextSpec, path: Path, name: str, max_bytes: int) -> Iterator[tuple[str, str]]:
    if spec.separator:
        raise TextError(f"{name}: a separator splits plain text, JSON lines are documents already", hint="remove `separator`")
    for piece in read_pieces(path, name, b"\n", max_bytes):
        text, where = decode(piece, name), f"{name}, line {piece.line}"
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise TextError(f"{where}: not JSON: {error.msg} at column {error.colno}", hint=_JSON_HINT) from None
        except (ValueError, RecursionError) as error:
            raise TextError(f"{where}: JSON that no one should write: {error}", hint=_JSON_HINT) from None
        if not isinstance(record, dict):
            raise TextError(f"{where}: got a {type(record).__name__}, expected an object", hint=_JSON_HINT)
        yield fill(spec.text, record, where), f"{name}:{piece.line}"


_JSON_HINT = "each line must be one JSON object"


def _parquet_texts(spec: TextSpec, path: Path, name: str, _: int) -> Iterator[tuple[str, str]]:
    from pyarrow import ArrowException, parquet, types

    fields = list(dict.fromkeys(template_fields(spec.text)))
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            for field in fields:
                if field not in schema.names:
                    raise TextError(f"{name}: column {did_you_mean(field, schema.names)}", hint="`text` names the columns in braces")
                kind = schema.field(field).type
                kind = kind.value_type if types.is_dictionary(kind) else kind
                if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
                    raise TextError(f"{name}: column {field!r} holds {kind}, expected text", hint="name a column of strings")
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=fields):
                for record in batch.to_pylist():
                    row += 1
                    yield fill(spec.text, record, f"{name}, row {row}"), f"{name}:{row}"
    except (ArrowException, UnicodeDecodeError, OSError) as error:
        raise TextError(f"{name}: not a readable Parquet file: {str(error).splitlines()[0]}", hint="is it whole, and UTF-8?") from None


READERS = {"txt": _plain_texts, "jsonl": _json_texts, "parquet": _parquet_texts}


def fill(template: str, record: Mapping[str, Any], where: str) -> str:
    """Return a template with a record's fields in it; braces inside the fields mean nothing.

    Raises:
        TextError: a field is missing, is no string, or holds half of a surrogate pair; names ``where``.

    >>> fill("{a}: {b}", {"a": "one", "b": "{two}"}, "here")
    'one: {two}'
    """
    parts: list[str] = []
    for literal, field, _, _ in Formatter().parse(template):
        parts.append(literal)
        if field is None:
            continue
        if field not in record:
            raise TextError(f"{where}: field {did_you_mean(field, map(str, record))}", hint="`text` names the fields in braces")
        value = record[field]
        if not isinstance(value, str):
            got = type(value).__name__
            raise TextError(f"{where}: field {field!r} is {got}, expected a string", hint="name another field, or convert it")
        parts.append(value)
    text = "".join(parts)
    if not text.isascii() and (half := re.search(r"[\ud800-\udfff]", text)):
        raise TextError(f"{where}: holds \\u{ord(half[0]):04x}, half of a surrogate pair", hint="no UTF-8 can hold it: remove the escape")
    return text


# ---------------------------------------------------------------------------------------------------------------------- hub


def _hub_texts(spec: TextSpec) -> Iterator[tuple[str, str]]:
    import datasets  # seconds of import, and most corpora are files

    assert spec.dataset is not None
    try:
        stream = datasets.load_dataset(spec.dataset, spec.subset, split=spec.split or "train", revision=spec.revision, streaming=True)
        if spec.shuffle_seed is not None:
            stream = stream.shuffle(seed=spec.shuffle_seed, buffer_size=SHUFFLE_BUFFER)
        for row, record in enumerate(stream, start=1):
            yield fill(spec.text, record, f"{spec.label}, row {row}"), f"{spec.label}:{row}"
    except TextError:
        raise
    except Exception as error:  # the hub, its cache and its readers raise dozens of kinds
        first = (str(error).splitlines() or [""])[0]
        hint = "check its name, subset and split, the network, and (for gated data) `hf auth login`"
        raise TextError(f"dataset {spec.label}: {type(error).__name__}: {first}", hint=hint) from error
