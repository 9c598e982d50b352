"""Linear combinations of models, and the inner products that their coefficients follow from.

A combination is computed around one of its members, ``(sum of all c) * anchor + sum_i c_i (theta_i - anchor)``: what is the same in
all models comes out as it went in, and small differences keep their digits. The inner products are of the same kind: of the first
source and of the *differences* from it, so that the angle between nearly parallel models is not lost in rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lmfuse.merge.family import Combine, Look
from lmfuse.merge.piece import Piece, Tensor

RUN = 4096  # this many products are added up in float32, then float64 takes over
SMALLEST = 1e-24  # a sum of squares below this may have lost digits, as float32 ends at 1e-38
LARGEST = float(np.finfo(np.float32).max)


def total(values: Float[Tensor, "N"]) -> Float[Tensor, ""]:
    """Return the sum in float64, the same for any number of torch's threads: the values' own type within runs of ``RUN``, then float64."""
    whole = len(values) - len(values) % RUN
    runs = values[:whole].view(-1, RUN).sum(1)
    return runs.double().sum() + values[whole:].sum().double()


def squared_norms(rows: Float[Tensor, "S N"]) -> Float[Tensor, "S"]:
    """Return each row's sum of squares in float64; the squares too where they leave the range of float32."""
    import torch

    found = torch.stack([total(row * row) for row in rows])
    return found if _in_range(found, rows) else torch.stack([total(row * row) for row in rows.double()])


def _in_range(squares: Float[Tensor, "S"], rows: Iterable[Float[Tensor, "N"]]) -> bool:
    """Return whether sums of squares that were made in float32 can be believed; rows of zeros are as small as they look."""
    return all(math.isfinite(square) and (square >= SMALLEST or not row.any()) for square, row in zip(squares.tolist(), rows, strict=True))


def combination(coefficients: Sequence[float], base_coefficient: float = 0.0) -> Combine:
    """Return what merges a piece into ``sum_i c_i source_i + c_base base``.

    The anchor is the member with the largest coefficient; members with coefficient 0 are not looked at.

    Raises:
        ValueError: a coefficient is not finite in float32.
    """
    import torch

    for coefficient in (*coefficients, base_coefficient):
        if not abs(coefficient) <= LARGEST:
            raise ValueError(f"a model would count {coefficient:g} times, expected a number within float32")
    whole = math.fsum((*coefficients, base_coefficient))
    by_weight = sorted((-abs(c), i, c) for i, c in enumerate((*coefficients, base_coefficient)) if c)
    members = [(i, c) for _, i, c in by_weight]

    def combine(piece: Piece) -> Float[Tensor, "N"]:
        if not members:
            return torch.zeros_like(piece.sources[0])
        rows = [_member(piece, i) for i, _ in members]
        result = rows[0] * whole if np.float32(whole) != 1 else rows[0]
        difference = torch.empty_like(result)
        for row, (_, coefficient) in zip(rows[1:], members[1:], strict=True):
            torch.sub(row, rows[0], out=difference)
            result = result.add(difference, alpha=coefficient) if result is rows[0] else result.add_(difference, alpha=coefficient)
        return result

    return combine


def _member(piece: Piece, index: int) -> Float[Tensor, "N"]:
    if index < len(piece.sources):
        return piece.sources[index]
    assert piece.base is not None
    return piece.base


@dataclass(frozen=True)
class Gram:
    """Inner products of S models, each written as the first one plus a difference.

    Vectors are rows of coordinates: ``x[0]`` of the first model, ``x[j]`` of the difference between model j and the first.
    """

    products: Float[np.ndarray, "S S"]

    @property
    def models(self) -> Float[np.ndarray, "S S"]:
        """Return the coordinates of every model, a row each."""
        coordinates = np.eye(len(self.products))
        coordinates[:, 0] = 1.0
        return coordinates

    def dot(self, x: Float[np.ndarray, "*X S"], y: Float[np.ndarray, "S"]) -> Float[np.ndarray, "*X"]:
        """Return the inner products of vectors and a vector."""
        return np.asarray(x @ self.products @ y)

    def norm(self, x: Float[np.ndarray, "S"]) -> float:
        """Return the length of a vector."""
        return math.sqrt(max(0.0, float(self.dot(x, x))))

    def norms(self) -> Float[np.ndarray, "S"]:
        """Return the length of every model; equal models have equal ones."""
        return np.array([self.norm(row) for row in self.models])

    def coefficients(self, x: Float[np.ndarray, "S"]) -> tuple[float, ...]:
        """Return how much of each model a vector has."""
        return (float(x[0] - x[1:].sum()), *map(float, x[1:]))


def gram(around_base: bool = False) -> Generator[Look, Float[Tensor, "S S"], Gram]:
    """Look once at a whole unit; return the inner products of the sources, or of their differences from the base where there is one.

    Raises:
        ValueError: they are not finite.
    """
    products = (yield _products(around_base)).numpy()
    if not np.isfinite(products).all():
        raise ValueError("the models' inner products are not finite: their values are too large to be compared")
    return Gram(products)


def _products(around_base: bool) -> Callable[[Piece], Float[Tensor, "S S"]]:
    import torch

    def rows_of(sources: Float[Tensor, "S N"], base: Float[Tensor, "N"] | None) -> list[Float[Tensor, "N"]]:
        first = sources[0]
        return [first - base if around_base and base is not None else first, *(row - first for row in sources[1:])]

    def multiplied(rows: list[Float[Tensor, "N"]]) -> Float[Tensor, "S S"]:
        products = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        term = torch.empty_like(rows[0])
        for i, x in enumerate(rows):
            for j, y in enumerate(rows[: i + 1]):
                products[i, j] = products[j, i] = total(torch.mul(x, y, out=term))
        return products

    def look(piece: Piece) -> Float[Tensor, "S S"]:
        rows = rows_of(piece.sources, piece.base)
        products = multiplied(rows)
        if _in_range(products.diagonal(), rows):
            return products
        return multiplied(rows_of(piece.sources.double(), None if piece.base is None else piece.base.double()))

    return look
