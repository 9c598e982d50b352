import pydantic
import pytest
import torch

from lmfuse.merge.dare import Dare
from lmfuse.merge.piece import Piece
from lmfuse.merge.sparse import uniform
from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.merge.ties import Ties
from lmfuse.merge.whole import merge_tensors
from tests.merge.build import gap, mergekit, models


def draws(source, count=240, seed=0, name="tensor", start=0):
    return torch.from_numpy(uniform(seed, Piece(name, start, (count,), torch.zeros(1, count), None), source))


def test_by_hand():
    base = torch.full((240,), 1.0)
    kept = (draws(0) < 0.25).float()
    assert 0.15 < kept.mean() < 0.35
    assert torch.equal(merge_tensors(Dare(density=0.25), [base + 2], base), 1 + 8 * kept)
    assert torch.equal(merge_tensors(Dare(density=0.25, rescale="none", scale=0.5), [base + 2], base), 1 + kept)
    l1 = merge_tensors(Dare(density=0.25, rescale="l1"), [base + 2], base)
    assert torch.allclose(l1, 1 + 2 * 240 / kept.sum() * kept)
    other = (draws(1) < 0.25).float()
    against = merge_tensors(Dare(density=0.25, then="ties"), [base + 2, base - 1], base)
    assert torch.equal(against, 1 + 8 * kept - 4 * other * (1 - kept))


@pytest.mark.parametrize("then", ["linear", "ties"])
@pytest.mark.parametrize("normalise", [True, False])
def test_oracle_mergekit_given_the_same_draws(then, normalise, monkeypatch):
    base, sources = models(3)
    weights, densities = (0.5, 1.0, 0.25), (0.3, 0.6, 1.0)
    method = Dare(weights=weights, density=densities, then=then, normalise=normalise, rescale="l1", scale=0.9)
    merged = merge_tensors(method, sources, base)
    sparsify = pytest.importorskip("mergekit.sparsify")
    calls = iter(range(3))
    monkeypatch.setattr(sparsify.torch, "bernoulli", lambda chance: (draws(next(calls)).view(6, 40) < chance).to(chance))
    options = {"weight": list(weights), "density": list(densities), "normalize": normalise, "lambda": 0.9}
    assert gap(merged, mergekit(f"dare_{then}", sources, base, **options)) < 8


def test_oracle_nothing_dropped_is_task_arithmetic_or_ties():
    base, sources = models(3)
    weights = (0.5, 1.0, 0.25)
    for rescale in ("probability", "l1", "none"):
        dare = Dare(weights=weights, density=1.0, rescale=rescale)
        assert gap(merge_tensors(dare, sources, base), merge_tensors(TaskArithmetic(weights=weights), sources, base)) < 2
        dare = Dare(weights=weights, density=1.0, rescale=rescale, then="ties", normalise=True)
        assert gap(merge_tensors(dare, sources, base), merge_tensors(Ties(weights=weights, density=1.0), sources, base)) < 2


def test_invariants():
    base, sources = models(2, shape=(200, 500), spread=1.0)
    mean = sum(merge_tensors(Dare(density=0.5, seed=seed), sources[:1], base) for seed in range(30)) / 30
    assert (mean - sources[0]).square().mean().sqrt() == pytest.approx(30**-0.5, rel=0.05)  # the expected change stays
    assert torch.equal(merge_tensors(Dare(), sources, base), merge_tensors(Dare(), sources, base))
    assert not torch.equal(merge_tensors(Dare(), sources, base), merge_tensors(Dare(seed=1), sources, base))
    assert not torch.equal(merge_tensors(Dare(), sources, base), merge_tensors(Dare(), sources, base, name="another"))
    assert torch.equal(merge_tensors(Dare(), [base, base], base), base)
    assert torch.equal(merge_tensors(Dare(density=0.0), sources, base), base)


def test_draws_are_uniform_and_never_change():
    many = draws(0, 2**16)
    assert many.min() >= 0
    assert many.max() < 1
    assert (many.histc(16, 0, 1) / 2**12 - 1).abs().max() < 0.06
    assert draws(0, 5).tolist() == draws(0, 6).tolist()[:5]
    assert [round(value, 6) for value in draws(1, 3, seed=7, start=10).tolist()] == [0.085708, 0.835389, 0.700257]


def test_wrong_input():
    base, sources = models(2)
    for bad in ({"density": 1.5}, {"rescale": "l2"}, {"then": "sce"}, {"seed": 0.5}, {"p": 0.9}):
        with pytest.raises(pydantic.ValidationError, match=next(iter(bad))):
            Dare(**bad)
    with pytest.raises(pydantic.ValidationError, match="sum to 0"):
        Dare(weights=(1, -1), normalise=True)
    with pytest.raises(ValueError, match="dare: density: 3 numbers for 2 sources"):
        merge_tensors(Dare(density=(0.5, 0.5, 0.5)), sources, base)
    with pytest.raises(ValueError, match="dare: no base model"):
        merge_tensors(Dare(), sources)
