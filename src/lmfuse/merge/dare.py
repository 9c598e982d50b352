"""DARE: drop changes at random and rescale what is left."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.merge.piece import Piece, Tensor
from lmfuse.merge.sparse import RandomDrop


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Dare(RandomDrop):
    """Drop and rescale: keep each change ``theta_i - base`` with probability ``density``, divide it by that, merge.  arXiv:2311.03099, section 3.2

    - ``weights``: one number for all sources, or one for each. All 0 gives the base.
    - ``density``: the share that is kept, 1 - p in the paper: one number for all sources, or one for each.
    - ``rescale``: ``probability`` divides by the density, so that the expected change stays; ``l1`` stretches what is kept to the
      sum of absolute values of the whole tensor, as mergekit does; ``none``.
    - ``then``: ``linear`` adds the task vectors (``base + scale * sum_i w_i d_i``), ``ties`` leaves out those against the winning sign.
    - ``normalise``: divide by the weights, with ``ties`` by those of the sources that are left.
    - ``scale``: of the merged change.
    - ``seed``: another one keeps other changes.

    With density .5 a change is dropped or doubled.

    >>> import torch
    >>> from lmfuse.merge.whole import merge_tensors
    >>> merge_tensors(Dare(density=0.5), [torch.ones(8)], torch.zeros(8)).unique().tolist()
    [0.0, 2.0]
    """

    name: Literal["dare"] = "dare"

    def probabilities(self, piece: Piece, changes: Float[Tensor, "N"], density: float, source: int) -> float:
        """Return the density."""
        return density
