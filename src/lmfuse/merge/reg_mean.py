"""RegMean: of every linear layer the one whose outputs are closest to those of all sources on their own inputs."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.merge.family import About, Combine, Look
from lmfuse.merge.informed import Informed, Kind, Statistics
from lmfuse.merge.piece import Piece, Tensor


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RegMean(Informed):
    """``W = (sum_i W_i G_i) (sum_i G_i)^-1`` of each linear layer, ``G_i`` the Gram matrix of its inputs in source i.  arXiv:2212.09849, section 3

    - ``off_diagonal``: what the Gram matrices' numbers off the diagonal are multiplied by; 1 is the exact least-squares solution, 0 weighs
      each input by itself.
    - ``smoothing``: added to each diagonal, as a share of its mean, so that inputs that nobody uses are averaged, too.

    ``G_i`` is the mean of ``x x^T`` over tokens: ``lmfuse statistics --kind gram``. Other tensors are averaged and counted. Where each
    source uses one of two inputs, each gives its column:

    >>> import torch
    >>> from lmfuse.merge.whole import merge_informed
    >>> one, other = torch.tensor([[1.0, 9.0]]), torch.tensor([[9.0, 2.0]])
    >>> grams = [torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))]
    >>> merge_informed(RegMean(smoothing=1e-12), [one, other], grams).round(decimals=4).tolist()
    [[1.0, 2.0]]
    """

    kind: ClassVar[Kind] = "gram"
    needs_rows: ClassVar[bool] = True
    name: Literal["reg_mean"] = "reg_mean"
    off_diagonal: Annotated[float, Field(ge=0, le=1)] = 0.1
    smoothing: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6

    def begin(self, about: About, statistics: Statistics) -> Generator[Look, Any, Combine]:
        """Begin to merge one tensor; nothing of the sources has to be looked at."""
        import torch

        (name,), (shape,) = about.names, about.shapes
        found = statistics(name)
        if found is None:
            about.counters["reg_mean_without_statistics"] += 1
            return lambda piece: piece.sources[0] + (piece.sources - piece.sources[0]).mean(0)
        if len(shape) != 2 or any(tuple(each.shape) != (shape[1], shape[1]) for each in found):
            raise ValueError(f"reg_mean: Gram matrices of shapes {[list(each.shape) for each in found]} for a tensor of {list(shape)}")
        if not all(bool(torch.isfinite(each).all()) for each in found):
            raise ValueError("reg_mean: a Gram matrix holds what is not a finite number")
        grams = [self._scaled(each) for each in found]
        factor = torch.linalg.cholesky(torch.stack(grams).sum(0) if len(grams) > 1 else grams[0])
        return lambda piece: _merged(piece, grams, factor)
        yield

    def _scaled(self, gram: Float[Tensor, "I I"]) -> Float[Tensor, "I I"]:
        """Return a Gram matrix in float64 that can be inverted, its off-diagonal numbers scaled."""
        own = gram.double().diagonal()
        scaled = gram.double() * self.off_diagonal
        ridge = self.smoothing * float(own.mean()) or self.smoothing
        scaled.diagonal().copy_(own + ridge)
        return scaled


def _merged(piece: Piece, grams: list[Float[Tensor, "I I"]], factor: Float[Tensor, "I I"]) -> Float[Tensor, "N"]:
    """Return whole rows, as what is added to the first source's: equal ones stay as they are."""
    import torch

    rows = piece.sources.double().view(len(grams), -1, piece.row_length)
    moved = sum((row - rows[0]) @ gram for row, gram in zip(rows[1:], grams[1:], strict=True))
    if not isinstance(moved, torch.Tensor):
        return rows[0].reshape(-1).float()
    return (rows[0] + torch.cholesky_solve(moved.mT, factor).mT).reshape(-1).float()
