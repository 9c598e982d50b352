"""Fisher merging: the average in which every number weighs what it matters to its model."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.merge.family import About, Combine, Look, per_source
from lmfuse.merge.informed import Informed, Kind, Statistics
from lmfuse.merge.piece import Piece, Tensor

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Fisher(Informed):
    """``sum_i w_i F_i theta_i / sum_i w_i F_i`` for each number, ``F_i`` the diagonal of source i's Fisher information.  arXiv:2111.09832, section 3

    - ``weights``: one number for all sources, or one for each.
    - ``smoothing``: added to every diagonal, so that what matters to nobody is averaged.

    ``F_i`` is the mean square of the gradient of the log-likelihood, over texts: ``lmfuse statistics --kind fisher``. Tensors without it
    are averaged and counted. Here 1 matters three times as much as 5:

    >>> import torch
    >>> from lmfuse.merge.whole import merge_informed
    >>> merge_informed(Fisher(), [torch.tensor([1.0]), torch.tensor([5.0])], [torch.tensor([3.0]), torch.tensor([1.0])]).tolist()
    [2.0]
    """

    kind: ClassVar[Kind] = "fisher"
    name: Literal["fisher"] = "fisher"
    weights: Weight | tuple[Weight, ...] = 1.0
    smoothing: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-10

    def begin(self, about: About, statistics: Statistics) -> Generator[Look, Any, Combine]:
        """Begin to merge one tensor; nothing of the sources has to be looked at."""
        (name,), (shape,) = about.names, about.shapes
        weights = per_source(self.weights, about.num_sources, "fisher: weights")
        found = statistics(name)
        if found is None:
            about.counters["fisher_without_statistics"] += 1
        for each in found or ():
            if tuple(each.shape) != shape:
                raise ValueError(f"fisher: a diagonal of shape {list(each.shape)} for a tensor of {list(shape)}")
            if each.numel() and not float(each.min()) >= 0:
                raise ValueError("fisher: a diagonal holds what is negative or not a number")
        diagonals = None if found is None else [each.reshape(-1) for each in found]
        return lambda piece: self._merged(piece, weights, diagonals)
        yield

    def _merged(self, piece: Piece, weights: tuple[float, ...], diagonals: list[Tensor] | None) -> Tensor:
        """Return the weighted mean, as what is added to the first source: equal numbers stay as they are."""
        anchor = piece.sources[0].double()
        total, moved = anchor.new_full(anchor.shape, 0.0), anchor.new_full(anchor.shape, 0.0)
        for index, source in enumerate(piece.sources):
            matters = anchor.new_full(anchor.shape, weights[index] * self.smoothing)
            if diagonals is not None:
                matters += diagonals[index][piece.start : piece.start + len(piece)].double() * weights[index]
            total += matters
            moved += matters * (source.double() - anchor)
        return (anchor + moved / total).float()
