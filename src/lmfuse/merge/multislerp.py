"""Multi-SLERP: the direction of the average direction, the average length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from lmfuse.merge.affine import Gram, combination, gram
from lmfuse.merge.family import About, Combine, Finite, Look, Merge, check_weights, normalised, per_source


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MultiSlerp(Merge):
    """Spherical average of any number of sources, in the tangent space at their mean direction.  C. Goddard, goddard.blog/posts/multislerp-wow-what-a-cool-idea

    With unit vectors ``u_i = theta_i / |theta_i|`` and weights w of sum 1: ``m = sum_i w_i u_i / |sum_i w_i u_i|``, the sources are
    projected onto the tangent space at m, averaged there, brought back by the exponential map, and stretched to ``sum_i w_i |theta_i|``.
    The projections average to 0 by the choice of m, so the result is m itself, which is what is computed here.

    - ``weights``: one number for all sources, or one for each.
    - ``normalise``: divide by the sum of the weights.

    With a base model the sphere is around it: the u are directions of ``theta_i - base``. A source of length 0 has no direction and
    counts for the length only. Where the mean direction is zero (opposite sources) the result is the linear average.

    (2, 0) and (0, 4): directions average to 45°, lengths to 3.

    >>> import torch
    >>> from lmfuse.merge.whole import merge_tensors
    >>> merge_tensors(MultiSlerp(), [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])])
    tensor([2.1213, 2.1213])
    """

    name: Literal["multislerp"] = "multislerp"
    weights: Finite | tuple[Finite, ...] = 1.0
    normalise: bool = True

    @model_validator(mode="after")
    def _usable(self) -> MultiSlerp:
        check_weights(self.weights, self.normalise)
        return self

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit: look at the inner products of the sources."""
        weights = per_source(self.weights, about.num_sources, "multislerp: weights")
        weights = normalised(weights, "weights") if self.normalise else weights
        vectors = yield from gram(around_base=True)
        coefficients = _mean(vectors, np.array(weights), about.counters)
        free, around = combination(coefficients), combination(coefficients, 1 - sum(coefficients))
        return lambda piece: (free if piece.base is None else around)(piece)


def _mean(vectors: Gram, weights: Float[np.ndarray, "S"], counters: Counter[str]) -> tuple[float, ...]:
    """Return the coefficients of the sources in the mean."""
    norms = vectors.norms()
    pulls = np.divide(weights, norms, out=np.zeros(len(norms)), where=norms > 0)
    mean = pulls @ vectors.models
    length = vectors.norm(mean)
    if length <= 1e-6 * np.abs(weights).sum():  # as small as rounding makes it where directions cancel
        counters["multislerp_no_direction"] += 1
        return tuple(map(float, weights))
    return vectors.coefficients(mean * float(weights @ norms) / length)
