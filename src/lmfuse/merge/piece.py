"""What a merge method gets to see: some rows of one parameter tensor, of all models at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:  # settings load without torch
    from torch import Tensor as Tensor
else:
    Tensor = Any

# Decides where sums are cut and what random methods draw: another number is another version of all methods. Smaller pieces stay in a
# core's cache, but threads then meet at the interpreter's lock more often than they compute.
PIECE_ELEMENTS = 2**19


@dataclass(frozen=True)
class Piece:
    """Some rows of one parameter tensor, or a part of a long one, of all models at once.

    They are kept as they are stored and become float32 when they are asked for: who wants few elements takes them with ``thin`` first.

    Attributes:
        name: of the tensor, such as ``model.layers.0.mlp.up_proj.weight``.
        start: of the piece's first element in the flattened tensor.
        shape: of the whole tensor.
        stored: the rows of every source, flattened, in the type of its file.
        stored_base: those of the base model, where there is one.
        room: where the float32 rows of the sources go, and behind them the base's; None makes room for them.
    """

    name: str
    start: int
    shape: tuple[int, ...]
    stored: Sequence[Float[Tensor, "N"]] | Float[Tensor, "S N"]
    stored_base: Float[Tensor, "N"] | None
    room: Float[Tensor, "C N"] | None = None

    @cached_property
    def sources(self) -> Float[Tensor, "S N"]:
        """Return the rows of every source, flattened, in float32."""
        import torch

        if isinstance(self.stored, torch.Tensor) and self.stored.dtype == torch.float32:
            return self.stored
        rows = torch.empty(len(self.stored), len(self)) if self.room is None else self.room[: len(self.stored)]
        for row, stored in zip(rows, self.stored, strict=True):
            row.copy_(stored)
        return rows

    @cached_property
    def base(self) -> Float[Tensor, "N"] | None:
        """Return those of the base model in float32, where there is one."""
        if self.stored_base is None:
            return None
        return self.stored_base.float() if self.room is None else self.room[len(self.stored)].copy_(self.stored_base)

    def copy_of_base(self) -> Float[Tensor, "N"]:
        """Return the base's rows in float32, to be changed in place.

        Raises:
            ValueError: there is no base.
        """
        import torch

        return self._of_base(self.stored_base).to(torch.float32, copy=True)

    @cached_property
    def deltas(self) -> Float[Tensor, "S N"]:
        """Return what each source adds to the base, for looking at; computed once."""
        return self.changes()

    def changes(self) -> Float[Tensor, "S N"]:
        """Return what each source adds to the base, to be changed in place.

        Raises:
            ValueError: there is no base.
        """
        return self.sources - self._of_base(self.base)

    def changed(self, change: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Add the base to a change, in place."""
        return change.add_(self._of_base(self.base))

    def _of_base(self, rows: Tensor | None) -> Tensor:
        if rows is None:
            raise ValueError(f"{self.name}: no base model, expected one to take differences from")
        return rows

    @property
    def row_length(self) -> int:
        """Return the length of a row, the last dimension of the tensor."""
        return row_length(self.shape)

    def thin(self, places: Int[np.ndarray, "M"] | slice) -> Piece:
        """Return a piece of some of the elements only; they need not be whole rows."""
        take = partial(_taken, places=places)
        base = None if self.stored_base is None else take(self.stored_base)
        return replace(self, stored=tuple(map(take, self.stored)), stored_base=base, room=None)

    def __len__(self) -> int:
        return len(self.stored[0])


def _taken(stored: Float[Tensor, "N"], places: Int[np.ndarray, "M"] | slice) -> Float[Tensor, "M"]:
    import torch

    if isinstance(places, slice):
        return stored[places]
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[stored.element_size()]  # numpy has no bfloat16
    return torch.from_numpy(stored.view(bits).numpy().take(places, mode="clip")).view(stored.dtype)


def row_length(shape: tuple[int, ...]) -> int:
    """Return the last dimension; a vector is one row, a number is one row of one."""
    return shape[-1] if shape else 1


def cuts(shape: tuple[int, ...], whole_rows: bool = False) -> Iterator[tuple[int, int]]:
    """Yield where each piece of a tensor starts and stops in the flattened tensor: as many whole rows as ``PIECE_ELEMENTS`` holds.

    Rows that are longer are cut, or with ``whole_rows`` are pieces of their own. A tensor without elements has no piece.

    >>> list(cuts((5, 200_000)))
    [(0, 400000), (400000, 800000), (800000, 1000000)]
    >>> list(cuts((600_000,))), list(cuts((600_000,), whole_rows=True))
    ([(0, 524288), (524288, 600000)], [(0, 600000)])
    """
    total, row = math.prod(shape), row_length(shape)
    if total:
        step = PIECE_ELEMENTS // row * row or (row if whole_rows else PIECE_ELEMENTS)
        yield from ((start, min(start + step, total)) for start in range(0, total, step))
