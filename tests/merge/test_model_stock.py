from collections import Counter

import pydantic
import pytest
import torch

from lmfuse.merge.model_stock import ModelStock
from lmfuse.merge.whole import merge_models, merge_tensors
from tests.merge.build import gap, mergekit, models


def oracle(sources, base):
    changes = [(source.double() - base.double()).flatten() for source in sources]
    count = len(changes)
    pairs = [(a, b) for i, a in enumerate(changes) for b in changes[:i]]
    cosine = sum(torch.nn.functional.cosine_similarity(a, b, dim=0, eps=0.0) for a, b in pairs) / len(pairs)
    share = count * cosine / (1 + (count - 1) * cosine)
    return share * sum(source.double() for source in sources) / count + (1 - share) * base.double()


def test_by_hand():
    base = torch.tensor([1.0, 1.0])
    same = [base + torch.tensor([2.0, 0.0]), base + torch.tensor([4.0, 0.0])]
    assert merge_tensors(ModelStock(), same, base).tolist() == [4.0, 1.0]  # they agree: their average
    across = [base + torch.tensor([2.0, 0.0]), base + torch.tensor([0.0, 4.0])]
    assert merge_tensors(ModelStock(), across, base).tolist() == [1.0, 1.0]  # they have nothing in common: the base
    angled = [torch.tensor([2.0, 0.0]), torch.tensor([3.0, 4.0])]  # cosine .6, t = 1.2 / 1.6
    assert torch.allclose(merge_tensors(ModelStock(), angled, torch.zeros(2)), torch.tensor([1.875, 1.5]))


@pytest.mark.parametrize("spread", [2.0, 1e-4])
@pytest.mark.parametrize("count", [2, 4])
def test_oracle(spread, count):
    base, sources = models(count, spread=spread)
    sources = [source + 0.8 * spread * torch.linspace(-2, 2, 240).view(6, 40) for source in sources]
    merged = merge_tensors(ModelStock(), sources, base)
    assert gap(merged, oracle(sources, base)) < 2
    if spread == 2.0:
        assert gap(merged, mergekit("model_stock", sources, base)) < 8


def test_known_difference_from_mergekit_small_changes_have_an_angle_too():
    base, sources = models(2, spread=1e-9, shape=(2, 20), dtype=torch.float64)
    sources = [1e-4 * (source - base) for source in sources]
    sources = [(source + sources[0]).float() for source in sources]
    zero = torch.zeros(2, 20)
    assert gap(merge_tensors(ModelStock(), sources, zero), oracle(sources, zero)) < 2
    assert gap(mergekit("model_stock", sources, zero), oracle(sources, zero)) > 1e4  # it holds products of lengths at 1e-6


def test_invariants():
    base, sources = models(3)
    assert gap(merge_tensors(ModelStock(), sources, base), merge_tensors(ModelStock(), sources[::-1], base)) < 2
    assert torch.equal(merge_tensors(ModelStock(), [base] * 3, base), base)
    assert gap(merge_tensors(ModelStock(), [sources[0]] * 3, base), sources[0]) < 2


def test_one_angle_for_a_layer():
    base, sources = models(2, shape=(4, 30))
    names = ("model.layers.0.a", "model.layers.0.b", "model.layers.1.a", "norm")
    split = [dict(zip(names, model, strict=True)) for model in (*sources, base)]
    merged = merge_models(ModelStock(granularity="layer"), split[:2], split[2])
    both = merge_tensors(ModelStock(), [source[:2] for source in sources], base[:2])
    assert gap(torch.stack([merged["model.layers.0.a"], merged["model.layers.0.b"]]), both) < 2
    assert gap(merged["norm"], merge_tensors(ModelStock(), [source[3] for source in sources], base[3])) < 2


def test_fallbacks_are_counted():
    base, (source,) = models(1)
    counters = Counter()
    assert torch.equal(merge_tensors(ModelStock(), [source, base], base, counters=counters), base)
    assert counters == {"model_stock_no_angle": 1}
    change = source - base
    assert torch.equal(merge_tensors(ModelStock(), [change, -change], torch.zeros_like(base), counters=counters), torch.zeros_like(base))
    assert counters == {"model_stock_no_angle": 1, "model_stock_opposite": 1}


def test_wrong_input():
    base, sources = models(1)
    with pytest.raises(ValueError, match="model_stock: 1 source, expected 2 or more"):
        merge_tensors(ModelStock(), sources, base)
    with pytest.raises(ValueError, match="model_stock: no base model"):
        merge_tensors(ModelStock(), [*sources, base])
    with pytest.raises(pydantic.ValidationError, match="granularity"):
        ModelStock(granularity="row")
