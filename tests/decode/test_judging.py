"""Scores by hand, an oracle, invariants, wrong input: what Cool, Rerank and CoolRerank have in common."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmfuse.decode.judging import Judged, Judging, choose, scores

# two judges, three candidates; perplexities (2, 4, 3) and (8, 2, 3)
TWO = Judged(np.log([[4.0, 4.0, 27.0], [8.0, 4.0, 9.0]]), np.array([[2, 1, 3], [1, 2, 2]]), np.array([6, 3, 9]))


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("perplexity", [(2 + 8) / 2, (4 + 2) / 2, 3.0]),
        ("nats_per_token", np.log([4.0, np.sqrt(8), 3.0])),
        ("nats_per_byte", [np.log(32) / 12, np.log(16) / 6, np.log(243) / 18]),
        ("rank", [(0 + 2) / 2, (2 + 0) / 2, 1.0]),
    ],
)
def test_scores_by_hand(score, expected):
    np.testing.assert_allclose(scores(TWO, score), expected, rtol=1e-12)


def test_weights_by_hand():
    np.testing.assert_allclose(scores(TWO, "perplexity", (3.0, 1.0)), [(3 * 2 + 8) / 4, (3 * 4 + 2) / 4, 3.0])
    np.testing.assert_allclose(scores(TWO, "perplexity", (0.0, 5.0)), [8.0, 2.0, 3.0])


def test_a_judge_that_abstains_is_not_asked_and_one_that_cannot_write_it_decides():
    judged = Judged(np.array([[np.nan, 2.0, 3.0], [1.0, np.inf, 2.0]]), np.ones((2, 3), int), np.ones(3, int))
    np.testing.assert_allclose(scores(judged, "nats_per_token"), [1.0, np.inf, 2.5])
    assert scores(judged, "rank")[1] == np.inf


def test_ranks_share_places():
    judged = Judged(np.array([[1.0, 1.0, 2.0, 0.5]]), np.ones((1, 4), int), np.ones(4, int))
    np.testing.assert_allclose(scores(judged, "rank"), [1.5, 1.5, 3.0, 0.0])


@given(st.data())
def test_against_loops(data):
    judges, candidates = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    draw = lambda low, high: data.draw(st.lists(st.integers(low, high), min_size=judges * candidates, max_size=judges * candidates))  # noqa: E731
    nll, tokens = np.reshape(draw(0, 40), (judges, candidates)) / 4, np.reshape(draw(1, 6), (judges, candidates))
    sizes = np.arange(1, candidates + 1)
    for n in range(candidates):
        rows = range(judges)
        perplexity = sum(np.exp(nll[v, n] / tokens[v, n]) for v in rows) / judges
        rates = nll / tokens
        rank = sum(sum(rates[v, m] < rates[v, n] for m in range(candidates)) for v in rows) / judges
        rank += sum(sum(rates[v, m] == rates[v, n] for m in range(candidates)) - 1 for v in rows) / judges / 2
        judged = Judged(nll, tokens, sizes)
        assert scores(judged, "perplexity")[n] == pytest.approx(perplexity)
        assert scores(judged, "nats_per_byte")[n] == pytest.approx(sum(nll[v, n] / sizes[n] for v in rows) / judges)
        assert scores(judged, "rank")[n] == pytest.approx(rank)


@pytest.mark.parametrize("score", ["perplexity", "nats_per_token", "nats_per_byte", "rank"])
def test_the_order_of_judges_does_not_matter_nor_does_one_that_is_asked_twice(score):
    swapped = Judged(TWO.nll_nats[::-1], TWO.tokens[::-1], TWO.num_bytes)
    doubled = Judged(np.repeat(TWO.nll_nats, 2, 0), np.repeat(TWO.tokens, 2, 0), TWO.num_bytes)
    np.testing.assert_allclose(scores(swapped, score), scores(TWO, score))
    np.testing.assert_allclose(scores(doubled, score), scores(TWO, score))


def test_ties_go_to_the_leader_then_to_the_lowest_index():
    equal = np.array([1.0, 1.0, 2.0])
    assert choose(equal, [[1], [0, 2], [3]], leader=None).index == 1
    assert choose(equal, [[1], [0, 2], [3]], leader=1).index == 0
    assert choose(equal, [[1], [0, 2], [3]], leader=2).index == 1
    assert choose(equal, [[1], [0, 2], [3]], leader=3).index == 1  # the leader's own is worse


def test_wrong_input():
    with pytest.raises(ValueError, match="3 numbers for 2 models"):
        Judging(weights=(1, 2, 3))(TWO, [[0], [1], [2]])
    with pytest.raises(ValueError, match="all 2 are 0"):
        Judging(weights=(0, 0))
    with pytest.raises(ValueError, match="no candidate that every model can write"):
        choose(np.array([np.inf, np.inf]), [[0], [1]], None)
    with pytest.raises(ValueError, match="score"):
        Judging(score="best")
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Judging(weights=(-1, 2))
