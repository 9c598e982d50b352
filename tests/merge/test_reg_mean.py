"""RegMean: numbers by hand, least squares in float64, invariants, wrong input."""

from collections import Counter

import pydantic
import pytest
import torch

from lmfuse.merge.reg_mean import RegMean
from lmfuse.merge.whole import merge_informed, merge_tensors
from tests.merge.build import gap, models


def inputs(count, width=40, tokens=400, seed=1):
    """Return inputs of each source, on a scale and in directions of its own, in float64."""
    draw = torch.Generator().manual_seed(seed)
    mixes = [torch.randn(width, width, generator=draw, dtype=torch.float64) for _ in range(count)]
    return [torch.randn(tokens, width, generator=draw, dtype=torch.float64) @ mix for mix in mixes]


def grams(tokens):
    return [x.T @ x / len(x) for x in tokens]


def test_by_hand():
    sources = [torch.tensor([[1.0, 4.0]]), torch.tensor([[3.0, 0.0]])]
    found = [torch.diag(torch.tensor([1.0, 1.0])), torch.diag(torch.tensor([1.0, 3.0]))]
    assert merge_informed(RegMean(smoothing=1e-12), sources, found).tolist()[0] == pytest.approx([2.0, 1.0])
    mixed = [torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[2.0, -1.0], [-1.0, 2.0]])]
    # (W1 G1 + W2 G2) (G1 + G2)^-1 = ([6, 9] + [6, -3]) / 4
    assert merge_informed(RegMean(off_diagonal=1, smoothing=1e-12), sources, mixed).tolist()[0] == pytest.approx([3.0, 1.5])


def test_oracle_least_squares():
    _, sources = models(3, shape=(24, 40))
    tokens = inputs(3)
    merged = merge_informed(RegMean(off_diagonal=1.0, smoothing=1e-14), sources, grams(tokens))
    wanted = torch.cat([x @ s.double().T for x, s in zip(tokens, sources, strict=True)])
    exact = torch.linalg.lstsq(torch.cat(tokens), wanted).solution.T
    assert float((merged.double() - exact).abs().max()) < 1e-5


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.9])
def test_oracle_float64_with_scaled_off_diagonals(factor):
    _, sources = models(3, shape=(24, 40))
    scaled = []
    for gram in grams(inputs(3)):
        own = torch.diag(gram.diagonal())
        scaled.append((gram - own) * factor + own * (1 + 0.0) + torch.eye(40, dtype=torch.float64) * 1e-6 * gram.diagonal().mean())
    exact = sum(s.double() @ g for s, g in zip(sources, scaled, strict=True)) @ torch.linalg.inv(sum(scaled))
    assert gap(merge_informed(RegMean(off_diagonal=factor), sources, grams(inputs(3))), exact) < 8


def test_invariants():
    base, sources = models(3, shape=(24, 40))
    found = grams(inputs(3))
    assert torch.equal(merge_informed(RegMean(), [base] * 3, found), base)
    alike = merge_informed(RegMean(), sources, [found[0]] * 3)
    assert gap(alike, torch.stack(sources).double().mean(0)) < 2
    dead = [gram.clone() for gram in found]
    for gram in dead:
        gram[3], gram[:, 3] = 0, 0  # an input that nobody uses
    average = torch.stack(sources).double().mean(0)
    weights = torch.tensor([float(gram.diagonal().mean()) for gram in dead], dtype=torch.float64)
    expected = (torch.stack(sources).double()[:, :, 3] * (weights / weights.sum())[:, None]).sum(0)
    merged = merge_informed(RegMean(), sources, dead)
    assert torch.allclose(merged[:, 3].double(), expected, atol=1e-5)
    assert not torch.allclose(merged.double(), average, atol=1e-2)
    assert torch.equal(merge_informed(RegMean(), sources[:1], found[:1]), sources[0])


def test_without_statistics_it_is_the_average_and_counted():
    _, sources = models(3)
    counters = Counter()
    assert gap(merge_informed(RegMean(), sources, None, counters=counters), torch.stack(sources).double().mean(0)) < 2
    assert counters == {"reg_mean_without_statistics": 1}


def test_wrong_input():
    _, sources = models(2)
    with pytest.raises(ValueError, match="reg_mean: no statistics, expected those of each source"):
        merge_tensors(RegMean(), sources)
    with pytest.raises(ValueError, match=r"reg_mean: Gram matrices of shapes \[\[6, 6\], \[6, 6\]\] for a tensor of \[6, 40\]"):
        merge_informed(RegMean(), sources, [torch.eye(6)] * 2)
    with pytest.raises(ValueError, match="not a finite number"):
        merge_informed(RegMean(), sources, [torch.full((40, 40), float("nan"))] * 2)
    with pytest.raises(pydantic.ValidationError, match="less than or equal to 1"):
        RegMean(off_diagonal=1.5)
