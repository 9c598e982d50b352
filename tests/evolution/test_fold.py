import numpy as np
import pytest
import torch

import lmfuse.merge.piece as piece_module
from lmfuse.evolution.fold import Folded, MergedFold
from lmfuse.evolve.draws import uniform
from lmfuse.evolve.genome import Base, Cross, Jitter, Joined, Parent, Within, crossed, mixed
from lmfuse.evolve.program import program
from lmfuse.merge.dare import Dare
from lmfuse.merge.linear import Linear
from lmfuse.merge.model_stock import ModelStock
from lmfuse.merge.ties import Ties
from lmfuse.merge.varm import Varm
from lmfuse.merge.whole import merge_models, merge_tensors
from tests.merge.build import models

A, B, C = Parent(0), Parent(1), Parent(2)


def folded(genome, sources, base=None, name="tensor"):
    return merge_tensors(Folded(program(genome)), sources, base, name)


def test_by_hand():
    sources = [torch.tensor([8.0, 0.0]), torch.tensor([4.0, 1.0]), torch.tensor([0.0, 2.0])]
    assert folded(mixed([(0.25, A), (0.75, C)]), sources).tolist() == [2.0, 1.5]
    assert folded(Within(mixed([(2.0, A), (-1.0, B)])), sources).tolist() == [8.0, 0.0]
    assert folded(mixed([(0.5, Base()), (0.5, A)]), sources, torch.ones(2)).tolist() == [4.5, 0.5]


def test_a_cross_takes_each_number_from_one_of_both_by_its_own_draw():
    _, (one, other) = models(2, shape=(30, 40))
    child = folded(Cross(A, B, 0.3, seed=9), [one, other], name="w")
    changed = torch.from_numpy(uniform(9, "w", 0, 1200) < 0.3).view(30, 40)
    assert torch.equal(child, torch.where(changed, other, one))
    assert 0.25 < changed.float().mean() < 0.35
    assert not torch.equal(child, folded(Cross(A, B, 0.3, seed=9), [one, other], name="v"))


def test_oracle_a_mixture_is_the_linear_method_to_the_last_bit():
    _, sources = models(3, spread=1e-3)
    for weights in ((0.2, 0.5, 0.3), (1.5, -0.5, 0.25), (1 / 3, 1 / 3, 1 / 3)):
        found = folded(mixed(list(zip(weights, (A, B, C), strict=True))), sources)
        assert torch.equal(found, merge_tensors(Linear(weights=weights, normalise=False), sources))


def test_a_jitter_stays_within_its_size():
    _, (one,) = models(1)
    ratio = folded(Jitter(A, 0.1, seed=2), [one]) / one
    assert 0.9 <= float(ratio.min()) < 0.92
    assert 1.08 < float(ratio.max()) <= 1.1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cr_0_gives_the_members_bytes_and_f_1_cr_1_the_references(dtype):
    _, sources = models(3, dtype=dtype)
    for f in (0.1, 0.5, 1.0):
        assert torch.equal(folded(crossed(A, mixed([(1 - f, A), (f, B)]), 0.0, 1), sources), sources[0])
    assert torch.equal(folded(crossed(A, mixed([(0.0, A), (1.0, B)]), 1.0, 1), sources), sources[1])
    assert torch.equal(folded(Within(A), sources), sources[0])


def lineage(length):
    """Return a genome of many generations in which every kind of part stands."""
    members = [A, B, C]
    for step in range(length):
        one, other = members[step % 3], members[(step + 1) % 3]
        members[step % 3] = crossed(one, Within(mixed([(0.7, one), (0.5, other), (-0.2, Jitter(other, 0.01, step))])), 0.5, step)
    return mixed([(0.5, members[0]), (0.5, members[1])])


@pytest.mark.parametrize("elements", [13, 64, 1000])
def test_a_cut_changes_no_byte(elements, monkeypatch):
    _, sources = models(3, shape=(25, 40))
    whole = folded(lineage(9), sources)
    monkeypatch.setattr(piece_module, "PIECE_ELEMENTS", elements)
    assert torch.equal(folded(lineage(9), sources), whole)


def test_oracle_a_lineage_computed_generation_by_generation_on_whole_tensors():
    _, sources = models(3, shape=(25, 40))
    exact = [source.double().numpy() for source in sources]
    low, high = np.min(exact, 0), np.max(exact, 0)
    members = list(exact)
    for step in range(9):
        one, other = members[step % 3], members[(step + 1) % 3]
        shaken = other * (1 + 0.01 * (2 * uniform(step, "tensor", 0, 1000).astype(np.float64).reshape(25, 40) - 1))
        mutant = np.clip(0.7 * one + 0.5 * other - 0.2 * shaken, low, high)
        members[step % 3] = np.where(uniform(step, "tensor", 0, 1000).reshape(25, 40) < 0.5, mutant, one)
    found = folded(lineage(9), sources).numpy()
    assert np.abs(found - (members[0] + members[1]) / 2).max() < 1e-5


MERGERS = [Linear(weights=(1, 2)), Ties(density=0.4), Dare(seed=3), ModelStock(), Varm(granularity="layer")]


@pytest.mark.parametrize("method", MERGERS, ids=lambda method: method.name)
def test_a_merged_population_is_the_merge_of_its_members(method):
    base, sources = models(3, shape=(25, 40))
    names = ("layers.0.a", "layers.0.b", "norm")
    held = [{name: source * (1 + 0.1 * n) for n, name in enumerate(names)} for source in sources]
    ground = dict.fromkeys(names, base)
    genomes = (crossed(A, B, 0.5, 1), mixed([(0.5, A), (0.5, C)]))
    members = [merge_models(Folded(program(genome)), held) for genome in genomes]
    found = merge_models(MergedFold(method, program(Joined(genomes))), held, ground)
    for name, tensor in merge_models(method, members, ground).items():
        assert torch.equal(found[name], tensor)


def test_wrong_input():
    _, sources = models(2)
    with pytest.raises(ValueError, match="a genome of parent 2, with 2 parents"):
        folded(C, sources)
    with pytest.raises(ValueError, match="a genome of the base, without a base"):
        folded(mixed([(0.5, Base()), (0.5, A)]), sources)
    with pytest.raises(ValueError, match="ties: no base model"):
        merge_tensors(MergedFold(Ties(), program(Joined((A, B)))), sources)
