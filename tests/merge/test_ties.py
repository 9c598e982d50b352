import pydantic
import pytest
import torch

from lmfuse.merge.ties import Ties
from lmfuse.merge.whole import merge_models, merge_tensors
from tests.merge.build import gap, mergekit, models


def oracle(sources, base, weights, densities, normalise=True, scale=1.0):
    base = base.double()
    trimmed = []
    for source, density in zip(sources, densities, strict=True):
        change = (source - base.float()).double().flatten()
        mask = torch.zeros_like(change)
        mask[change.abs().sort(descending=True, stable=True).indices[: max(1, int(density * len(change) + 1e-9)) if density else 0]] = 1
        trimmed.append((change * mask).view(base.shape))
    signed = torch.stack([w * t for w, t in zip(weights, trimmed, strict=True)])
    keep = signed.sign() == torch.where(signed.sum(0) >= 0, 1.0, -1.0)
    divisor = (keep * torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * base.dim())).sum(0)
    return base + scale * (signed * keep).sum(0) / (torch.where(divisor == 0, 1.0, divisor) if normalise else 1)


def test_by_hand():
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    changes = torch.tensor([[4.0, 1.0, -3.0, 0.5], [-2.0, 0.1, -1.0, 3.0], [1.0, 6.0, 0.2, -5.0]])
    # half of each: (4, 0, -3, 0), (-2, 0, 0, 3), (0, 6, 0, -5); signs +, +, -, -
    sources = list(base + changes)
    assert merge_tensors(Ties(density=0.5), sources, base).tolist() == [5.0, 7.0, -2.0, -4.0]
    assert merge_tensors(Ties(density=0.5, scale=0.5), sources, base).tolist() == [3.0, 4.0, -0.5, -1.5]
    assert merge_tensors(Ties(), sources, base).tolist() == [5.0, 7.0, 1.0, 4.0]  # one of each at least: 4, 3 and 6
    weighed = Ties(density=(0.5, 0.5, 0.0), weights=(1.0, 3.0, 1.0))  # 4 against -6: the second wins
    assert merge_tensors(weighed, sources, base).tolist() == [-1.0, 1.0, -2.0, 4.0]


@pytest.mark.parametrize("density", [(1.0, 1.0, 1.0), (0.2, 0.2, 0.2), (0.5, 0.01, 1.0), (0.0, 0.6, 0.3)])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.3, 0.9, -0.4)])
def test_oracles_float64_and_mergekit(density, normalise, weights):
    base, sources = models(3, shape=(8, 50), spread=(0.5, 1.0, 0.2))
    merged = merge_tensors(Ties(weights=weights, density=density, normalise=normalise, scale=0.9), sources, base)
    assert gap(merged, oracle(sources, base, weights, density, normalise, 0.9)) < 4
    theirs = mergekit("ties", sources, base, weight=list(weights), density=list(density), normalize=normalise, **{"lambda": 0.9})
    assert gap(merged, theirs) < 8


def test_of_equal_magnitudes_the_first_are_kept():
    base, sources = models(2, shape=(300, 64), spread=0.01, dtype=torch.bfloat16)
    floats, base = [source.float() for source in sources], base.float()
    for density in (0.6, 0.1):
        assert gap(merge_tensors(Ties(density=density), floats, base), oracle(floats, base, (1, 1), (density,) * 2)) < 2


def test_granularity_says_what_the_share_is_of():
    base, sources = models(2, shape=(4, 50))
    sources[0][1] = base[1] + (sources[0][1] - base[1]) * 5
    names = ("layers.0.a", "layers.0.b", "layers.1.a", "norm")
    split = [dict(zip(names, model, strict=True)) for model in (*sources, base)]
    merged = merge_models(Ties(density=0.25, granularity="model"), split[:2], split[2])
    assert gap(torch.stack([merged[name] for name in names]), oracle(sources, base, (1, 1), (0.25, 0.25))) < 2
    merged = merge_models(Ties(density=0.25, granularity="layer"), split[:2], split[2])
    assert gap(torch.stack([merged[name] for name in names[:2]]), oracle([s[:2] for s in sources], base[:2], (1, 1), (0.25, 0.25))) < 2


def test_invariants():
    base, sources = models(3)
    weights = (1.0, 0.5, 2.0)
    for density in (1.0, 0.3):
        forth, back = (
            merge_tensors(Ties(weights=w, density=density), s, base) for w, s in ((weights, sources), (weights[::-1], sources[::-1]))
        )
        assert gap(forth, back) < 2
    assert torch.equal(merge_tensors(Ties(density=1.0, weights=weights), [sources[0]] * 3, base), sources[0])
    assert torch.equal(merge_tensors(Ties(), [base] * 3, base), base)
    assert torch.equal(merge_tensors(Ties(weights=0.0), sources, base), base)


def test_wrong_input():
    base, sources = models(2)
    for bad in ({"density": 1.5}, {"density": (0.5, -0.1)}, {"weights": (1.0, float("nan"))}, {"k": 20}, {"granularity": "row"}):
        with pytest.raises(pydantic.ValidationError, match=next(iter(bad))):
            Ties(**bad)
    with pytest.raises(ValueError, match="ties: density: 3 numbers for 2 sources"):
        merge_tensors(Ties(density=(0.5, 0.5, 0.5)), sources, base)
    with pytest.raises(ValueError, match="ties: no base model"):
        merge_tensors(Ties(), sources)
