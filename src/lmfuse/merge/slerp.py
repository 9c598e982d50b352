"""SLERP: from one model to another along the great circle between them."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.merge.affine import combination, gram
from lmfuse.merge.family import About, Combine, Look, Merge


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Slerp(Merge):
    """Spherical interpolation of two sources.  Shoemake, Animating rotation with quaternion curves (SIGGRAPH 1985), section 3.3

    ``(sin((1 - t) w) theta_1 + sin(t w) theta_2) / sin w``, w the angle between both models' numbers of one tensor.

    - ``t``: 0 is the first source, 1 the second.

    Where the angle tells nothing the result is ``(1 - t) theta_1 + t theta_2``: a tensor that is zero, two that point the same way
    to within 1e-7 (there both formulas agree), two that point opposite ways to within 1e-3 (no great circle is the shortest).

    Half way between (1, 0) and (0, 1) lies (sin 45°, sin 45°), as long as both.

    >>> import torch
    >>> from lmfuse.merge.whole import merge_tensors
    >>> merge_tensors(Slerp(t=0.5), [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])])
    tensor([0.7071, 0.7071])
    """

    min_sources: ClassVar[int] = 2
    max_sources: ClassVar[int | None] = 2
    name: Literal["slerp"] = "slerp"
    t: Annotated[float, Field(ge=0, le=1)] = 0.5

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit: look at the angle between both sources."""
        self.check(about.num_sources, has_base=False)
        products = (yield from gram()).products
        one, along, apart = products[0, 0], products[0, 1], products[1, 1]  # |a|^2, a.(b - a), |b - a|^2
        two = one + 2 * along + apart
        if one <= 0 or two <= 0:
            return self._linear(about, "slerp_zero_tensor")
        scale = math.sqrt(one) * math.sqrt(two)
        sine, cosine = math.sqrt(max(0.0, one * apart - along**2)) / scale, (one + along) / scale
        if cosine < 0 and sine <= 1e-3:
            return self._linear(about, "slerp_opposite")
        if sine <= 1e-7:
            return self._linear(about, "slerp_parallel")
        angle = math.atan2(sine, cosine)
        return combination([math.sin((1 - self.t) * angle) / math.sin(angle), math.sin(self.t * angle) / math.sin(angle)])

    def _linear(self, about: About, why: str) -> Combine:
        about.counters[why] += 1
        return combination([1 - self.t, self.t])
