import pydantic
import pytest
import torch

from lmfuse.merge.linear import Linear
from lmfuse.merge.whole import merge_tensors
from tests.merge.build import gap, mergekit, models


def test_by_hand():
    sources = [torch.tensor([8.0, 0.0]), torch.tensor([4.0, 1.0]), torch.tensor([0.0, 2.0])]
    assert merge_tensors(Linear(weights=(1, 2, 1)), sources).tolist() == [4.0, 1.0]
    assert merge_tensors(Linear(weights=(1, 2, 1), normalise=False), sources).tolist() == [16.0, 4.0]
    assert merge_tensors(Linear(weights=(0, 1, 0)), sources).tolist() == [4.0, 1.0]
    assert merge_tensors(Linear(), sources).tolist() == pytest.approx([4.0, 1.0])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.2, 0.5, 3.0), (2.0, -0.5, 0.0)])
@pytest.mark.parametrize("normalise", [True, False])
def test_oracles_float64_and_mergekit(weights, normalise):
    _, sources = models(3)
    merged = merge_tensors(Linear(weights=weights, normalise=normalise), sources)
    exact = sum(w * s.double() for w, s in zip(weights, sources, strict=True)) / (sum(weights) if normalise else 1)
    assert gap(merged, exact) < 2
    assert gap(merged, mergekit("linear", sources, weight=list(weights), normalize=normalise)) < 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_invariant_equal_models_return_themselves(dtype):
    base, _ = models(0, dtype=dtype)
    for weights in ((1, 1, 1), (0.1, 0.2, 0.7), (3, -1, 0.3)):
        assert torch.equal(merge_tensors(Linear(weights=weights), [base] * 3), base)


def test_invariant_order_does_not_matter():
    _, sources = models(4)
    weights = (0.1, 0.7, 0.15, 0.05)
    forth, back = (merge_tensors(Linear(weights=w), s) for w, s in ((weights, sources), (weights[::-1], sources[::-1])))
    assert torch.equal(forth, back)  # the same member is the anchor, the others follow in order of weight
    assert gap(merge_tensors(Linear(), sources), merge_tensors(Linear(), sources[::-1])) < 2


def test_small_differences_keep_their_digits():
    _, sources = models(2, spread=1e-4)
    merged = merge_tensors(Linear(weights=(1, 3)), sources)
    exact = (sources[0].double() + 3 * sources[1].double()) / 4
    assert (merged - exact).abs().max() < 2**-24 * 4


def test_wrong_input():
    with pytest.raises(ValueError, match="linear: weights: 2 numbers for 3 sources"):
        merge_tensors(Linear(weights=(1, 2)), models(3)[1])
    with pytest.raises(pydantic.ValidationError, match="weights: 1, -1 sum to 0, expected a sum to divide by"):
        Linear(weights=(1, -1))
    for bad in (0.0, (0.0, 0.0)):
        with pytest.raises(pydantic.ValidationError, match="weights: all are 0"):
            Linear(weights=bad, normalise=False)
    for bad in (float("nan"), (1.0, float("inf"))):
        with pytest.raises(pydantic.ValidationError, match="finite"):
            Linear(weights=bad)
    with pytest.raises(pydantic.ValidationError, match="weight"):
        Linear(weight=1.0)
