"""Cool, Rerank and CoolRerank: what each of them adds to judging."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from lmfuse.decode.cool import Cool
from lmfuse.decode.cool_rerank import CoolRerank
from lmfuse.decode.judging import Judged
from lmfuse.decode.rerank import Rerank

PAIR = Judged(np.log([[4.0, 9.0], [64.0, 9.0]]), np.array([[1, 2], [2, 2]]), np.array([4, 2]))  # perplexities 4 and 3, 8 and 3


@pytest.mark.parametrize("method", [Cool(), Rerank(), CoolRerank()])
def test_the_lowest_mean_perplexity_wins(method):
    choice = method(PAIR, [[0], [1]])
    np.testing.assert_allclose(choice.scores, [6.0, 3.0])
    assert choice.index == 1


def test_the_score_decides():
    assert Cool(score="nats_per_byte")(PAIR, [[0], [1]]).index == 0  # log(256) / 8 against log(81) / 4
    assert Cool(weights=(1, 0))(PAIR, [[0], [1]]).index == 1
    assert Cool(score="nats_per_byte", weights=(0, 1))(PAIR, [[0], [1]]).index == 0


def test_of_equal_answers_the_fused_one_is_taken():
    equal = Judged(np.ones((2, 3)), np.ones((2, 3), int), np.ones(3, int))
    assert CoolRerank()(equal, [[0], [1], [2]], leader=2).index == 2
    assert Rerank()(equal, [[0], [1], [2]]).index == 0


def test_segment_tokens_follow_the_unit():
    assert [Cool().segment_tokens, Cool(length=3).segment_tokens, Cool(segment="sentence").segment_tokens] == [16, 48, 128]
    assert Cool(segment="paragraph", max_segment_tokens=7).segment_tokens == 7


def test_methods_survive_a_round_trip_and_refuse_what_they_do_not_know():
    for method in (Cool(segment="sentence", length=2, aligned=False, weights=(1.0, 2.0)), Rerank(score="rank"), CoolRerank()):
        adapter = TypeAdapter(type(method))
        assert adapter.validate_python(adapter.dump_python(method)) == method
    for wrong in ({"segment": "line"}, {"length": 0}, {"max_segment_tokens": 0}, {"aligend": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TypeAdapter(Cool).validate_python({"name": "cool", **wrong})
