"""Karcher mean: the point on the sphere that is nearest to all sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from lmfuse.merge.affine import Gram, combination, gram
from lmfuse.merge.family import About, Combine, Look, Merge, check_weights, normalised, per_source

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Karcher(Merge):
    """The Riemannian (Karcher) mean of the sources' directions on the unit sphere, at their mean length.  arXiv:2603.04972

    It minimises ``sum_i w_i angle(m, theta_i)^2``: from the mean direction, repeat ``m <- exp_m(sum_i w_i log_m(u_i))`` with
    ``u_i = theta_i / |theta_i|``; the result is ``m sum_i w_i |theta_i|``, weights w of sum 1.

    - ``weights``: one number for all sources, or one for each.
    - ``max_iterations``, ``tolerance``: stop after so many steps, or at a step this small beside the largest angle.

    A source of length 0 counts for the length only; where the mean direction is zero the first source's is the start.

    Three points on a quarter circle, at 0°, 0° and 90°: the mean is at 30°.

    >>> import torch
    >>> from lmfuse.merge.whole import merge_tensors
    >>> east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> merge_tensors(Karcher(), [east, east, north])
    tensor([0.8660, 0.5000])
    """

    name: Literal["karcher"] = "karcher"
    weights: NotNegative | tuple[NotNegative, ...] = 1.0
    max_iterations: Annotated[int, Field(ge=1)] = 100
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-9

    @model_validator(mode="after")
    def _usable(self) -> Karcher:
        check_weights(self.weights)
        return self

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit: look at the inner products of the sources, everything else happens among them."""
        weights = np.array(normalised(per_source(self.weights, about.num_sources, "karcher: weights"), "weights"))
        vectors = yield from gram()
        norms = vectors.norms()
        live = norms > 0
        if not (weights * live).any():
            about.counters["karcher_zero_tensor"] += 1
            return combination(tuple(map(float, weights)))
        units, shares = vectors.models[live] / norms[live, None], weights[live] / weights[live].sum()
        return combination(vectors.coefficients(self._mean(vectors, units, shares, about.counters) * float(weights @ norms)))

    def _mean(
        self, vectors: Gram, units: Float[np.ndarray, "N S"], weights: Float[np.ndarray, "N"], counters: Counter[str]
    ) -> Float[np.ndarray, "S"]:
        """Return the coordinates of the mean direction."""
        mean = weights @ units
        if vectors.norm(mean) <= 1e-6:  # as small as rounding makes it where directions cancel
            counters["karcher_no_direction"] += 1
            mean = units[0]
        mean = mean / vectors.norm(mean)
        for _ in range(self.max_iterations):
            cosines = vectors.dot(units, mean)
            tangents = units - cosines[:, None] * mean
            sines = np.array([vectors.norm(tangent) for tangent in tangents])
            angles = np.arctan2(sines, cosines)
            known = (sines > 0) & ((cosines > 0) | (sines > 1e-3))  # from the opposite pole all ways are as short
            step = (weights * np.divide(angles, sines, out=np.zeros(len(sines)), where=known)) @ tangents
            length = vectors.norm(step)
            if length <= self.tolerance * angles.max():
                return mean
            mean = np.cos(length) * mean + np.sin(length) / length * step
            mean = mean / vectors.norm(mean)
        counters["karcher_not_converged"] += 1
        return mean
