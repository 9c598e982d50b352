"""Records of other people's files, one at a time: JSON lines, a JSON list, Parquet. Each knows where it stands."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lmfuse.errors import TextError
from lmfuse.text_files import BYTE_ORDER_MARK, CHUNK_BYTES, decode, open_bytes, read_pieces

LINE_HINT = "each line must be one JSON object"
LIST_HINT = "the file must be a list of JSON objects, or one JSON object a line"
BLANKS = " \t\r\n"
SHUFFLE_BUFFER = 10_000  # records of a hub stream that are shuffled at a time; a stream has no end that one could wait for
CUT_OFF = 16  # characters before the end of what was read in which a fault may be no fault, but half a word


@dataclass(frozen=True)
class Record:
    """One record: its fields, where it stands in words, and where it came from (``talks.json:17``)."""

    values: dict[str, Any]
    where: str
    origin: str


def json_lines(path: Path, name: str, max_bytes: int) -> Iterator[Record]:
    """Yield one record a line; blank lines are none.

    Raises:
        TextError: a line is no JSON object, not UTF-8 or longer than ``max_bytes``; names the line.
    """
    for piece in read_pieces(path, name, b"\n", max_bytes):
        text, where = decode(piece, name), f"{name}, line {piece.line}"
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise TextError(f"{where}: not JSON: {error.msg} at column {error.colno}", hint=LINE_HINT) from None
        except (ValueError, RecursionError) as error:
            raise TextError(f"{where}: JSON that no one should write: {error}", hint=LINE_HINT) from None
        yield Record(_object(record, where, LINE_HINT), where, f"{name}:{piece.line}")


def json_records(path: Path, name: str, max_bytes: int) -> Iterator[Record]:
    """Yield the records of a .json file: of one list, read as a stream, or one a line where it does not begin with a bracket.

    Raises:
        TextError: it is neither; names the record, counted from 1, or the line.
    """
    with open_bytes(path, name) as file:
        begins = file.read(64).removeprefix(BYTE_ORDER_MARK).lstrip(BLANKS.encode())
    if not begins.startswith(b"["):
        yield from json_lines(path, name, max_bytes)
        return
    with open_bytes(path, name) as file:
        for number, value in enumerate(_ListReader(file.read, name, max_bytes).values(), start=1):
            where = f"{name}, record {number}"
            yield Record(_object(value, where, LIST_HINT), where, f"{name}:{number}")


class _ListReader:
    """The values of a JSON list, read a megabyte at a time; in memory is one value and what was read behind it."""

    def __init__(self, more: Callable[[int], bytes], name: str, max_bytes: int) -> None:
        self.more, self.name, self.max_bytes = more, name, max_bytes
        self.decoder, self.utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.number, self.offset, self.done = "", 0, 1, 0, False

    def values(self) -> Iterator[Any]:
        self.skip("[")
        while self.peek() != "]":
            if self.number > 1:
                self.skip(",")
                if self.peek() == "]":
                    raise self.fault("a comma behind the last record")
            yield self.value()
            self.number += 1
        self.skip("]")
        if rest := self.peek():
            raise self.fault(f"{rest!r} behind the end of the list")

    def value(self) -> Any:
        want = CHUNK_BYTES
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - CUT_OFF
                if self.done or not cut_off:
                    raise self.fault("the file ends in the middle" if cut_off else error.msg) from None
            except (ValueError, RecursionError) as error:
                raise TextError(f"{self.name}, record {self.number}: JSON that no one should write: {error}", hint=LIST_HINT) from None
            else:
                if end < len(self.text) or self.done:  # else a number may go on behind what was read
                    self.at = end
                    return value
            if len(self.text) - self.at > self.max_bytes:
                raise TextError(f"{self.name}, record {self.number}: more than {self.max_bytes:,} bytes", hint="split it")
            self.read(want)
            want *= 2

    def read(self, num_bytes: int) -> None:
        """Read more behind what has not been used yet."""
        data = self.more(num_bytes)
        self.done = not data
        try:
            self.text = self.text[self.at :] + self.utf8.decode(data, final=self.done)
        except UnicodeDecodeError as error:
            place = f"byte 0x{error.object[error.start]:02x} near offset {self.offset + error.start}"
            raise TextError(f"{self.name}, record {self.number}: {place} is not UTF-8", hint="convert the file") from None
        self.offset, self.at = self.offset + len(data), 0

    def peek(self) -> str:
        """Return the next character that is not blank, ``""`` at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in BLANKS:
                self.at += 1
            if self.at < len(self.text) or self.done:
                return self.text[self.at : self.at + 1]
            self.read(CHUNK_BYTES)

    def skip(self, expected: str) -> None:
        found = self.peek()
        if found != expected:
            raise self.fault(f"got {found!r}, expected {expected!r}" if found else "the file ends in the middle")
        self.at += 1

    def fault(self, what: str) -> TextError:
        return TextError(f"{self.name}, record {self.number}: not JSON: {what}", hint=LIST_HINT)


def _object(value: Any, where: str, hint: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TextError(f"{where}: got a {type(value).__name__}, expected an object", hint=hint)
    return value


Choose = Callable[[Any], Sequence[str]]


def parquet_rows(path: Path, name: str, choose: Choose) -> Iterator[Record]:
    """Yield one record a row, with the columns that ``choose`` names when it is given the file's Arrow schema.

    Raises:
        TextError: the file cannot be read, or whatever ``choose`` raises.
    """
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = list(dict.fromkeys(choose(file.schema_arrow)))
            rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(batch_size=256, columns=columns))
            for row, values in enumerate(rows, start=1):
                yield Record(values, f"{name}, row {row}", f"{name}:{row}")
    except (ArrowException, UnicodeDecodeError, OSError) as error:
        raise TextError(f"{name}: not a readable Parquet file: {str(error).splitlines()[0]}", hint="is it whole, and UTF-8?") from None


def hub_rows(dataset: str, subset: str | None, split: str, revision: str | None, shuffle_seed: int | None, label: str) -> Iterator[Record]:
    """Yield the records of a dataset of the Hugging Face hub, as a stream; its code is never run.

    Raises:
        TextError: whatever the hub, its cache and its readers complain of.
    """
    import datasets  # seconds of import, and most corpora are files

    try:
        stream = datasets.load_dataset(dataset, subset, split=split, revision=revision, streaming=True)
        if shuffle_seed is not None:
            stream = stream.shuffle(seed=shuffle_seed, buffer_size=SHUFFLE_BUFFER)
        for row, values in enumerate(stream, start=1):
            yield Record(values, f"{label}, row {row}", f"{label}:{row}")
    except Exception as error:  # dozens of kinds
        first = (str(error).splitlines() or [""])[0]
        hint = "check its name, subset and split, the network, and (for gated data) `hf auth login`"
        raise TextError(f"dataset {label}: {type(error).__name__}: {first}", hint=hint) from error
