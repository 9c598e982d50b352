import pydantic
import pytest
import torch

from lmfuse.merge.dare import Dare
from lmfuse.merge.della import Della
from lmfuse.merge.piece import Piece
from lmfuse.merge.whole import merge_tensors
from tests.merge.build import gap, mergekit, models
from tests.merge.test_dare import draws


def probabilities(method, changes, density, source=0):
    piece = Piece("tensor", 0, tuple(changes.shape), changes.flatten()[None], None)
    return torch.from_numpy(method.probabilities(piece, changes.flatten(), density, source)).view(changes.shape)


def test_by_hand():
    changes = torch.tensor([[0.5, -4.0, 1.0], [3.0, 2.0, -2.0]])
    chances = probabilities(Della(epsilon=0.2), changes, 0.5)
    assert torch.allclose(chances, torch.tensor([[0.3, 0.7, 0.5], [0.7, 0.3, 0.5]]))  # of 2 and -2 the first ranks lower
    merged = merge_tensors(Della(epsilon=0.2), [changes], torch.zeros(2, 3))
    assert torch.allclose(merged, torch.where(draws(0, 6).view(2, 3) < chances, changes / chances, 0.0))
    assert probabilities(Della(epsilon=0.2), torch.ones(3, 1), 0.5).tolist() == [[0.5]] * 3
    assert torch.allclose(probabilities(Della(epsilon=0.1), torch.tensor([3.0, 1.0]), 0.5), torch.tensor([0.6, 0.4]))


@pytest.mark.parametrize("then", ["linear", "ties"])
@pytest.mark.parametrize("shape", [(6, 40), (240,)])
def test_oracle_mergekit_given_the_same_draws(then, shape, monkeypatch):
    base, sources = models(3, shape=shape)
    weights, densities = (0.5, 1.0, 0.25), (0.3, 0.6, 1.0)
    method = Della(weights=weights, density=densities, epsilon=0.2, then=then, rescale="l1", scale=0.9)
    merged = merge_tensors(method, sources, base)
    sparsify = pytest.importorskip("mergekit.sparsify")
    calls = iter(range(3))
    monkeypatch.setattr(sparsify.torch, "bernoulli", lambda chance: (draws(next(calls)).view(chance.shape) < chance).to(chance))
    options = {"weight": list(weights), "density": list(densities), "epsilon": 0.2, "normalize": True, "lambda": 0.9}
    assert gap(merged, mergekit("della" if then == "ties" else "della_linear", sources, base, **options)) < 8


def test_oracle_without_a_range_it_is_dare():
    base, sources = models(3)
    for then in ("linear", "ties"):
        della, dare = Della(epsilon=0.0, then=then), Dare(then=then, normalise=True)
        assert gap(merge_tensors(della, sources, base), merge_tensors(dare, sources, base)) < 2


def test_invariants():
    base, sources = models(2, shape=(200, 500), spread=1.0)
    mean = sum(merge_tensors(Della(seed=seed), sources[:1], base) for seed in range(30)) / 30
    assert (mean - sources[0]).mean().abs() < 0.005  # the expected change stays
    large = (sources[0] - base).abs() > 1
    kept = merge_tensors(Della(), sources[:1], base) != base
    assert kept[large].float().mean() > 0.55 > 0.5 > kept[~large].float().mean()
    assert kept.float().mean() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(merge_tensors(Della(), [base, base], base), base)
    assert torch.equal(merge_tensors(Della(density=0.0), sources, base), base)


def test_wrong_input():
    for bad in ({"density": 0.1}, {"density": 0.9, "epsilon": 0.2}, {"density": (0.5, 0.1)}, {"epsilon": (0.1, 0.5), "density": 0.4}):
        with pytest.raises(pydantic.ValidationError, match="epsilon"):
            Della(**bad)
    assert Della(density=(0.0, 1.0, 0.2)).density == (0.0, 1.0, 0.2)
    base, sources = models(2)
    with pytest.raises(ValueError, match="della: epsilon: 3 numbers for 2 sources"):
        merge_tensors(Della(epsilon=(0.1, 0.1, 0.1)), sources, base)
    with pytest.raises(pydantic.ValidationError, match="density: 2 numbers for 3 sources"):
        Della(epsilon=(0.1, 0.1, 0.1), density=(0.5, 0.5))
