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
    nobody = np.zeros((2, 3), bool)
    assert [Safe(threshold=t).first_doubt(nll, tokens, nobody) for t in (0.05, 0.5, 0.58, 0.61)] == [3, 2, 1, 0]
    assert Safe(threshold=0).first_doubt(nll, tokens, nobody) == 3


def test_what_a_model_would_write_itself_is_certain_to_it():
    nll, tokens = -np.log([[0.3, 0.3], [0.2, 0.2]]), np.ones((2, 2))
    own = np.array([[True, False], [True, True]])
    assert Safe(threshold=0.64).first_doubt(nll, tokens, own) == 2  # (1 + 1) / 2, (0.3 + 1) / 2
    assert Safe(threshold=0.66).first_doubt(nll, tokens, own) == 1
    assert Safe(threshold=1.0).first_doubt(nll[:, :1], tokens[:, :1], own[:, :1]) == 1


def test_a_token_in_place_of_a_likelier_one_outweighs_nobody():
    # the first judge: exp(2); the second: exp(-8)
    nll = np.array([[-2.0], [8.0]])
    assert Safe(threshold=0.51).first_doubt(nll, np.ones((2, 1)), np.zeros((2, 1), bool)) == 0
    assert Safe(threshold=0.50).first_doubt(nll, np.ones((2, 1)), np.zeros((2, 1), bool)) == 1


def test_the_checkers_weights_count_without_the_reference_models():
    nll, nobody = -np.log([[0.9], [0.1]]), np.zeros((2, 1), bool)
    assert [Safe(weights=w, threshold=0.6).first_doubt(nll, np.ones((2, 1)), nobody) for w in ((9, 1, 1), (0, 3, 1), (1, 0, 0))] == [
        0,
        1,
        1,
    ]
    with pytest.raises(ValueError, match="1 numbers for 2 models"):
        Safe(weights=(1, 1)).first_doubt(nll, np.ones((2, 1)), nobody)


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0, 9)), min_size=1, max_size=12), st.data())
def test_words_against_a_loop(tokens, data):
    ends = np.cumsum([size for size, _ in tokens]).tolist()
    likeliest = [cost < 5 for _, cost in tokens]
    words = sorted({*data.draw(st.lists(st.sampled_from(ends), max_size=5)), ends[-1]})
    costs, counts, own = words_of(ends, [cost for _, cost in tokens], likeliest, words)
    begin = 0
    for place, word in enumerate(words):
        inside = [cost for end, (_, cost) in zip(ends, tokens, strict=True) if begin < end <= word]
        assert costs[place] == pytest.approx(sum(inside))
        assert counts[place] == max(1, len(inside))
        assert own[place] == (bool(inside) and max(inside) < 5)
        begin = word
    assert sum(costs) == pytest.approx(sum(cost for _, cost in tokens))


def test_tokens_behind_the_last_word_do_not_count():
    assert words_of([2, 4, 6], [1.0, 2.0, 4.0], [True, True, False], [4]) == ([3.0], [2.0], [True])


def test_wrong_settings():
    for wrong in ({"words": 0}, {"threshold": 1.5}, {"threshold": -0.1}, {"draft": 3}, {"weights": (0, 0)}):
        with pytest.raises(ValueError, match=r"validation error|all 2 are 0"):
            Safe(**wrong)
