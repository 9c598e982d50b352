"""Fisher merging: numbers by hand, float64, invariants, wrong input."""

from collections import Counter

import pydantic
import pytest
import torch

from lmfuse.merge.fisher import Fisher
from lmfuse.merge.whole import merge_informed, merge_tensors
from tests.merge.build import gap, models


def diagonals(count, shape=(6, 40), seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=draw) ** 4 * 1e-3 for _ in range(count)]


def test_by_hand():
    sources = [torch.tensor([0.0, 8.0, 1.0]), torch.tensor([4.0, 0.0, 3.0])]
    matters = [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([3.0, 2.0, 0.0])]
    assert merge_informed(Fisher(), sources, matters).tolist() == pytest.approx([3.0, 0.0, 2.0], abs=1e-6)
    assert merge_informed(Fisher(weights=(3, 1)), sources, matters)[0].item() == pytest.approx(2.0)
    assert merge_informed(Fisher(weights=(1, 0)), sources, matters).tolist() == [0.0, 8.0, 1.0]


@pytest.mark.parametrize("weights", [1.0, (0.2, 0.5, 3.0)])
def test_oracle_float64(weights):
    _, sources = models(3, shape=(300, 2000))  # of two pieces
    matters = diagonals(3, (300, 2000))
    each = weights if isinstance(weights, tuple) else (weights,) * 3
    scaled = [w * (f.double() + 1e-10) for w, f in zip(each, matters, strict=True)]
    exact = sum(f * s.double() for f, s in zip(scaled, sources, strict=True)) / sum(scaled)
    assert gap(merge_informed(Fisher(weights=weights), sources, matters), exact) < 1


def test_invariants():
    base, sources = models(3)
    matters = diagonals(3)
    assert torch.equal(merge_informed(Fisher(), [base] * 3, matters), base)
    merged = merge_informed(Fisher(), sources, matters)
    low, high = torch.stack(sources).amin(0), torch.stack(sources).amax(0)
    assert bool(((merged >= low - 1e-6) & (merged <= high + 1e-6)).all())
    assert gap(merge_informed(Fisher(smoothing=1e-300), sources, [7 * f + 1e-9 for f in matters]), merge_informed(
        Fisher(smoothing=1e-300), sources, [f + 1e-9 / 7 for f in matters])) < 2  # fmt: skip
    same = merge_informed(Fisher(), sources, [torch.ones(6, 40)] * 3)
    assert gap(same, torch.stack(sources).double().mean(0)) < 1


def test_without_statistics_it_is_the_average_and_counted():
    _, sources = models(3)
    counters = Counter()
    assert gap(merge_informed(Fisher(), sources, None, counters=counters), torch.stack(sources).double().mean(0)) < 1
    assert counters == {"fisher_without_statistics": 1}


def test_wrong_input():
    _, sources = models(2)
    with pytest.raises(ValueError, match="fisher: no statistics, expected those of each source"):
        merge_tensors(Fisher(), sources)
    with pytest.raises(ValueError, match=r"fisher: a diagonal of shape \[40\] for a tensor of \[6, 40\]"):
        merge_informed(Fisher(), sources, [torch.ones(40)] * 2)
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="fisher: a diagonal holds what is negative or not a number"):
            merge_informed(Fisher(), sources, [torch.full((6, 40), bad), torch.ones(6, 40)])
    with pytest.raises(ValueError, match="fisher: weights: 3 numbers for 2 sources"):
        merge_informed(Fisher(weights=(1, 2, 3)), sources, diagonals(2))
    with pytest.raises(pydantic.ValidationError, match="greater than or equal to 0"):
        Fisher(weights=(1, -1))
    with pytest.raises(pydantic.ValidationError, match="greater than 0"):
        Fisher(smoothing=0)
