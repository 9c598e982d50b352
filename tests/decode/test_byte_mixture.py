"""ByteMixture, PackLLM and Unite: by hand, oracles, invariants, wrong input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmfuse.decode.byte_mixture import ByteMixture, mix
from lmfuse.decode.pack_llm import PackLLM
from lmfuse.decode.unite import Unite


def logs(*rows):
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows))


def padded(*rows):
    found = np.full((len(rows), 257), -np.inf)
    found[:, : len(rows[0])] = logs(*rows)
    return found


def test_a_mixture_by_hand():
    np.testing.assert_allclose(np.exp(ByteMixture()(padded([0.5, 0.5, 0], [0.1, 0, 0.9])))[:3], [0.3, 0.25, 0.45])
    np.testing.assert_allclose(np.exp(ByteMixture(weights=(3, 1))(padded([0.5, 0.5, 0], [0.1, 0, 0.9])))[:3], [0.4, 0.375, 0.225])


def test_a_model_that_expects_nothing_has_no_part():
    np.testing.assert_allclose(np.exp(ByteMixture()(padded([0.25, 0.75], [0, 0])))[:2], [0.25, 0.75])
    assert np.isneginf(ByteMixture()(padded([0, 0], [0, 0]))).all()
    assert np.isneginf(mix(padded([0.25, 0.75], [0, 0]), (0.0, 1.0))).all()


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_a_mixture_is_a_distribution_and_of_equals_the_same(num_models, seed):
    random = np.random.default_rng(seed)
    rows = logs(*random.dirichlet(np.ones(257), num_models))
    weights = tuple(random.random(num_models) + 0.1)
    mixed = ByteMixture(weights=weights)(rows)
    np.testing.assert_allclose(np.exp(mixed), np.average(np.exp(rows), axis=0, weights=weights), rtol=1e-9)
    np.testing.assert_allclose(ByteMixture(weights=weights)(np.repeat(rows[:1], num_models, 0)), rows[0], atol=1e-12)


def test_packing_by_hand():
    cost = np.array([0.5, 0.7])
    expected = np.exp([-5.0, -7.0]) / np.exp([-5.0, -7.0]).sum()
    np.testing.assert_allclose(PackLLM()(cost), expected)
    np.testing.assert_allclose(PackLLM(temperature=0)(np.array([0.5, 0.7, 0.5])), [0.5, 0, 0.5])
    np.testing.assert_allclose(PackLLM()(np.array([np.nan, 0.3])), [0, 1])
    np.testing.assert_allclose(PackLLM()(np.array([np.nan, np.nan])), [0.5, 0.5])
    np.testing.assert_allclose(PackLLM()(cost + 3), PackLLM()(cost))


def test_a_union_by_hand():
    rows = logs([0.4, 0.4, 0.0], [0.05, 0.1, 0.05])  # own sums: 0.8 and 0.2
    choice = Unite()(rows, [[0], [0, 1], [1]])
    np.testing.assert_allclose(np.exp(-choice.scores), [(0.5 + 0.25) / 2, (0.5 + 0.5) / 2, (0 + 0.25) / 2])
    assert choice.index == 1
    np.testing.assert_allclose(np.exp(-Unite(weights=(0, 2))(rows, [[0], [0], [1]]).scores), [0.25, 0.5, 0.25])


def test_a_model_that_can_write_none_has_no_part_in_the_mean():
    rows = logs([0.4, 0.4], [0.0, 0.0], [0.1, 0.3])
    np.testing.assert_allclose(np.exp(-Unite()(rows, [[0], [2]]).scores), [(0.5 + 0.25) / 2, (0.5 + 0.75) / 2])
    np.testing.assert_allclose(np.exp(-Unite(weights=(1, 5, 3))(rows, [[0], [2]]).scores), [(0.5 + 3 * 0.25) / 4, (0.5 + 3 * 0.75) / 4])
    assert np.isposinf(Unite()(logs([0.0, 0.0]), [[0], [0]]).scores).all()


def test_equal_strings_go_to_the_leader():
    rows = logs([0.5, 0.5], [0.5, 0.5])
    assert Unite()(rows, [[0], [1]]).index == 0
    assert Unite()(rows, [[0], [1]], leader=1).index == 1


def test_one_model_and_any_number_of_its_twins_agree():
    row = logs([0.2, 0.5, 0.3])
    assert Unite()(row, [[0]] * 3).index == Unite()(np.repeat(row, 3, 0), [[0]] * 3).index == 1


@pytest.mark.parametrize("method", [ByteMixture, Unite])
def test_wrong_weights(method):
    with pytest.raises(ValueError, match="all 2 are 0"):
        method(weights=(0, 0))
    rows = padded([0.5, 0.5], [0.5, 0.5])
    with pytest.raises(ValueError, match="3 numbers for 2 models"):
        method(weights=(1, 2, 3))(*((rows,) if method is ByteMixture else (rows[:, :2], [[0], [1]])))


def test_wrong_settings():
    for wrong in (lambda: PackLLM(temperature=-1), lambda: PackLLM(temperature=float("inf")), lambda: Unite(top_k=0)):
        with pytest.raises(ValueError, match="validation error"):
            wrong()
