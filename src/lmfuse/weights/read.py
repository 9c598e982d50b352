"""Weights read where they lie: files mapped into memory, some rows at a time, as float32, every value finite.

Nothing here holds a tensor: pages are the system's to keep or to drop, and a reader's buffers are as large as one piece.
"""

from __future__ import annotations

import math
import mmap
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lmfuse.errors import ModelError
from lmfuse.merge.piece import Piece
from lmfuse.weights.plan import FileState, MergePlan, OpenedModel, OutputTensor, TensorRef, file_state

AGAIN = "let nothing write to the models, and merge again"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Column:
    """One tensor of one model, open.

    Attributes:
        label: of the model, for messages.
        name: of the tensor, for messages.
        model: index of the model.
        data: its bytes in the file.
        dtype: what they are.
        rows: the row of this tensor for each row of the result, -1 for none; None where they are the same.
        aligned: whether the bytes can be read in place; few files are written so that they cannot.
    """

    label: str
    name: str
    model: int
    data: UInt8[Tensor, "B"]
    dtype: torch.dtype
    rows: Int[Tensor, "R"] | None
    aligned: bool

    def values(self, start: int, stop: int) -> Float[Tensor, "N"]:
        """Return elements of the flattened tensor in the file's own type; usually a view of the file."""
        taken = self.data[start * self.dtype.itemsize : stop * self.dtype.itemsize]
        return (taken if self.aligned else taken.clone()).view(self.dtype)

    def read(self, start: int, out: Float[Tensor, "N"], row: int) -> Bool[Tensor, "R"] | None:
        """Fill ``out`` from element ``start`` of the result's tensor; return which of its rows this model has, None for all.

        Rows that it lacks are left as they are.
        """
        if self.rows is None:
            out.copy_(self.values(start, start + out.numel()))
            return None
        wanted = self.rows[start // row : (start + out.numel()) // row]
        has = wanted >= 0
        table, filled = self.values(0, len(self.data) // self.dtype.itemsize).view(-1, row), out.view(-1, row)
        filled[has] = table.index_select(0, wanted[has]).float()
        return None if bool(has.all()) else has


@dataclass(frozen=True)
class OpenTensor:
    """One tensor of the result with everything that it is made of, open.

    Attributes:
        output: what the plan says of it.
        sources: in the plan's order.
        base: the base's tensor, if there is one.
    """

    output: OutputTensor
    sources: tuple[Column, ...]
    base: Column | None

    @property
    def columns(self) -> tuple[Column, ...]:
        """Return the sources, then the base if there is one."""
        return self.sources if self.base is None else (*self.sources, self.base)

    @property
    def rows_without_base(self) -> int:
        """Return how many rows a source has and the base has not: no method decides on them, they are the mean of those who have them."""
        if self.base is None or self.base.rows is None:
            return 0
        had = torch.stack([torch.ones_like(self.base.rows, dtype=torch.bool) if e.rows is None else e.rows >= 0 for e in self.sources])
        return int((had.any(0) & (self.base.rows < 0)).sum())


class OpenFiles:
    """The weight files of some models, mapped into memory."""

    def __init__(self, models: Sequence[OpenedModel]) -> None:
        self._models = models
        self._mapped: dict[Path, mmap.mmap] = {}
        self._bytes: dict[Path, UInt8[Tensor, "B"]] = {}
        self._states: dict[Path, FileState] = {}

    def _open(self, model: OpenedModel, path: Path) -> UInt8[Tensor, "B"]:
        if path not in self._bytes:
            with path.open("rb") as file, warnings.catch_warnings():
                state = file_state(os.fstat(file.fileno()))
                if model.states.get(path, state) != state:
                    raise ModelError(f"{path} was changed after it was checked", AGAIN)
                warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nobody writes to it
                self._mapped[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._states[path] = state
                self._bytes[path] = torch.frombuffer(self._mapped[path], dtype=torch.uint8)
        return self._bytes[path]

    def data(self, model: int, name: str) -> UInt8[Tensor, "B"]:
        """Return the bytes of a tensor.

        Raises:
            ModelError: its file is not the one that was checked when the model was opened.
        """
        path, entry = self._models[model].tensors[name]
        return self._open(self._models[model], path)[entry.start : entry.stop]

    def tensor(self, output: OutputTensor) -> OpenTensor:
        """Open what a tensor of the result is made of."""
        sources = tuple(self._column(ref) for ref in output.sources)
        return OpenTensor(output, sources, self._column(output.base) if output.base else None)

    def _column(self, ref: TensorRef) -> Column:
        entry = self._models[ref.model].entry(ref.name)
        dtype = DTYPES[entry.dtype]
        rows = None if ref.rows is None else torch.tensor(ref.rows, dtype=torch.int64)
        aligned = entry.start % dtype.itemsize == 0
        return Column(self._models[ref.model].label, ref.name, ref.model, self.data(ref.model, ref.name), dtype, rows, aligned)

    def read_ahead(self, output: OutputTensor) -> None:
        """Ask the system to begin reading what a tensor of the result is made of, if it can be asked."""
        for ref in output.refs:
            path, entry = self._models[ref.model].tensors[ref.name]
            self._open(self._models[ref.model], path)
            start = entry.start // mmap.PAGESIZE * mmap.PAGESIZE
            with suppress(OSError, AttributeError, ValueError):  # advice only; other systems have none
                self._mapped[path].madvise(mmap.MADV_WILLNEED, start, entry.stop - start)

    def refuse_changed(self) -> None:
        """Raise ModelError if a file was written to since it was opened."""
        for path, state in self._states.items():
            if file_state(path.stat()) != state:
                raise ModelError(f"{path} was changed while it was read", AGAIN)


class Reader:
    """What one thread reads with: a buffer that every piece is read into, so that it is touched again while it is warm.

    A piece is valid until the next one is read.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def piece(self, tensor: OpenTensor, start: int, stop: int) -> Piece:
        """Read elements ``start:stop`` of the flattened tensor of every model; rows that a model lacks are filled in."""
        columns, count, length = tensor.columns, len(tensor.sources), stop - start
        if self._buffer.numel() < len(columns) * length:
            self._buffer = torch.empty(len(columns) * length)
        room = self._buffer[: len(columns) * length].view(len(columns), length)
        if all(column.rows is None for column in columns):
            stored = [column.values(start, stop) for column in columns]
            return Piece(tensor.output.name, start, tensor.output.shape, stored[:count], stored[count] if tensor.base else None, room)
        row = math.prod(tensor.output.shape[1:])
        has = [column.read(start, out, row) for column, out in zip(columns, room, strict=True)]
        if any(each is not None for each in has):
            _fill(room.view(len(columns), -1, row), has, has_base=tensor.base is not None)
        return Piece(tensor.output.name, start, tensor.output.shape, room[:count], room[count] if tensor.base else None)


def _fill(rows: Float[Tensor, "C R D"], has: Sequence[Bool[Tensor, "R"] | None], *, has_base: bool) -> None:
    """Fill the rows that a model lacks, in place: with the base's, without a base with the mean of those sources that have it.

    A row that the base lacks is that mean in all models, zeros where nobody has it: there is nothing to take differences from, and what
    is the same everywhere is what every method returns.
    """
    known = torch.stack([torch.ones(rows.shape[1], dtype=torch.bool) if each is None else each for each in has])
    count = len(rows) - has_base
    having = known[:count].sum(0)
    rows[~known] = 0
    mean = rows[:count].sum(0) / having.clamp(min=1).unsqueeze(1)
    if has_base:
        without_base = ~known[count]
        rows[:, without_base] = mean[without_base]
        known[:, without_base], mean = True, rows[count]
    rows[:count] = torch.where(known[:count].unsqueeze(2), rows[:count], mean)


def refuse_non_finite(piece: Piece, columns: Sequence[Column]) -> None:
    """Raise ModelError, which names model, tensor and element, if a piece holds a value that is not finite."""
    stored = [*piece.stored, *([] if piece.stored_base is None else [piece.stored_base])]
    for column, values in zip(columns, stored, strict=True):
        if all_finite(values):
            continue
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):  # finite values too may have a sum that is not
            first = int(bad[0])
            place = place_of(piece.start + first, piece.shape)
            raise ModelError(
                f"{column.label}: tensor {column.name} holds {float(values[first])} at element {place}",
                "the weights are damaged: fetch them again",
            )


def all_finite(values: Float[Tensor, "N"]) -> bool:
    """Return whether all values are finite; for float32 False is possible too where only their sum is not.

    Of 16 bits those are not finite whose exponent is all ones: as numbers the largest of either sign, which is found three times faster
    than a sum.
    """
    if values.dtype == torch.float32:
        return math.isfinite(float(values.sum()))
    bits = values.view(torch.int16).numpy()
    infinite = 0x7C00 if values.dtype == torch.float16 else 0x7F80
    return not values.numel() or bool(bits.max() < infinite and bits.view(np.uint16).max() < 0x8000 + infinite)


def place_of(index: int, shape: tuple[int, ...]) -> str:
    """Return the index of an element of the flattened tensor as people write it."""
    place: list[int] = []
    for size in reversed(shape):
        index, rest = divmod(index, size)
        place.insert(0, rest)
    return f"[{', '.join(map(str, place))}]"


def in_file_order(plan: MergePlan) -> list[OutputTensor]:
    """Return the tensors of the result as the first source of each lies on disk, so that files are read from front to back."""

    def place(output: OutputTensor) -> tuple[int, str, int, str]:
        ref = output.sources[0]
        path, entry = plan.models[ref.model].tensors[ref.name]
        return ref.model, path.name, entry.start, output.name

    return sorted(plan.tensors, key=place)
