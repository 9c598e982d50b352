import pytest

from lmfuse.evolve.genome import Cross, Jitter, Mix, Numbers, Parent, Within, crossed, filled, jittered, mixed, repaired
from lmfuse.evolve.program import from_program, parts_of, program

A, B, C = Parent(0), Parent(1), Parent(2)


def test_mixtures_by_hand():
    half = mixed([(0.5, A), (0.5, B)])
    assert mixed([(1.0, C), (0.5, half), (-0.5, B)]) == Mix((A, B, C), (0.25, -0.25, 1.0))
    assert mixed([(0.5, half), (0.5, half)]) == half
    assert mixed([(0.3, B), (0.7, Within(C))]) == mixed([(0.7, Within(C)), (0.3, B)])
    assert mixed([(1.0, A), (0.5, B), (-0.5, B)]) == A
    vectors = mixed([(2.0, Numbers((0.1, 0.4))), (-1.0, Numbers((0.1, 0.5)))])
    assert vectors.values == pytest.approx((0.1, 0.3))


def test_equal_recipes_are_equal_and_others_are_not():
    assert crossed(A, B, 0.5, 1) == crossed(Parent(0), Parent(1), 0.5, 1)
    assert len({crossed(A, B, 0.5, 1), crossed(A, B, 0.5, 2), crossed(B, A, 0.5, 1), crossed(A, B, 0.4, 1), A, B, Within(A)}) == 7
    assert Numbers((0.5,)) != Numbers((0.5,), high=2.0)


def test_crossing_vectors_takes_about_the_share():
    child = crossed(Numbers((0.0,) * 4000), Numbers((1.0,) * 4000), 0.3, seed=5)
    assert 0.27 < sum(child.values) / 4000 < 0.33
    assert child == crossed(Numbers((0.0,) * 4000), Numbers((1.0,) * 4000), 0.3, seed=5)


def test_repair():
    average = mixed([(0.3, crossed(A, B, 0.5, 1)), (0.7, C)])
    assert repaired(average) is average
    beyond = mixed([(1.5, A), (-0.5, B)])
    assert repaired(beyond) == Within(beyond)
    assert repaired(mixed([(0.5, repaired(beyond)), (0.5, A)])).inside
    assert isinstance(repaired(Jitter(A, 0.1, 1)), Within)
    assert repaired(Numbers((-0.25, 2.5, -9.0, 0.5), 0.0, 2.0)).values == (0.25, 1.5, 2.0, 0.5)


def test_copies_fill_a_population():
    members = filled([Numbers((0.0, 1.0)), Numbers((1.0, 0.0))], 5, 0.1, seed=1)
    assert len(set(members)) == 5
    for copy, of in zip(members[2:], [0, 1, 0], strict=True):
        pairs = zip(copy.values, members[of].values, strict=True)
        assert all(abs(x - y) <= 0.1 and 0 <= x <= 1 for x, y in pairs)
    assert filled([A, B, C], 2, 0.1, seed=1) == [A, B, C]
    assert jittered(A, 0.0, 1) == A


def test_a_program_leads_back():
    child = Within(mixed([(1.5, crossed(A, mixed([(0.5, A), (0.5, B)]), 0.25, 7)), (-0.5, Jitter(C, 0.05, 9))]))
    lines = program(child)
    assert from_program(lines) == child
    assert len(lines) == 8  # three parents, two mixtures, cross, jitter, within: each once
    assert parts_of(child)[0] == child.inner
    with pytest.raises(ValueError, match="instruction 0 of a genome: 'exec'"):
        from_program([["exec", "rm"]])
    with pytest.raises(ValueError, match="without instructions"):
        from_program([])


def test_a_long_lineage_is_no_long_recursion():
    genome = A
    for seed in range(5000):
        genome = Cross(genome, B, 0.5, seed)
        assert genome.key
    lines = program(genome)
    assert len(lines) == 5002
    assert from_program(lines).key == genome.key
