import numpy as np
import pydantic
import pytest
import torch

from lmfuse.fuse.min_ce import MinCE, published_reward
from tests.fuse.build import alignment, as_dict, random_alignment

NAN = float("nan")
FIRST = alignment([{1: 0.5, 2: 0.25}, None, {3: 0.5}], truth=[0.7, NAN, 2.0])
SECOND = alignment([{4: 1.0}, {5: 0.75}, {6: 0.25}], truth=[0.9, 0.3, 1.0])


def test_by_hand_the_less_surprised_source_teaches_the_document():
    fused = MinCE()([FIRST, SECOND], np.array([0.8, 0.9]))
    assert fused.winner.tolist() == [0, -1, 0]  # the winner has no row for the second token: nobody steps in
    assert fused.taught.tolist() == [True, False, True]
    assert as_dict(fused.topk, 0) == pytest.approx({1: 0.5, 2: 0.25})
    assert as_dict(fused.topk, 1) == {}
    assert np.exp(fused.topk.tail) == pytest.approx([0.25, 1.0, 0.5])
    assert MinCE()([FIRST, SECOND], np.array([0.9, 0.8])).winner.tolist() == [1, 1, 1]


def test_by_hand_per_token_the_truth_decides():
    fused = MinCE(per="token")([FIRST, SECOND], np.array([0.8, 0.9]))
    assert fused.winner.tolist() == [0, 1, 1]
    assert as_dict(fused.topk, 2) == pytest.approx({6: 0.25})


def test_per_token_ignores_sources_that_cannot_be_judged_and_tokens_of_unknown_truth():
    assert MinCE(per="token")([FIRST, SECOND], np.array([NAN, 0.9])).winner.tolist() == [1, 1, 1]
    blind = alignment([{1: 0.5}, {1: 0.5}, {1: 0.5}])
    assert MinCE(per="token")([blind, FIRST], np.array([0.1, 0.2])).winner.tolist() == [1, -1, 1]


def test_ties_go_to_the_first_and_nan_never_wins():
    assert MinCE()([SECOND, SECOND], np.array([0.5, 0.5])).winner.tolist() == [0, 0, 0]
    assert MinCE()([SECOND, SECOND], np.array([NAN, 5.0])).winner.tolist() == [1, 1, 1]
    nobody = MinCE()([SECOND, SECOND], np.array([NAN, NAN]))
    assert not nobody.taught.any()
    assert nobody.winner.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("per", ["document", "token"])
def test_no_teacher_can_win(per):
    method = MinCE(per=per)
    assert not method([FIRST, SECOND], np.array([0.8, 0.9, 0.7])).taught.any()
    assert method([FIRST, SECOND], np.array([0.8, 0.9, 0.8])).taught.any()  # a tie goes to the source
    assert method([FIRST, SECOND], np.array([0.8, 0.9, NAN])).taught.any()
    assert not method([FIRST, SECOND], np.array([NAN, NAN, 0.7])).taught.any()


def test_published_rewards_equal_torch_bfloat16():
    scores = np.concatenate([np.random.default_rng(0).uniform(0, 12, 500), [0.0, 100.0, NAN]])
    expected = 1 / torch.exp(torch.tensor(scores, dtype=torch.float32).to(torch.bfloat16))
    assert np.array_equal(published_reward(scores), expected.float().numpy(), equal_nan=True)


def test_published_rewards_tie_where_exact_ones_do_not():
    scores = np.array([2.506, 2.501])
    assert MinCE()([SECOND, SECOND], scores).winner.tolist() == [1, 1, 1]
    assert MinCE(reward_dtype="bfloat16")([SECOND, SECOND], scores).winner.tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("per", ["document", "token"])
def test_oracle(seed, per):
    rng = np.random.default_rng(seed)
    sources = [random_alignment(rng, 30, 20, k) for k in (2, 4, 3)]
    scores = rng.uniform(0, 2, 3)
    fused = MinCE(per=per)(sources, scores)
    for token in range(30):
        able = [s for s in range(3) if sources[s].source_row[token] >= 0]
        if per == "document":
            able = [s for s in able if s == int(scores.argmin())]
        winner = min(able, key=lambda s: sources[s].truth_nll_nats[token], default=-1)
        assert fused.winner[token] == winner
        if winner >= 0:
            assert as_dict(fused.topk, token) == as_dict(sources[winner].topk, token)
            assert fused.topk.tail[token] == sources[winner].topk.tail[token]
        else:
            assert not fused.taught[token]


def test_invariant_the_order_of_sources_only_renames_the_winner():
    rng = np.random.default_rng(7)
    sources, scores = [random_alignment(rng, 40, 20, 3) for _ in range(3)], rng.uniform(0, 2, 3)
    for per in ("document", "token"):
        forth, back = MinCE(per=per)(sources, scores), MinCE(per=per)(sources[::-1], scores[::-1])
        assert np.array_equal(forth.topk.log_probs, back.topk.log_probs)
        assert np.array_equal(np.where(forth.taught, 2 - forth.winner, -1), back.winner)


def test_wrong_input():
    with pytest.raises(ValueError, match="4 scores for 2 sources, expected 2 or 3"):
        MinCE()([FIRST, SECOND], np.zeros(4))
    with pytest.raises(ValueError, match="3 scores for 2 sources, expected 2"):
        MinCE(no_teacher=False)([FIRST, SECOND], np.zeros(3))
    with pytest.raises(ValueError, match="different"):
        MinCE()([FIRST, alignment([None])], np.zeros(2))
    with pytest.raises(ValueError, match="no alignment"):
        MinCE()([], np.zeros(0))
    with pytest.raises(pydantic.ValidationError, match="unit"):
        MinCE(unit="word")
    with pytest.raises(pydantic.ValidationError):
        MinCE(units="byte")
