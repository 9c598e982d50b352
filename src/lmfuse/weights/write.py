"""The weight files of the result: written in any order at their final places, flushed and hashed behind the writers.

A file is called ``*.part`` until all is done. What a finished tensor needs to be believed after a crash is on the disk before the
journal says that it is finished.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lmfuse.artefacts import FileEntry
from lmfuse.disk import sync
from lmfuse.errors import InputError
from lmfuse.weights.layout import Shard, Span
from lmfuse.weights.read import DTYPES, OpenTensor, all_finite, place_of

FLUSH_SECONDS = 0.25
_flush_data = getattr(os, "fdatasync", os.fsync)  # macOS has only the slower one


@dataclass
class _File:
    """A shard that is being written: what of it is finished, and the hash of its beginning."""

    shard: Shard
    handle: int
    finished: set[str] = field(default_factory=set)
    digest: Any = field(default_factory=hashlib.sha256)
    hashed: int = 0  # tensors, in the order of the file

    def hash_what_is_finished(self) -> None:
        """Go on hashing, up to the first tensor that is not finished."""
        spans = list(self.shard.spans.items())
        first = self.hashed
        while self.hashed < len(spans) and spans[self.hashed][0] in self.finished:
            self.hashed += 1
        if self.hashed > first:
            with mmap.mmap(self.handle, 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                self.digest.update(view[spans[first][1].start : spans[self.hashed - 1][1].stop])


class Output:
    """Weight files in a working folder.

    Args:
        folder: where they are written.
        shards: what they will hold.
        records: of tensors that an earlier, interrupted writer of the same shards finished.
        journal: is given the records of tensors that are on the disk.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Shard],
        records: Sequence[Mapping[str, Any]],
        journal: Callable[[Sequence[Mapping[str, Any]]], None],
    ) -> None:
        self._journal = journal
        self._files: list[_File] = []
        self._where: dict[str, tuple[_File, Span]] = {}
        self._queue: list[Mapping[str, Any]] = []
        self._news = threading.Condition()
        self._closing = False
        self._error: BaseException | None = None
        self._buffers = threading.local()
        try:
            for shard in shards:
                self._files.append(_File(shard, _prepared(folder / shard.part, shard)))
            self._where = {name: (file, span) for file in self._files for name, span in file.shard.spans.items()}
            sync(folder)
        except BaseException:
            self._close()
            raise
        for file in self._files:
            file.digest.update(file.shard.header)
        for record in records:
            self._where[record["tensor"]][0].finished.add(record["tensor"])
        self._tender = threading.Thread(target=self._tend, name="merge-flush", daemon=True)

    def __enter__(self) -> Output:
        self._tender.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Flush what is finished, so that it need not be made again, and close the files."""
        try:
            self._end()
        finally:
            self._close()
        if kind is None:
            self.refuse_trouble()

    def write(self, tensor: OpenTensor, start: int, merged: Float[Tensor, "N"]) -> None:
        """Write a merged piece at its place, cast once to the type of the result.

        Raises:
            InputError: a value is not finite, or too large for the type.
        """
        dtype = DTYPES[tensor.output.dtype]
        cast = self._buffer(dtype, merged.numel())
        cast.copy_(merged)
        if not all_finite(cast):
            _refuse_overflow(tensor, start, merged, cast)
        self.write_bytes(tensor.output.name, start * dtype.itemsize, memoryview(cast.view(torch.uint8).numpy()))  # type: ignore[arg-type]

    def write_bytes(self, name: str, start: int, data: memoryview) -> None:
        """Write bytes of a tensor, from its byte ``start`` on."""
        file, span = self._where[name]
        while data:
            count = os.pwrite(file.handle, data, span.start + start)
            data, start = data[count:], start + count

    def _buffer(self, dtype: torch.dtype, size: int) -> Tensor:
        held = getattr(self._buffers, "held", None)
        if held is None or held.dtype != dtype or held.numel() < size:
            held = self._buffers.held = torch.empty(size, dtype=dtype)
        taken: Tensor = held if held.numel() == size else held[:size]
        return taken

    def finish(self, record: Mapping[str, Any]) -> None:
        """Say that a tensor is written; ``record["tensor"]`` is its name."""
        with self._news:
            self._queue.append(record)
            self._news.notify_all()

    def refuse_trouble(self) -> None:
        """Raise what went wrong behind the writers' backs."""
        if self._error is not None:
            raise self._error

    def complete(self) -> dict[str, FileEntry]:
        """Wait until everything is on the disk; return size and hash of each file by its final name.

        Raises:
            OSError: the disk is full or broken.
        """
        self._end()
        self.refuse_trouble()
        for file in self._files:
            assert file.hashed == len(file.shard.spans), f"{file.shard.name}: complete() before every tensor was finished"
            os.fsync(file.handle)
        return {file.shard.name: FileEntry(file.shard.num_bytes, file.digest.hexdigest()) for file in self._files}

    def _tend(self) -> None:
        """Flush, record and hash what is finished, a few times each second, until there is no more."""
        try:
            closing = False
            while not closing:
                for file in self._files:
                    file.hash_what_is_finished()
                with self._news:
                    self._news.wait_for(lambda: self._closing, FLUSH_SECONDS)
                    closing = self._closing
                    batch, self._queue = self._queue, []
                self._flush(batch)
        except BaseException as error:  # raised in the thread that waits for us
            self._error = error

    def _flush(self, batch: Sequence[Mapping[str, Any]]) -> None:
        if not batch:
            return
        touched = {id(file): file for file in (self._where[record["tensor"]][0] for record in batch)}
        for file in touched.values():
            _flush_data(file.handle)
        self._journal(batch)
        for record in batch:
            self._where[record["tensor"]][0].finished.add(record["tensor"])
        for file in touched.values():
            file.hash_what_is_finished()

    def _end(self) -> None:
        with self._news:
            self._closing = True
            self._news.notify_all()
        self._tender.join()

    def _close(self) -> None:
        for file in self._files:
            os.close(file.handle)


def _prepared(path: Path, shard: Shard) -> int:
    """Return a handle to a shard in its full size, header written; what an interrupted writer left in it stays."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        if os.fstat(handle).st_size != shard.num_bytes:
            allocate = getattr(os, "posix_fallocate", lambda handle, _, size: os.ftruncate(handle, size))
            allocate(handle, 0, shard.num_bytes)  # a disk that is too small says so now
        os.pwrite(handle, shard.header, 0)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _refuse_overflow(tensor: OpenTensor, start: int, merged: Float[Tensor, "N"], cast: Tensor) -> None:
    bad = (~torch.isfinite(cast)).nonzero()
    if len(bad):
        first = int(bad[0])
        output = tensor.output
        raise InputError(
            f"{output.name}: the merged value {float(merged[first]):.6g} at element {place_of(start + first, output.shape)} is none of {output.dtype}",
            "choose a dtype of more range, or smaller weights",
        )
