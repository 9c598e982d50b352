import pydantic
import pytest
import torch

from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.merge.whole import merge_tensors
from tests.merge.build import gap, mergekit, models


def test_by_hand():
    sources, base = [torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0])], torch.tensor([1.0, 1.0])
    assert merge_tensors(TaskArithmetic(weights=(0.5, 0.25)), sources, base).tolist() == [1.75, 1.25]
    assert merge_tensors(TaskArithmetic(weights=(0.5, 0.25), scale=2.0), sources, base).tolist() == [2.5, 1.5]
    assert merge_tensors(TaskArithmetic(weights=(2, 2), normalise=True), sources, base).tolist() == [1.5, 1.5]
    assert merge_tensors(TaskArithmetic(weights=(-1, 0)), sources, base).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("spread", [1.0, 1e-4])
@pytest.mark.parametrize("normalise", [True, False])
def test_oracles_float64_and_mergekit(spread, normalise):
    base, sources = models(3, spread=spread)
    weights = (0.3, 0.9, -0.4)
    merged = merge_tensors(TaskArithmetic(weights=weights, normalise=normalise, scale=0.7), sources, base)
    change = sum(w * (s.double() - base.double()) for w, s in zip(weights, sources, strict=True))
    assert gap(merged, base.double() + 0.7 * change / (sum(weights) if normalise else 1)) < 2
    theirs = mergekit("task_arithmetic", sources, base, weight=list(weights), normalize=normalise, **{"lambda": 0.7})
    assert gap(merged, theirs) < 4


def test_invariants():
    base, sources = models(3)
    weights = (0.3, 0.9, -0.4)
    forth, back = (merge_tensors(TaskArithmetic(weights=w), s, base) for w, s in ((weights, sources), (weights[::-1], sources[::-1])))
    assert gap(forth, back) < 2
    assert torch.equal(merge_tensors(TaskArithmetic(weights=weights), [base] * 3, base), base)
    assert torch.equal(merge_tensors(TaskArithmetic(weights=(0.1, 0.2, 0.7)), [sources[0]] * 3, base), sources[0])
    for normalise in (True, False):
        assert torch.equal(merge_tensors(TaskArithmetic(weights=0.0, normalise=normalise), sources, base), base)


def test_wrong_input():
    base, sources = models(2)
    with pytest.raises(ValueError, match="task_arithmetic: no base model, expected one"):
        merge_tensors(TaskArithmetic(), sources)
    with pytest.raises(ValueError, match="task_arithmetic: weights: 3 numbers for 2 sources"):
        merge_tensors(TaskArithmetic(weights=(1, 1, 1)), sources, base)
    with pytest.raises(pydantic.ValidationError, match="sum to 0"):
        TaskArithmetic(weights=(0.5, -0.5), normalise=True)
    with pytest.raises(pydantic.ValidationError, match="scale"):
        TaskArithmetic(scale=float("inf"))
