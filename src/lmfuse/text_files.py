"""Other people's text files: found by name, read in bounded memory, every fault named by file, line and byte."""

from __future__ import annotations

import glob
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO

from lmfuse.errors import TextError, did_you_mean

MAX_DOCUMENT_BYTES = 64 * 2**20  # of one line, document or piece; more than this is no text but an accident
CHUNK_BYTES = 2**20
ZSTD_INPUT_BYTES = 2**10  # a block of 4 bytes can unpack to 128 KiB: this bounds what one step unpacks to 32 MiB
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LOOKS_LIKE = {
    b"\x1f\x8b": "gzip: name it .gz",
    b"\x28\xb5\x2f\xfd": "zstandard: name it .zst",
    b"\xff\xfe": "UTF-16: convert it to UTF-8",
    b"\xfe\xff": "UTF-16: convert it to UTF-8",
    b"PAR1": "Parquet: name it .parquet",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"BZh": "bzip2: unpack it",
    b"\xfd7zXZ": "xz: unpack it",
}


# ------------------------------------------------------------------------------------------------------------------ finding


def find_files(pattern: str, base: Path) -> list[tuple[str, Path]]:
    """Return the files that a path, folder or glob means, as (name, path), sorted by name; ``**`` is any number of folders.

    Names are as the pattern has them: relative to ``base`` unless the pattern is absolute. A folder means every file below it
    that is not hidden.

    Raises:
        TextError: there is no such file; suggests one that is there.
    """
    place = os.path.expanduser(pattern)
    if os.path.isfile(base / place):
        return [(Path(place).as_posix(), base / place)]
    is_folder = os.path.isdir(base / place)
    names = glob.glob(os.path.join(glob.escape(place), "**") if is_folder else place, root_dir=base, recursive=True)
    found = sorted((Path(name).as_posix(), base / name) for name in names if os.path.isfile(base / name))
    if not found and is_folder:
        raise TextError(f"{pattern}: the folder holds no file", hint="hidden files do not count")
    if not found and glob.has_magic(place):
        raise TextError(f"{pattern}: no file matches", hint=f"patterns start at {base.absolute()}; ** means any number of folders")
    if not found:
        raise TextError(f"{pattern}: {_missing(base / place)}", hint=f"relative paths start at {base.absolute()}")
    return found


def _missing(path: Path) -> str:
    """Say which part of a path is not there, and what is there instead."""
    parent, part = path.parent, path.name
    while not os.path.isdir(parent) and parent != parent.parent:
        parent, part = parent.parent, parent.name
    try:
        siblings = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        return f"cannot look into {parent} ({error.strerror})"
    if not siblings or part in siblings:
        return f"no such file, {parent} " + ("is empty" if not siblings else f"holds {part!r}, which is no plain file")
    return f"no such file in {parent}: {did_you_mean(part, get_close_matches(part, siblings, n=5, cutoff=0.4) or siblings[:5])}"


# ------------------------------------------------------------------------------------------------------------------ reading


class _Zstandard(io.RawIOBase):
    """A .zst file as a stream of bytes that, unlike zstandard's own, notices that the file ends in the middle of a frame."""

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file, self._new = file, zstandard.ZstdDecompressor().decompressobj
        self._frame, self._started, self._input, self._ready = self._new(), False, b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            data = self._input or self._file.read(ZSTD_INPUT_BYTES)
            if not data:
                if self._started and not self._frame.eof:
                    raise EOFError("the file ends in the middle of a compressed frame")
                return 0
            if self._frame.eof:
                self._frame = self._new()
            self._started = True
            self._ready = memoryview(self._frame.decompress(data))
            self._input = self._frame.unused_data if self._frame.eof else b""
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


@contextmanager
def open_bytes(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Open a file, unpacked if it ends in .gz or .zst; faults met while it is read become a TextError, too."""
    import zstandard

    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield unpacked  # type: ignore[misc]
            elif path.suffix == ".zst":
                yield io.BufferedReader(_Zstandard(file), CHUNK_BYTES)
            else:
                yield file
    except EOFError:
        raise TextError(f"{name}: the compressed file ends in the middle", hint="it was cut short: download or copy it again") from None
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise TextError(f"{name}: not a whole {path.suffix} file ({error})", hint="download it again, or unpack it yourself") from None
    except OSError as error:
        raise TextError(f"{name}: {error.strerror or error}", hint="is the file readable for you?") from None


@dataclass(frozen=True)
class Piece:
    """A stretch of a file: its bytes, the line (from 1) and the byte of the unpacked file at which it starts."""

    data: bytes
    line: int
    offset: int


def read_pieces(path: Path, name: str, separator: bytes | None, max_bytes: int = MAX_DOCUMENT_BYTES) -> Iterator[Piece]:
    """Yield what stands between separators, which are left out; the whole file without one. Empty pieces are yielded, too.

    Raises:
        TextError: a piece is longer than ``max_bytes``, or the file cannot be read or unpacked.
    """
    line, offset, rest = 1, 0, bytearray()
    step = separator or b""
    with open_bytes(path, name) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            if not offset and not rest and chunk.startswith(BYTE_ORDER_MARK):
                chunk, offset = chunk[3:], 3
            searched = max(0, len(rest) - len(step) + 1)
            rest += chunk
            if separator and rest.find(separator, searched) >= 0:
                *whole, last = bytes(rest).split(separator)
                for data in whole:
                    _refuse_long(data, name, line, max_bytes)
                    yield Piece(data, line, offset)
                    line += data.count(b"\n") + separator.count(b"\n")
                    offset += len(data) + len(separator)
                rest = bytearray(last)
            _refuse_long(rest, name, line, max_bytes)
    if rest:
        yield Piece(bytes(rest), line, offset)


def _refuse_long(data: bytes | bytearray, name: str, line: int, max_bytes: int) -> None:
    if len(data) > max_bytes:
        message = f"{name}, line {line}: a document of more than {max_bytes:,} bytes begins here"
        raise TextError(message, hint="split it: set `separator` for plain text; one JSON object a line for .jsonl")


def decode(piece: Piece, name: str) -> str:
    """Return a piece as text.

    Raises:
        TextError: a byte is not UTF-8; names the line and the byte's offset in the (unpacked) file.
    """
    try:
        return piece.data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = piece.line + piece.data.count(b"\n", 0, error.start)
        kind = next((kind for magic, kind in LOOKS_LIKE.items() if not piece.offset and piece.data.startswith(magic)), "")
        message = f"{name}, line {line}: byte 0x{piece.data[error.start]:02x} at offset {piece.offset + error.start} is not UTF-8"
        raise TextError(message, hint=f"it looks like {kind}" if kind else "convert the file, or remove the byte") from None
