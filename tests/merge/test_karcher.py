from collections import Counter

import pydantic
import pytest
import torch

from lmfuse.merge.karcher import Karcher
from lmfuse.merge.whole import merge_tensors
from tests.merge.build import gap, mergekit, models, unit


def log_map(mean, point):
    across = point - (point * mean).sum() * mean
    angle = torch.atan2(across.norm(), (point * mean).sum())
    return across * (angle / across.norm()) if across.norm() > 0 else across


def oracle(sources, weights, steps=300):
    """Gradient descent on the sphere itself, in float64."""
    vectors, weights = [source.double() for source in sources], [weight / sum(weights) for weight in weights]
    mean = unit(sum(w * unit(v) for w, v in zip(weights, vectors, strict=True)))
    for _ in range(steps):
        step = sum(w * log_map(mean, unit(v)) for w, v in zip(weights, vectors, strict=True))
        if step.norm() < 1e-15:
            break
        mean = unit(mean * step.norm().cos() + unit(step) * step.norm().sin())
    return mean * sum(w * v.norm() for w, v in zip(weights, vectors, strict=True))


def test_by_hand_a_third_of_the_way_from_one_to_the_other():
    one, two = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 5.0])
    expected = torch.tensor([3**0.5 / 2, 0.5]) * 3  # at 30 degrees, 2/3 * 2 + 1/3 * 5 long
    assert torch.allclose(merge_tensors(Karcher(), [one, one, two]), expected)
    assert torch.allclose(merge_tensors(Karcher(weights=(2, 1)), [one, two]), expected)


@pytest.mark.parametrize("spread", [2.0, 0.5, 1e-4])
def test_oracle(spread):
    _, sources = models(4, spread=[spread, spread * 3, spread, spread * 2])
    weights = (1, 2, 1, 0.5)
    counters = Counter()
    assert gap(merge_tensors(Karcher(weights=weights), sources, counters=counters), oracle(sources, weights)) < 2
    assert not counters


def test_oracle_mergekit_whose_steps_end_at_1e_5():
    _, sources = models(3)
    assert gap(merge_tensors(Karcher(), sources), mergekit("karcher", sources)) < 200


def test_invariants():
    base, sources = models(3)
    assert gap(merge_tensors(Karcher(), sources), merge_tensors(Karcher(), sources[::-1])) < 2
    assert torch.equal(merge_tensors(Karcher(weights=(1, 2, 3)), [base] * 3), base)
    merged = merge_tensors(Karcher(), sources).double()
    pull = sum(log_map(unit(merged), unit(source.double())) for source in sources)
    assert pull.norm() < 1e-6  # nothing pulls at the mean


def test_zeros_opposites_and_impatience_are_counted():
    base, sources = models(2, spread=2.0)
    counters = Counter()
    zero = torch.zeros_like(base)
    assert torch.equal(merge_tensors(Karcher(), [zero, zero], counters=counters), zero)
    assert gap(merge_tensors(Karcher(), [zero, base]), base.double() / 2) < 2
    assert merge_tensors(Karcher(), [base, -base], counters=counters).isfinite().all()
    merge_tensors(Karcher(max_iterations=1), [*sources, base], counters=counters)
    assert counters == {"karcher_zero_tensor": 1, "karcher_no_direction": 1, "karcher_not_converged": 1}


def test_wrong_input():
    for bad in ({"weights": (1, -1)}, {"weights": (0.0, 0.0)}, {"max_iterations": 0}, {"tolerance": 0.0}, {"max_iter": 3}):
        with pytest.raises(pydantic.ValidationError, match=next(iter(bad))):
            Karcher(**bad)
    with pytest.raises(ValueError, match="karcher: weights: 2 numbers for 3 sources"):
        merge_tensors(Karcher(weights=(1, 2)), models(3)[1])
