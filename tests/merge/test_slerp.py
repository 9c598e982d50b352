import math
from collections import Counter

import pydantic
import pytest
import torch

from lmfuse.merge.slerp import Slerp
from lmfuse.merge.whole import merge_tensors
from tests.merge.build import gap, mergekit, models


def oracle(one, two, t):
    """Through an orthonormal basis of the plane of both; exact at any angle."""
    one, two = one.double(), two.double()
    across = two - one * (one * two).sum() / one.square().sum()
    angle = math.atan2(across.norm(), (one * two).sum() / one.norm())
    return (math.sin((1 - t) * angle) * one + math.sin(t * angle) * two) / math.sin(angle)


def test_by_hand():
    east, north = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    third = merge_tensors(Slerp(t=1 / 3), [east, north])
    assert torch.allclose(third, torch.tensor([math.sqrt(3), 1.0]))
    assert torch.equal(merge_tensors(Slerp(t=0.0), [east, north]), east)
    assert torch.equal(merge_tensors(Slerp(t=1.0), [east, north]), north)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("spread", [3.0, 0.5, 1e-2, 1e-4])
def test_oracle(t, spread):
    _, sources = models(2, spread=spread)
    counters = Counter()
    merged = merge_tensors(Slerp(t=t), sources, counters=counters)
    assert gap(merged, oracle(*sources, t)) < 2
    assert not counters


def test_oracle_mergekit_at_angles_where_it_follows_the_circle():
    for spread in (3.0, 0.5):
        _, sources = models(2, spread=spread)
        assert gap(merge_tensors(Slerp(t=0.3), sources), mergekit("slerp", sources[1:], sources[0], t=0.3)) < 8


def test_known_difference_from_mergekit_its_line_is_up_to_an_eighth_of_the_angle_squared_off():
    _, sources = models(2, spread=0.02)
    cosine = torch.nn.functional.cosine_similarity(*[s.flatten().double() for s in sources], dim=0)
    assert 0.9995 < cosine < 0.99999
    difference = (merge_tensors(Slerp(t=0.5), sources) - mergekit("slerp", sources[1:], sources[0], t=0.5)).norm() / sources[0].norm()
    assert difference == pytest.approx(float(torch.acos(cosine)) ** 2 / 8, rel=0.1)


def test_invariant_the_way_back_is_the_way():
    _, sources = models(2)
    assert gap(merge_tensors(Slerp(t=0.3), sources), merge_tensors(Slerp(t=0.7), sources[::-1])) < 2
    lengths = [torch.nn.functional.normalize(s.flatten(), dim=0) for s in sources]
    assert merge_tensors(Slerp(t=0.3), lengths).norm().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_parallel_and_equal_models(factor):
    base, _ = models(0, shape=(100, 100))
    counters = Counter()
    merged = merge_tensors(Slerp(t=0.25), [base, base * factor], counters=counters)
    assert gap(merged, base.double() * (0.75 + 0.25 * factor)) < 2
    if factor == 1.0:
        assert torch.equal(merged, base)
        assert counters == {"slerp_parallel": 1}


def test_opposite_models_and_zeros_take_the_line_and_say_so():
    base, _ = models(0, shape=(100, 100))
    zero, counters = torch.zeros_like(base), Counter()
    assert gap(merge_tensors(Slerp(t=0.25), [base, -base], counters=counters), base.double() / 2) < 2
    assert gap(merge_tensors(Slerp(t=0.5), [base, base * -3], counters=counters), -base.double()) < 2
    assert counters == {"slerp_opposite": 2}
    assert gap(merge_tensors(Slerp(t=0.25), [zero, base], counters=counters), base.double() / 4) < 2
    assert torch.equal(merge_tensors(Slerp(t=0.25), [zero, zero], counters=counters), zero)
    assert counters["slerp_zero_tensor"] == 2


def test_wrong_input():
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"slerp: {count} source.*, expected 2"):
            merge_tensors(Slerp(), models(count)[1])
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(pydantic.ValidationError, match="t\n"):
            Slerp(t=bad)
