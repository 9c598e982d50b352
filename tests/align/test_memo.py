"""The table of answers against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmfuse.align.memo import START, Memo


def slow(key: int) -> int:
    return key % 1009 - 1


@given(st.lists(st.lists(st.integers(0, 2**62), max_size=40), max_size=8))
def test_equals_a_dictionary_and_asks_once(rounds: list[list[int]]) -> None:
    memo, asked = Memo(), []
    for keys in rounds:
        given_keys = np.array(keys, np.int64)

        def ask(places: np.ndarray, given_keys: np.ndarray = given_keys) -> np.ndarray:
            asked.extend(given_keys[places].tolist())
            return np.array([slow(key) for key in given_keys[places].tolist()], np.int64)

        assert memo(given_keys, ask).tolist() == [slow(key) for key in keys]
    assert len(asked) == len(set(asked)) == memo.size


@pytest.mark.parametrize("stride", [1, 1 << 20, 49_153])
def test_it_grows_and_forgets_nothing(stride: int) -> None:
    memo, keys = Memo(), np.arange(5 * START) * stride
    for part in np.split(keys, 5):
        memo(part, lambda places, part=part: part[places] % 7)
    assert len(memo.keys) >= 2 * len(keys)
    assert (memo(keys, lambda places: pytest.fail("asked again")) == keys % 7).all()


def test_no_questions_no_answers() -> None:
    assert len(Memo()(np.zeros(0, np.int64), lambda places: pytest.fail("asked"))) == 0
