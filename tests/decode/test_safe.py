"""SAFE: doubts by hand, an oracle for words, invariants, wrong input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmfuse.decode.safe import Safe, words_of


def test_the_first_word_that_is_doubted():
    # probabilities per token: judge 1: 0.9, 0.5, 0.1; judge 2: 0.3, 0.6 (two tokens), 0.1
    nll = -np.log([[0.9, 0.5, 0.1], [0.3, 0.36, 0.1]])
    tokens = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 1.0]])
    assert [Safe(threshold=t).first_doubt(nll, tokens) for t in (0.05, 0.5, 0.58, 0.61)] == [3, 2, 1, 0]
    assert Safe(threshold=0).first_doubt(nll, tokens) == 3


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0, 9)), min_size=1, max_size=12), st.data())
def test_words_against_a_loop(tokens, data):
    ends = np.cumsum([size for size, _ in tokens]).tolist()
    words = sorted({*data.draw(st.lists(st.sampled_from(ends), max_size=5)), ends[-1]})
    costs, counts = words_of(ends, [cost for _, cost in tokens], words)
    begin = 0
    for place, word in enumerate(words):
        inside = [cost for end, (_, cost) in zip(ends, tokens, strict=True) if begin < end <= word]
        assert costs[place] == pytest.approx(sum(inside))
        assert counts[place] == max(1, len(inside))
        begin = word
    assert sum(costs) == pytest.approx(sum(cost for _, cost in tokens))


def test_tokens_behind_the_last_word_do_not_count():
    assert words_of([2, 4, 6], [1.0, 2.0, 4.0], [4]) == ([3.0], [2.0])


def test_wrong_settings():
    for wrong in ({"words": 0}, {"threshold": 1.5}, {"threshold": -0.1}, {"draft": 3}, {"weights": (0, 0)}):
        with pytest.raises(ValueError, match=r"validation error|all 2 are 0"):
            Safe(**wrong)
