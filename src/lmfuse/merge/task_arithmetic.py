"""Task arithmetic: what each source has learnt is added to the base."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from lmfuse.merge.affine import combination
from lmfuse.merge.family import About, Combine, Finite, Look, Merge, check_weights, normalised, per_source


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TaskArithmetic(Merge):
    """Add the sources' task vectors to the base, ``base + scale * sum_i w_i (theta_i - base)``.  arXiv:2212.04089, section 2

    - ``weights``: one number for all sources, or one for each; a negative one makes the model forget. All 0 gives the base.
    - ``normalise``: divide the weights by their sum.
    - ``scale``: of the sum, the paper's lambda.

    Base 1, sources 3 and 0, weights .5 and .25: 1 + .5 * 2 - .25 * 1.

    >>> import torch
    >>> from lmfuse.merge.whole import merge_tensors
    >>> sources, base = [torch.tensor([3.0]), torch.tensor([0.0])], torch.tensor([1.0])
    >>> merge_tensors(TaskArithmetic(weights=(0.5, 0.25)), sources, base).tolist()
    [1.75]
    """

    needs_base: ClassVar[bool] = True
    name: Literal["task_arithmetic"] = "task_arithmetic"
    weights: Finite | tuple[Finite, ...] = 1.0
    normalise: bool = False
    scale: Finite = 1.0

    @model_validator(mode="after")
    def _usable(self) -> TaskArithmetic:
        check_weights(self.weights, self.normalise, may_be_zero=True)
        return self

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit; nothing has to be looked at."""
        weights = per_source(self.weights, about.num_sources, "task_arithmetic: weights")
        if self.normalise and any(weights):
            weights = normalised(weights, "task_arithmetic: weights")
        coefficients = [self.scale * weight for weight in weights]
        return combination(coefficients, 1 - math.fsum(coefficients))
        yield
