"""Numbers at both ends of float32: squares that it cannot hold, in every method that squares."""

import warnings
from collections import Counter

import pytest
import torch

from lmfuse.merge.affine import combination
from lmfuse.merge.karcher import Karcher
from lmfuse.merge.linear import Linear
from lmfuse.merge.model_stock import ModelStock
from lmfuse.merge.multislerp import MultiSlerp
from lmfuse.merge.piece import Piece
from lmfuse.merge.sce import Sce
from lmfuse.merge.slerp import Slerp
from lmfuse.merge.ties import Ties
from lmfuse.merge.varm import Varm
from lmfuse.merge.whole import merge_tensors
from lmfuse.weights.deltas import TensorDeltas

WITH_BASE = [Sce(), Sce(tau=1.0), Sce(tau=0.3, variant="fuseai"), Varm(), ModelStock(), Ties(), MultiSlerp()]
WITHOUT = [Slerp(), Karcher(), MultiSlerp(), Linear()]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def models(seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(40, 50, generator=random)
    return [base, *(base + 1e-3 * torch.randn(40, 50, generator=random) for _ in range(2))]


@pytest.mark.parametrize("exponent", [-80, -100, 66, 100])
@pytest.mark.parametrize("method", [*WITH_BASE, *WITHOUT], ids=repr)
def test_a_power_of_two_times_the_models_is_as_much_times_the_result(method, exponent):
    """All methods commute with scaling; 2^-80 is 1e-24, 2^100 is 1e30."""
    base, *sources = models()
    scale = 2.0**exponent
    wanted = merge_tensors(method, sources, base if method in WITH_BASE else None)
    counters: Counter[str] = Counter()
    found = merge_tensors(method, [scale * each for each in sources], scale * base if method in WITH_BASE else None, counters=counters)
    assert torch.allclose(found / scale, wanted, rtol=1e-6, atol=1e-7)
    assert not counters
    if method in WITH_BASE:
        assert not torch.equal(found, scale * base)


@pytest.mark.parametrize("method", [*WITH_BASE, *WITHOUT], ids=repr)
def test_one_number_of_1e30(method):
    base, *sources = models()
    sources[0][3, 7] = 1e30
    found = merge_tensors(method, sources, base if method in WITH_BASE else None)
    assert bool(torch.isfinite(found).all())
    lowest = 0 if method == ModelStock() else 1e29  # one huge change has no angle with the other: the base stays
    assert lowest < float(found[3, 7]) <= 1.0001e30


def test_what_is_never_finite_is_one_line():
    with pytest.raises(ValueError, match=r"^a model would count 1e\+39 times"):
        combination([1e39, 1.0])


def test_distances_of_numbers_at_both_ends():
    for value in (torch.finfo(torch.float32).min, 1e30, 1e-24, 1e-44):
        base = torch.full((2, 4), value)
        deltas = TensorDeltas(2)
        deltas.see(0, Piece("t", 0, (2, 4), torch.stack([base, base / 2]).view(2, -1), base.view(-1)))
        record = deltas.record()
        assert record["equal"] == [True, False]
        assert record["differences"][1] == pytest.approx(record["base"] / 4, rel=0.1)
        assert 0 < record["base"] < float("inf")
        assert record["differences"][0] == 0
