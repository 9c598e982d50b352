import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmfuse.evolve.draws import BLOCK, below, derived, uniform


@given(st.integers(0, 3 * BLOCK), st.integers(0, 200), st.integers(0, 2**48))
def test_a_cut_changes_nothing(start, length, seed):
    whole = uniform(seed, "w", 0, start + length)
    assert np.array_equal(uniform(seed, "w", start, start + length), whole[start:])


def test_numbers_by_hand():
    raw = np.random.SFC64(int.from_bytes(hashlib.sha256(b"0\nw\n0").digest()[:16], "little")).random_raw(2)
    words = [half for each in raw for half in (int(each) % 2**32, int(each) // 2**32)]
    assert uniform(0, "w", 0, 3).tolist() == [word // 256 / 2**24 for word in words[:3]]
    assert uniform(0, "w", 5, 5).tolist() == []


def test_they_are_even_and_belong_to_seed_name_and_block():
    numbers = uniform(1, "w", 0, 2 * BLOCK)
    counts = np.histogram(numbers, bins=16, range=(0, 1))[0]
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert ((counts - 2 * BLOCK / 16) ** 2 / (2 * BLOCK / 16)).sum() < 50  # chi square of 15 degrees: 1 in 10^5
    for other in (uniform(2, "w", 0, BLOCK), uniform(1, "v", 0, BLOCK), uniform(1, "w", BLOCK, 2 * BLOCK)):
        assert abs(np.corrcoef(numbers[:BLOCK], other)[0, 1]) < 0.02


def test_a_rate_that_nearly_is_1():
    for rate in (1 - 1e-9, 1.0):
        assert below(rate, 1, "w", 3, 99).tolist() == [True] * 96
    assert below(0.0, 1, "w", 3, 99).tolist() == [False] * 96
    rate = 1 - 2**-24  # the nearest one that leaves a number out
    assert np.array_equal(below(rate, 1, "w", 0, 99), uniform(1, "w", 0, 99) < rate)


def test_derived_seeds_differ():
    assert len({derived(0, "turn", n) for n in range(1000)} | {derived(1, "turn", n) for n in range(1000)}) == 2000
    assert derived(0, 12, 3) != derived(0, 1, 23)
