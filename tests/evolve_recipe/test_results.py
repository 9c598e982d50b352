"""What a winner has of each parent."""

import pytest

from lmfuse.evolve.genome import Base, Cross, Jitter, Joined, Numbers, Parent, Within, mixed
from lmfuse.evolve_recipe.results import genes

A, B, C = Parent(0), Parent(1), Parent(2)
LABELS = ("a", "b", "c")


def test_by_hand():
    child = Cross(mixed([(0.5, A), (0.5, B)]), C, 0.25, seed=3)
    assert genes(child, (), LABELS)["values"] == [[0.375, 0.375, 0.25]]
    assert genes(Within(Jitter(mixed([(1.5, A), (-0.5, C)]), 0.1, 1)), (), LABELS)["values"] == [[1.5, 0.0, -0.5]]
    assert genes(Joined((A, child)), (), LABELS)["values"] == [pytest.approx([0.6875, 0.1875, 0.125])]
    assert genes(mixed([(0.5, Base()), (0.5, B)]), (), LABELS)["values"] == [[0.0, 0.5, 0.0]]


def test_coefficients_stand_by_group():
    found = genes(Numbers((0.1, 0.2, 0.3, 0.4, 0.5, 0.6)), ("x", "y"), LABELS)
    assert found == {"groups": ["x", "y"], "parents": ["a", "b", "c"], "values": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]}


def test_invariant_shares_of_averages_sum_to_one_along_a_lineage_longer_than_the_stack():
    genome = A
    for generation in range(3000):
        genome = Cross(genome, (A, B, C)[generation % 3], 0.3, seed=generation)
        assert genome.key  # as in a search, each is known before the next is bred
    assert sum(genes(genome, (), LABELS)["values"][0]) == pytest.approx(1)
