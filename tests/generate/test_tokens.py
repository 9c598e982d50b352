"""Which token comes next."""

import math

import pytest
import torch

from lmfuse.generate.tokens import END, Chooser, unfinished
from lmfuse.types import Vocabulary
from lmfuse.writing import WritingSettings
from tests.generate.table_models import END as END_TOKEN
from tests.generate.table_models import table_model

# 0 silent, 1 "a", 2 the first two bytes of €, 3 its last byte, 4 ends a turn, 5 ends a text
WORDS = Vocabulary.from_tokens([b"", b"a", b"\xe2\x82", b"\xac", b"\xff", b""], control={"end_of_turn": 4, "eos": 5})


def chooser(seed=0, **settings):
    return Chooser(WORDS, WritingSettings(**settings), seed)


def logs(*probs):
    return torch.tensor(probs).log()


def test_the_likeliest_token_that_can_stand_there():
    assert chooser()(logs(0.05, 0.4, 0.3, 0.15, 0.05, 0.05), b"") == 1
    assert chooser()(logs(0.4, 0.1, 0.3, 0.15, 0.02, 0.03), b"") == 2  # not the silent one
    assert chooser()(logs(0.1, 0.1, 0.2, 0.5, 0.05, 0.05), b"") == 2  # a last byte cannot come first
    assert chooser()(logs(0.1, 0.6, 0.1, 0.1, 0.05, 0.05), b"\xe2\x82") == 3  # nor a letter inside a character
    assert chooser()(logs(0.1, 0.1, 0.1, 0.1, 0.1, 0.5), b"\xe2\x82") == 3  # nor the end
    assert chooser()(logs(0.1, 0.1, 0.1, 0.1, 0.1, 0.5), b"") == END
    assert chooser()(logs(0.1, 0.1, 0.1, 0.1, 0.5, 0.1), b"") == END


def test_the_end_is_all_end_tokens_together():
    assert chooser().end_nll(logs(0.1, 0.2, 0.2, 0.1, 0.25, 0.15)) == pytest.approx(-math.log(0.4))
    nothing = Chooser(Vocabulary.from_tokens([b"a"]), WritingSettings(), 0)
    assert math.isnan(nothing.end_nll(torch.zeros(1)))


def test_drawn_tokens_follow_the_distribution():
    probs = torch.tensor([0.2, 0.4, 0.1, 0.1, 0.15, 0.05])  # 0 and 3 cannot stand here: 0.7 is left
    choose = chooser(temperature=1.0)
    found = torch.bincount(torch.tensor([choose(probs.log(), b"") % 6 for _ in range(4000)]), minlength=6) / 4000
    expected = torch.tensor([0, 0.4, 0.1, 0, 0, 0.2]) / 0.7  # END is -1, here 5
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


def test_top_p_and_temperature():
    probs = logs(0.0, 0.5, 0.3, 0.0, 0.1, 0.1)
    assert {chooser(seed, temperature=1.0, top_p=0.5)(probs, b"") for seed in range(50)} == {1}
    assert {chooser(seed, temperature=1.0, top_p=0.6)(probs, b"") for seed in range(50)} == {1, 2}
    assert {chooser(seed, temperature=0.02)(probs, b"") for seed in range(50)} == {1}


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 5e-324])
def test_hardly_any_temperature_is_none(temperature):
    probs = logs(0.0, 0.3, 0.5, 0.0, 0.1, 0.1)
    assert {chooser(seed, temperature=temperature)(probs, b"") for seed in range(5)} == {2}
    assert chooser(temperature=temperature, top_p=0.5)(probs, b"") == 2


def test_the_likeliest_whatever_the_temperature():
    probs = logs(0.0, 0.3, 0.5, 0.0, 0.1, 0.1)
    assert {chooser(seed, temperature=9.0).likeliest(probs, b"") for seed in range(20)} == {2}


def test_the_seed_decides():
    probs = logs(0.0, 0.3, 0.3, 0.0, 0.2, 0.2)
    runs = [[(c := chooser(seed, temperature=1.0)) and [c(probs, b"") for _ in range(20)]] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_unfinished_characters():
    assert unfinished("日本".encode()[:-1]) == "本".encode()[:-1]
    assert unfinished(b"\xed\xa0") is None  # a surrogate
    assert unfinished(b"\xf4\x90") is None  # beyond Unicode


def test_table_models_say_what_their_table_says():
    model = table_model({"<s>": {" a": 0.75}, " a": {" b": 0.5}})
    one, two = model.tokenizer.pieces([b" a", b" b"])
    found = model.hidden(torch.tensor([[model.tokenizer.start_ids[0], *one]]))
    probs = model.head.logits(found[0]).softmax(-1)
    end = model.tokenizer.vocabulary.strings.index(END_TOKEN)
    assert probs[0, one[0]] == pytest.approx(0.75)
    assert probs[1, two[0]] == pytest.approx(0.5)
    assert probs[1, end] == pytest.approx(0.5)
