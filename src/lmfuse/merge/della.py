"""DELLA: drop changes at random, small ones more often than large ones."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from lmfuse.merge.family import About, Combine, Look, per_source
from lmfuse.merge.piece import Piece, Tensor
from lmfuse.merge.sparse import RandomDrop

Half = Annotated[float, Field(ge=0, lt=0.5)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Della(RandomDrop):
    """MagPrune: DARE with probabilities by magnitude, then elect signs and fuse.  arXiv:2406.11617, section 2

    Within each row the changes ``theta_i - base`` are ranked by magnitude; from the smallest to the largest the probability of being
    kept rises evenly from ``density - epsilon`` to ``density + epsilon``. What is kept is divided by its own probability and merged.

    - ``weights``: one number for all sources, or one for each. All 0 gives the base.
    - ``density``: the share that is kept: one number for all sources, or one for each; 0 and 1 keep nothing and everything.
    - ``epsilon``: half the range of probabilities, as in mergekit; the paper's epsilon is the whole range.
    - ``rescale``: ``probability`` divides by it, so that the expected change stays; ``l1`` stretches what is kept to the sum of
      absolute values of the whole tensor, as mergekit does; ``none``.
    - ``then``: ``ties`` leaves out changes against the winning sign, ``linear`` adds all (``base + scale * sum_i w_i d_i``).
    - ``normalise``: divide by the weights, with ``ties`` by those of the sources that are left.
    - ``scale``: of the merged change, the paper's lambda.
    - ``seed``: another one keeps other changes.

    Density .5 and epsilon .25 in a row of two: the smaller is kept with probability .25 and times 4, the larger .75 and times 4/3.

    >>> import torch
    >>> from lmfuse.merge.whole import merge_tensors
    >>> rows = torch.tensor([[1.0, 3.0]]).repeat(40, 1)
    >>> [column.unique().tolist() for column in merge_tensors(Della(epsilon=0.25), [rows], torch.zeros(40, 2)).T]
    [[0.0, 4.0], [0.0, 4.0]]
    """

    needs_rows: ClassVar[bool] = True
    name: Literal["della"] = "della"
    epsilon: Half | tuple[Half, ...] = 0.15
    then: Literal["linear", "ties"] = "ties"
    normalise: bool = True

    @model_validator(mode="after")
    def _in_range(self) -> Della:
        count = max(len(value) if isinstance(value, tuple) else 1 for value in (self.density, self.epsilon))
        ranges = zip(per_source(self.density, count, "density"), per_source(self.epsilon, count, "epsilon"), strict=True)
        for density, epsilon in ranges:
            if 0 < density < 1 and not 0 < density - epsilon <= density + epsilon <= 1:
                raise ValueError(f"epsilon: {epsilon:g} around density {density:g}, expected both ends above 0 and at most 1")
        return self

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit."""
        per_source(self.epsilon, about.num_sources, "della: epsilon")
        return (yield from super().start(about))

    def probabilities(self, piece: Piece, changes: Float[Tensor, "N"], density: float, source: int) -> Float[np.ndarray, "N"]:
        """Return each change's probability, by its rank in its row; of equal changes the first ranks lower."""
        epsilon = per_source(self.epsilon, len(piece.sources), "della: epsilon")[source]
        length = piece.row_length
        keys = changes.abs().numpy().view(np.uint32).astype(np.uint64).reshape(-1, length) << np.uint64(32)
        order = (np.sort(keys | np.arange(length, dtype=np.uint64), axis=1) & np.uint64(2**32 - 1)).astype(np.int64)
        by_rank = np.linspace(density - epsilon, density + epsilon, length) if length > 1 else np.array([density])
        probabilities = np.empty(order.shape, np.float32)
        np.put_along_axis(probabilities, order, by_rank[None].astype(np.float32), axis=1)
        return probabilities.reshape(-1)
