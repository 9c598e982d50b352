"""What methods that thin out task vectors have in common: some changes are dropped, the rest is stretched, then merged."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from lmfuse.merge.affine import total
from lmfuse.merge.agree import agreed
from lmfuse.merge.family import About, Combine, Density, Finite, Look, Merge, check_weights, normalised, per_source
from lmfuse.merge.piece import Piece, Tensor


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RandomDrop(Merge):
    """Task vectors of which each number is kept with a probability of its own; what is kept is stretched and merged.

    What is kept depends on the seed, the tensor's name, the number of the source and the position; not on threads.
    """

    needs_base: ClassVar[bool] = True
    weights: Finite | tuple[Finite, ...] = 1.0
    density: Density | tuple[Density, ...] = 0.5
    rescale: Literal["probability", "l1", "none"] = "probability"
    then: Literal["linear", "ties"] = "linear"
    normalise: bool = False
    scale: Finite = 1.0
    seed: int = 0

    @model_validator(mode="after")
    def _usable(self) -> RandomDrop:
        check_weights(self.weights, self.normalise and self.then == "linear", may_be_zero=True)
        return self

    def probabilities(self, piece: Piece, changes: Float[Tensor, "N"], density: float, source: int) -> float | Float[np.ndarray, "N"]:
        """Return with which probability each change of one source is kept; for one density between 0 and 1."""
        raise NotImplementedError

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit: where the L1 norm is to stay, look at what dropping takes from it."""
        weights = per_source(self.weights, about.num_sources, f"{getattr(self, 'name', '')}: weights")
        densities = per_source(self.density, about.num_sources, f"{getattr(self, 'name', '')}: density")
        stretch = np.ones(len(weights))
        if self.rescale == "l1":
            before, after = (yield lambda piece: self._l1(piece, densities)).numpy()
            stretch = np.divide(before, after, out=stretch, where=after > 0)

        def combine(piece: Piece) -> Float[Tensor, "N"]:
            changes = self._thinned(piece, densities)
            for row, factor in zip(changes, stretch, strict=True):
                if factor != 1:
                    row.mul_(float(factor))
            return piece.changed(merged_changes(changes, weights, self.then, self.normalise, self.scale))

        return combine

    def _l1(self, piece: Piece, densities: tuple[float, ...]) -> Float[Tensor, "2 S"]:
        import torch

        pairs = piece.deltas, self._thinned(piece, densities)
        return torch.stack([torch.stack([total(row.abs().double()) for row in rows]) for rows in pairs])

    def _thinned(self, piece: Piece, densities: tuple[float, ...]) -> Float[Tensor, "S N"]:
        changes = piece.changes()
        for source, (row, density) in enumerate(zip(changes, densities, strict=True)):
            if density == 0:
                row.zero_()
            elif density < 1:
                kept = self.probabilities(piece, row, density, source)
                row.numpy()[:] *= uniform(self.seed, piece, source) < kept
                if self.rescale == "probability":
                    row.numpy()[:] /= kept
        return changes


def uniform(seed: int, piece: Piece, source: int) -> Float[np.ndarray, "N"]:
    """Return a number from [0, 1) for each element of a piece, always the same for the same seed, tensor, source and place."""
    text = f"{seed}\n{piece.name}\n{source}\n{piece.start}"
    generator = np.random.SFC64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))
    bits = np.asarray(generator.random_raw(-(-len(piece) // 2))).view(np.uint32)[: len(piece)]
    return (bits >> 8).astype(np.float32) * np.float32(2**-24)


def merged_changes(
    changes: Float[Tensor, "S N"], weights: tuple[float, ...], then: Literal["linear", "ties"], normalise: bool, scale: float
) -> Float[Tensor, "N"]:
    """Return ``scale * sum_i w_i c_i``, over the sources with the sign of ``sum_i w_i c_i`` only where ``then`` is ``ties``.

    ``normalise`` divides by the weights of what was added; weights that are all 0 give 0. The changes are used up.
    """
    if then == "linear" and normalise and any(weights):
        weights = normalised(weights, "weights")
    for row, weight in zip(changes, weights, strict=True):
        if weight != 1:
            row.mul_(weight)
    merged = agreed(changes, (1.0,) * len(weights), weights if normalise else None) if then == "ties" else changes.sum(0)
    return merged if scale == 1 else merged.mul_(scale)
