import pytest
import torch

from lmfuse.errors import InputError
from lmfuse.evolution.express import Expression
from lmfuse.evolution.fold import Folded, MergedFold
from lmfuse.evolve.genome import Joined, Numbers, Parent
from lmfuse.merge.linear import Linear
from lmfuse.merge.model_stock import ModelStock
from lmfuse.merge.slerp import Slerp
from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.merge.ties import Ties
from tests.evolution.toys import corners

NAMES = ("embed.weight", "layers.0.a", "layers.0.b", "layers.1.a", "norm.weight")


def test_groups_and_weights_by_hand():
    layer = Expression("layer", NAMES, 2)
    assert layer.groups == ("embed.weight", "layers.0", "layers.1", "norm.weight")
    methods = layer.methods(Numbers((1.0, 0.0, 0.25, 0.75, 0.5, 0.5, 0.0, 1.0)), NAMES)
    assert [methods[name].weights for name in NAMES] == [(1.0, 0.0), (0.25, 0.75), (0.25, 0.75), (0.5, 0.5), (0.0, 1.0)]
    assert len(Expression("tensor", NAMES, 2).groups) == 5


@pytest.mark.parametrize("method", [None, Linear(), TaskArithmetic(), TaskArithmetic(scale=1.0)])
@pytest.mark.parametrize("genes", ["scalar", "tensor", "layer"])
def test_an_individual_is_exactly_its_parent(genes, method):
    parents = corners(3, base=True)
    expression = Expression(genes, parents.names, 3, None if genes == "scalar" else method)
    for index, model in enumerate(parents.models.values()):
        child = parents.made(expression, expression.individual(index))
        assert all(torch.equal(child[name], model[name]) for name in model)


def test_a_method_keeps_its_other_numbers():
    methods = Expression("layer", NAMES, 2, Ties(density=0.3)).methods(Numbers((0.5,) * 8), NAMES)
    assert methods["norm.weight"] == Ties(density=0.3, weights=(0.5, 0.5))


def test_scalar_genes_are_folded_and_populations_merged():
    scalar = Expression("scalar", NAMES, 2, Ties())
    assert scalar.with_merger
    assert isinstance(scalar.methods(Parent(0), NAMES)["norm.weight"], Folded)
    assert isinstance(scalar.methods(Joined((Parent(0), Parent(1))), NAMES)["norm.weight"], MergedFold)
    assert not Expression("layer", NAMES, 2, Ties()).with_merger


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (Expression("tensor", NAMES, 2, ModelStock()), "express: model_stock has no weights"),
        (Expression("tensor", NAMES, 2, Slerp()), "express: slerp has no weights"),
        (Expression("tensor", NAMES, 2, Ties()), "express: ties: no base model"),
        (Expression("scalar", NAMES, 3, Slerp()), "express: slerp: 3 sources, expected 2"),
        (Expression("layer", NAMES, 2, low=1.0, high=1.0), "bounds: 1 to 1, expected low < high"),
    ],
)
def test_wrong_input(expression, message):
    with pytest.raises(InputError, match=message):
        expression.checked(has_base=False)
    with pytest.raises(ValueError, match="3 coefficients for 4 groups of 2 parents"):
        Expression("layer", NAMES, 2).methods(Numbers((0.1, 0.2, 0.3)), NAMES)
    with pytest.raises(ValueError, match="weights: all are 0"):
        Expression("layer", NAMES, 2).methods(Numbers((0.0,) * 8), NAMES)
