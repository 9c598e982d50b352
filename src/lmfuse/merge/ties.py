"""TIES: trim small changes, elect a sign, merge those that agree."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.merge.agree import keep_unanimous
from lmfuse.merge.family import About, Combine, Density, Finite, Granularity, Look, Merge, per_source, unit_name
from lmfuse.merge.piece import Piece, Tensor
from lmfuse.merge.rank import Count
from lmfuse.merge.select import Top, share_of, top_k
from lmfuse.merge.sparse import merged_changes


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Ties(Merge):
    """Trim, elect signs, merge disjointly.  arXiv:2306.01708, section 4.2

    Of each source's changes ``d_i = theta_i - base`` keep the share ``density`` with the largest magnitude; the sign of
    ``sum_i w_i d_i`` (+ where it is 0) wins; result ``base + scale * sum_i w_i d_i / sum_i w_i`` over the sources that agree with it.

    - ``weights``: one number for all sources, or one for each; the paper has none. All 0 gives the base.
    - ``density``: one number for all sources, or one for each. At least one change is kept, none for 0.
    - ``normalise``: divide by the weights of the sources that agree.
    - ``scale``: of the merged change, the paper's lambda.
    - ``granularity``: what the share is taken of: each tensor, each layer, or the model as in the paper.

    Half of (3, 1) and of (-1, 2) is (3, 0) and (0, 2).

    >>> import torch
    >>> from lmfuse.merge.whole import merge_tensors
    >>> merge_tensors(Ties(density=0.5), [torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 2.0])], torch.zeros(2)).tolist()
    [3.0, 2.0]
    """

    needs_base: ClassVar[bool] = True
    name: Literal["ties"] = "ties"
    weights: Finite | tuple[Finite, ...] = 1.0
    density: Density | tuple[Density, ...] = 0.2
    normalise: bool = True
    scale: Finite = 1.0
    granularity: Granularity = "tensor"

    def unit_of(self, tensor_name: str) -> str:
        """Return the tensor's name, its layer's, or one for all."""
        return unit_name(tensor_name, self.granularity)

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit: find how large a change must be to be kept."""
        weights = per_source(self.weights, about.num_sources, "ties: weights")
        densities = per_source(self.density, about.num_sources, "ties: density")
        if min(densities) == 1:
            return partial(self._merge, weights, None)
        counts: list[Count] = [partial(_count, density) for density in densities]
        tops = yield from top_k(lambda piece: piece.deltas.abs(), counts, about)
        return partial(self._merge, weights, tops)

    def _merge(self, weights: tuple[float, ...], tops: Sequence[Top] | None, piece: Piece) -> Float[Tensor, "N"]:
        changes = piece.changes()
        for row, top in zip(changes, tops or (), strict=tops is not None):
            row.mul_(top.mask(piece, row.abs()))
        merged = piece.changed(merged_changes(changes, weights, "ties", self.normalise, self.scale))
        plain = tops is None and self.normalise and self.scale == 1 and min(weights) >= 0 and any(weights)
        return keep_unanimous(merged, piece.sources) if plain else merged


def _count(density: float, num_elements: int, _: int) -> int:
    return max(1, share_of(density, num_elements)) if density else 0
