"""Pair rankers: both orders, wins, and what a cross-encoder of transformers says of each pair."""

from __future__ import annotations

import math

import numpy as np
import pydantic
import pytest
import torch

from lmfuse.errors import InputError
from lmfuse.judges.pair_ranker import PairRankerScorer, win_shares
from lmfuse.judges.settings import PairRanker
from tests.judges.build import bert_folder, case

CASE = case("a", "how many apples?")
TEXTS = ["the dog sleeps", "12 apples", "it was the best of times"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("bert") / "model", seed=5)


def ranker(folder, **more) -> PairRankerScorer:
    return PairRankerScorer(PairRanker(str(folder), **({"dtype": "float32"} | more)), "cpu")


def test_by_hand_wins_and_probabilities():
    said = np.array([[np.nan, 0.9, 0.3], [0.4, np.nan, 0.5], [0.9, 0.5, np.nan]])
    # 0 beats 1 by (0.9 + 0.6) / 2 = 0.75; 2 beats 0 by (0.9 + 0.7) / 2 = 0.8; 1 and 2 tie
    assert win_shares(said).tolist() == [0.5, 0.25, 0.75]
    assert win_shares(said, "probability") == pytest.approx([(0.75 + 0.2) / 2, (0.25 + 0.5) / 2, (0.8 + 0.5) / 2])
    assert win_shares(np.full((1, 1), np.nan)).tolist() == [0.5]


def test_a_liking_for_the_first_place_cancels_out():
    always_first = np.full((3, 3), 0.9)
    assert win_shares(always_first).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("size", range(2, 6))
def test_wins_sum_to_the_comparisons_whoever_wins(size):
    said = np.random.default_rng(size).random((size, size))
    for count in ("wins", "probability"):
        assert win_shares(said, count).sum() * (size - 1) == pytest.approx(size * (size - 1) / 2)


def test_oracle_each_pair_alone_in_transformers(folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()
    said = np.full((3, 3), np.nan)
    for i, first in enumerate(TEXTS):
        for j, second in enumerate(TEXTS):
            if i != j:
                with torch.no_grad():
                    logit = model(
                        **tokenizer(f"{CASE.question}\n\n{first}", second, return_tensors="pt", return_token_type_ids=True)
                    ).logits.item()
                said[i, j] = 1 / (1 + math.exp(-logit))
    for count in ("wins", "probability"):
        [found] = ranker(folder, count=count).opinions([CASE], [TEXTS])
        assert [opinion.score for opinion in found] == pytest.approx(win_shares(said, count), abs=1e-5)
    quarrels = sum((said[i, j] - 0.5) * (said[j, i] - 0.5) > 0 for i in range(3) for j in range(i))
    assert sum(opinion.counters.get("orders_disagree", 0) for opinion in found) == quarrels
    assert len(found[0].exchanges) == 2
    assert found[0].exchanges[0][0] == "how many apples?\n\nthe dog sleeps\n\n----\n\n12 apples"


def test_two_outputs_of_which_one_is_named(tmp_path):
    folder = bert_folder(tmp_path / "bert", labels=2, seed=5)
    [found] = ranker(folder, output="first", count="probability").opinions([CASE], [TEXTS])
    [other] = ranker(folder, output="second", count="probability").opinions([CASE], [TEXTS])
    assert [a.score + b.score for a, b in zip(found, other, strict=True)] == pytest.approx([1.0] * 3, abs=1e-5)
    with pytest.raises(InputError, match="the model has second, first"):
        ranker(folder).opinions([CASE], [TEXTS])


def test_the_order_of_the_answers_changes_no_score(folder):
    [found] = ranker(folder, count="probability").opinions([CASE], [TEXTS])
    [turned] = ranker(folder, count="probability").opinions([CASE], [TEXTS[::-1]])
    assert [opinion.score for opinion in turned[::-1]] == pytest.approx([opinion.score for opinion in found], abs=1e-6)


def test_fields_and_separators_in_an_answer_are_only_text(folder):
    judge = ranker(folder, first_text="{question} A: {first}", second_text="B: {second}")
    assert judge.pair(CASE, "{second} {question}", "{first}") == ("how many apples? A: {second} {question}", "B: {first}")
    judge = ranker(folder)
    judge.opinions([CASE], [TEXTS])
    assert judge._loaded is not None
    ids, types = judge._loaded[1].pair("a [SEP] b", "c")
    separator = judge._loaded[1].tokenizer.token_to_id("[SEP]")
    assert (ids.count(separator), len(ids) == len(types)) == (2, True)


def test_where_a_pair_is_too_long_it_abstains_on_the_question_and_on_no_other(folder):
    [long, fine, alone] = ranker(folder).opinions([CASE, CASE, CASE], [[*TEXTS, "dog " * 70], TEXTS, ["12"]])
    assert {opinion.problem for opinion in long} == {"too_long"}
    assert all(math.isnan(opinion.score) for opinion in long)
    assert not any(math.isnan(opinion.score) for opinion in fine)
    assert alone[0].score == 0.5
    with pytest.raises(InputError, match="at most 64 are read"):
        ranker(folder, too_long="stop").opinions([CASE], [[*TEXTS, "dog " * 70]])


def test_settings_without_both_answers_are_refused():
    with pytest.raises(pydantic.ValidationError, match=r"expected \{first\} and \{second\}"):
        PairRanker("x", second_text="nothing")
