"""Model stock: the closer the sources agree, the further the result moves from the base towards their average."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.merge.affine import combination, gram
from lmfuse.merge.family import About, Combine, Granularity, Look, Merge, unit_name


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelStock(Merge):
    """Between the base and the average of the sources, by the angle between their task vectors.  arXiv:2403.19522, section 4

    ``t average + (1 - t) base`` with ``t = S c / (1 + (S - 1) c)``, c the mean cosine between the task vectors ``theta_i - base`` of
    two sources.

    - ``granularity``: what one angle is taken over. The paper speaks of layers, mergekit takes tensors.

    A source that equals the base has no angle: its cosines count as 0. Where 1 + (S - 1) c is 0 there is no finite t: the base stays.

    Base 0, sources (2, 0) and (1, √3), 60° apart: c = 1/2, t = 2/3, two thirds of the average (1.5, .866).

    >>> import torch
    >>> from lmfuse.merge.whole import merge_tensors
    >>> merge_tensors(ModelStock(), [torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3**0.5])], torch.zeros(2))
    tensor([1.0000, 0.5774])
    """

    needs_base: ClassVar[bool] = True
    min_sources: ClassVar[int] = 2
    name: Literal["model_stock"] = "model_stock"
    granularity: Granularity = "tensor"

    def unit_of(self, tensor_name: str) -> str:
        """Return the tensor's name, its layer's, or one for all."""
        return unit_name(tensor_name, self.granularity)

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit: look at the inner products of the task vectors."""
        self.check(about.num_sources, has_base=True)
        deltas = yield from gram(around_base=True)
        count, norms, models = about.num_sources, deltas.norms(), deltas.models
        products = np.array([deltas.dot(models, row) for row in models])
        scales = np.outer(norms, norms)
        cosines = np.divide(products, scales, out=np.zeros_like(products), where=scales > 0).clip(-1, 1)
        cosine = float((cosines.sum() - np.trace(cosines)) / (count * (count - 1)))
        if not norms.all():
            about.counters["model_stock_no_angle"] += 1
        share, below = count * cosine, 1 + (count - 1) * cosine
        if below <= 1e-6:
            about.counters["model_stock_opposite"] += 1
            share, below = 0.0, 1.0
        return combination([share / below / count] * count, 1 - share / below)
