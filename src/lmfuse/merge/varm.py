"""VaRM: who has changed more counts for more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.merge.affine import combination, squared_norms
from lmfuse.merge.family import About, Combine, Granularity, Look, Merge, unit_name


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Varm(Merge):
    """Variation ratio merge: average with weights by the mean squared change from the pivot.  FusionChat, arXiv:2402.16107, section 3.3, eq. 7

    ``sum_i W_i theta_i`` with ``W_i = mean((theta_i - base)^2) / sum_j mean((theta_j - base)^2)`` over one unit.

    - ``granularity``: what one set of weights is for: each tensor (the paper's best), each layer, or the model. Tensors outside all
      layers are units of their own.

    Where no source differs from the base all weights are the same, and counted. (The script released with the paper compares the
    sources with each other, once, and so gives all the same weight everywhere.)

    Changes (.4, -.2) and (.2, .2) from 0: squares .2 and .08, weights .714 and .286.

    >>> import torch
    >>> from lmfuse.merge.whole import merge_tensors
    >>> merge_tensors(Varm(), [torch.tensor([0.4, -0.2]), torch.tensor([0.2, 0.2])], torch.zeros(2))
    tensor([ 0.3429, -0.0857])
    """

    needs_base: ClassVar[bool] = True
    name: Literal["varm"] = "varm"
    granularity: Granularity = "tensor"

    def unit_of(self, tensor_name: str) -> str:
        """Return the tensor's name, its layer's, or one for all."""
        return unit_name(tensor_name, self.granularity)

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit: look at how much each source has changed."""
        squares = yield lambda piece: squared_norms(piece.deltas)
        return combination(variation_ratio(squares.numpy(), about.counters, "varm_no_change"))


def variation_ratio(squares: Float[np.ndarray, "S"], counters: Counter[str], fallback: str) -> tuple[float, ...]:
    """Return each number's share of the sum; the same for all, and counted, where the sum is 0.

    Raises:
        ValueError: they are not finite.

    >>> variation_ratio(np.array([1.0, 3.0]), Counter(), "none")
    (0.25, 0.75)
    """
    if not np.isfinite(squares).all():
        raise ValueError("the models' changes are not finite: their values are too large to be compared")
    if not squares.any():
        counters[fallback] += 1
        return (1 / len(squares),) * len(squares)
    return tuple(float(share) for share in squares / squares.sum())
