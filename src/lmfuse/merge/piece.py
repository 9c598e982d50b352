"""What a merge method gets to see: some rows of one parameter tensor, of all models at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:  # settings load without torch
    from torch import Tensor as Tensor
else:
    Tensor = Any

PIECE_ELEMENTS = 2**17  # decides where sums are cut and what random methods draw: another number is another version of all methods


@dataclass(frozen=True)
class Piece:
    """Some rows of one parameter tensor, or a part of a long one, of all models at once, in float32.

    Attributes:
        name: of the tensor, such as ``model.layers.0.mlp.up_proj.weight``.
        start: of the piece's first element in the flattened tensor.
        shape: of the whole tensor.
        sources: the rows of every source, flattened.
        base: those of the base model, where there is one.
    """

    name: str
    start: int
    shape: tuple[int, ...]
    sources: Float[Tensor, "S N"]
    base: Float[Tensor, "N"] | None

    @cached_property
    def deltas(self) -> Float[Tensor, "S N"]:
        """Return what each source adds to the base, for looking at; computed once."""
        return self.changes()

    def changes(self) -> Float[Tensor, "S N"]:
        """Return what each source adds to the base, to be changed in place.

        Raises:
            ValueError: there is no base.
        """
        return self.sources - self._base()

    def changed(self, change: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Add the base to a change, in place."""
        return change.add_(self._base())

    def _base(self) -> Tensor:
        if self.base is None:
            raise ValueError(f"{self.name}: no base model, expected one to take differences from")
        return self.base

    @property
    def row_length(self) -> int:
        """Return the length of a row, the last dimension of the tensor."""
        return row_length(self.shape)

    def thin(self, places: Int[np.ndarray, "M"] | slice) -> Piece:
        """Return a piece of some of the elements only; they need not be whole rows."""
        import torch

        if isinstance(places, slice):
            return replace(self, sources=self.sources[:, places], base=None if self.base is None else self.base[places])
        sources = torch.empty(len(self.sources), len(places))
        for row, source in zip(sources.numpy(), self.sources.numpy(), strict=True):  # all rows at once would first be copied
            np.take(source, places, out=row, mode="clip")
        return replace(self, sources=sources, base=None if self.base is None else torch.from_numpy(self.base.numpy().take(places)))

    def __len__(self) -> int:
        return int(self.sources.shape[1])


def row_length(shape: tuple[int, ...]) -> int:
    """Return the last dimension; a vector is one row, a number is one row of one."""
    return shape[-1] if shape else 1


def cuts(shape: tuple[int, ...], whole_rows: bool = False) -> Iterator[tuple[int, int]]:
    """Yield where each piece of a tensor starts and stops in the flattened tensor: as many whole rows as ``PIECE_ELEMENTS`` holds.

    Rows that are longer are cut, or with ``whole_rows`` are pieces of their own. A tensor without elements has no piece.

    >>> list(cuts((5, 50_000)))
    [(0, 100000), (100000, 200000), (200000, 250000)]
    >>> list(cuts((150_000,))), list(cuts((150_000,), whole_rows=True))
    ([(0, 131072), (131072, 150000)], [(0, 150000)])
    """
    total, row = math.prod(shape), row_length(shape)
    if total:
        step = PIECE_ELEMENTS // row * row or (row if whole_rows else PIECE_ELEMENTS)
        yield from ((start, min(start + step, total)) for start in range(0, total, step))
