from collections import Counter

import pydantic
import pytest
import torch

from lmfuse.merge.multislerp import MultiSlerp
from lmfuse.merge.whole import merge_tensors
from tests.merge.build import gap, mergekit, models, unit


def oracle(sources, weights, base=None):
    """As published, in float64: through the tangent space."""
    origin = torch.zeros_like(sources[0]).double() if base is None else base.double()
    vectors = [source.double() - origin for source in sources]
    weights = [weight / sum(weights) for weight in weights]
    mean = unit(sum(w * unit(v) for w, v in zip(weights, vectors, strict=True)))
    tangent = sum(w * (unit(v) - (unit(v) * mean).sum() * mean) for w, v in zip(weights, vectors, strict=True))
    angle = tangent.norm()
    direction = mean * angle.cos() + (tangent * angle.sin() / angle if angle > 0 else 0)
    return origin + direction * sum(w * v.norm() for w, v in zip(weights, vectors, strict=True))


def test_by_hand():
    sources = [torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])]
    assert torch.allclose(merge_tensors(MultiSlerp(), sources), torch.tensor([3.0, 3.0, 0.0]) / 2**0.5)
    assert torch.allclose(merge_tensors(MultiSlerp(weights=(3, 4)), sources), torch.tensor([0.6, 0.8, 0.0]) * (3 * 2 + 4 * 4) / 7)
    base = torch.tensor([0.0, 0.0, 5.0])
    assert torch.allclose(merge_tensors(MultiSlerp(), [s + base for s in sources], base), torch.tensor([4.5**0.5, 4.5**0.5, 5.0]))


@pytest.mark.parametrize("spread", [2.0, 1e-4])
@pytest.mark.parametrize("around_base", [False, True])
def test_oracle(spread, around_base):
    base, sources = models(3, spread=spread)
    weights = (0.2, 0.5, 0.3)
    given = base if around_base else None
    merged = merge_tensors(MultiSlerp(weights=weights), sources, given)
    assert gap(merged, oracle(sources, weights, given)) < 2
    if spread == 2.0 or around_base:
        assert gap(merged, mergekit("multislerp", sources, given, weight=list(weights))) < 40  # its sums are in float32


def test_invariants():
    base, sources = models(4)
    weights = (1, 2, 3, 4)
    forth, back = (merge_tensors(MultiSlerp(weights=w), s) for w, s in ((weights, sources), (weights[::-1], sources[::-1])))
    assert gap(forth, back) < 2
    assert torch.equal(merge_tensors(MultiSlerp(weights=weights), [base] * 4), base)
    assert torch.equal(merge_tensors(MultiSlerp(weights=weights), [sources[0]] * 4, base), sources[0])
    assert torch.equal(merge_tensors(MultiSlerp(), sources[:1], base), sources[0])


def test_zeros_and_opposites_are_counted():
    base, (source,) = models(1)
    counters = Counter()
    zero = torch.zeros_like(base)
    assert gap(merge_tensors(MultiSlerp(), [zero, source], counters=counters), source.double() / 2) < 2  # its direction, half its length
    assert not counters
    assert gap(merge_tensors(MultiSlerp(), [source, source * -3], counters=counters), source.double()) > 0
    assert counters == {"multislerp_no_direction": 1}
    assert torch.equal(merge_tensors(MultiSlerp(), [base, base], base, counters=counters), base)
    assert counters == {"multislerp_no_direction": 2}


def test_wrong_input():
    with pytest.raises(pydantic.ValidationError, match="sum to 0"):
        MultiSlerp(weights=(1, -1))
    with pytest.raises(ValueError, match="multislerp: weights: 3 numbers for 2 sources"):
        merge_tensors(MultiSlerp(weights=(1, 1, 1)), models(2)[1])
