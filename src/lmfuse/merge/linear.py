"""Linear: the weighted average of models."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from lmfuse.merge.affine import combination
from lmfuse.merge.family import About, Combine, Finite, Look, Merge, check_weights, normalised, per_source


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Linear(Merge):
    """The weighted average of the sources, ``sum_i w_i theta_i / sum_i w_i``.  Model soups, arXiv:2203.05482, section 2

    - ``weights``: one number for all sources, or one for each.
    - ``normalise``: divide by the sum of the weights.

    Weights 1 and 3 of the numbers 8 and 4: a quarter of 8 and three quarters of 4.

    >>> import torch
    >>> from lmfuse.merge.whole import merge_tensors
    >>> merge_tensors(Linear(weights=(1, 3)), [torch.tensor([8.0]), torch.tensor([4.0])]).tolist()
    [5.0]
    """

    name: Literal["linear"] = "linear"
    weights: Finite | tuple[Finite, ...] = 1.0
    normalise: bool = True

    @model_validator(mode="after")
    def _usable(self) -> Linear:
        check_weights(self.weights, self.normalise)
        return self

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit; nothing has to be looked at."""
        weights = per_source(self.weights, about.num_sources, "linear: weights")
        return combination(normalised(weights, "weights") if self.normalise else weights)
        yield
