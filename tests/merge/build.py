"""Models to merge, methods in float64 as one would write them down, and mergekit itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lmfuse.merge.dare import Dare
from lmfuse.merge.della import Della
from lmfuse.merge.family import Merge
from lmfuse.merge.karcher import Karcher
from lmfuse.merge.linear import Linear
from lmfuse.merge.model_stock import ModelStock
from lmfuse.merge.multislerp import MultiSlerp
from lmfuse.merge.sce import Sce
from lmfuse.merge.slerp import Slerp
from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.merge.ties import Ties
from lmfuse.merge.varm import Varm

NUMBER_BY_NUMBER = [Linear(weights=(1, 2.5, 0.25)), TaskArithmetic(weights=(0.3, 0.9, -0.4)), Ties(density=1.0), Ties(density=0.3)]
BY_SUMS = [MultiSlerp(), Karcher(), ModelStock(), Varm(), Sce(), Sce(tau=1.0), Sce(tau=0.3, variant="fuseai"), Sce(variant="mergekit")]
OF_TWO = [Slerp(t=0.3)]
RANDOM = [Dare(), Dare(then="ties", rescale="l1"), Della(), Della(then="linear", rescale="none")]


def models(count: int, shape: tuple[int, ...] = (6, 40), spread: float | Sequence[float] = 0.5, seed: int = 0, dtype=torch.float32):
    """Return a base of s.d. 1 and models that differ from it by noise of the given s.d."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=draw, dtype=torch.float64)
    spreads = [spread] * count if isinstance(spread, float) else spread
    sources = [base + torch.randn(shape, generator=draw, dtype=torch.float64) * each for each in spreads]
    return base.to(dtype), [source.to(dtype) for source in sources]


def mergekit(name: str, sources: Sequence[Tensor], base: Tensor | None = None, **parameters: Any) -> Tensor:
    """Return what mergekit makes of it; numbers per source as lists. Skip where it is not installed."""
    api = pytest.importorskip("mergekit.merge_methods.api")
    tensors = list(sources) if base is None else [base, *sources]
    first = len(tensors) - len(sources)
    named = {key: dict(enumerate(value, first)) if isinstance(value, list) else value for key, value in parameters.items()}
    return api.merge_tensors([each.clone() for each in tensors], name, parameters=named, base_index=None if base is None else 0)


def gap(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, in units of float32 rounding of the largest number."""
    one, other = one.double(), other.double()
    return float((one - other).abs().max() / (other.abs().max() * 2**-23))


def num_sources(method: Merge) -> int:
    """Return how many sources a method is given."""
    return method.max_sources or 3


def unit(tensor: Tensor) -> Tensor:
    return tensor / tensor.norm()
