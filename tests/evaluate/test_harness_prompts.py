"""What a task hands over as a prompt, and how it wants a text written."""

import pytest

from lmfuse.errors import InputError
from lmfuse.evaluate.harness_prompts import MARK, cut_left, read_context, settings_of, write_conversation
from lmfuse.types import Document
from tests.evaluate.harness_build import ensemble
from tests.fakes import TEXT

TALK = [{"role": "system", "content": 'Say "yes"'}, {"role": "user", "content": "naïve 東京\n?"}]


def test_a_conversation_survives_being_a_string():
    found = read_context(write_conversation(TALK))
    assert [(each.role, each.text) for each in found.messages] == [("system", 'Say "yes"'), ("user", "naïve 東京\n?")]
    assert found.text == ""
    assert not any(each.trained for each in found.prompt)


def test_the_beginning_of_an_answer_is_no_message():
    found = read_context(write_conversation([*TALK, {"role": "assistant", "content": "It is"}], begun=True))
    assert found.text == "It is"
    assert [each.role for each in found.messages] == ["system", "user"]


@pytest.mark.parametrize("text", ["plain", "", MARK, f"{MARK}[1]", f'{MARK}{{"messages": 3}}'])
def test_what_is_no_conversation_stays_a_text(text):
    assert read_context(text).prompt == text


def test_roles_and_answers_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="unknown 'tool'"):
        write_conversation([{"role": "tool", "content": "x"}])
    for history in ([], [{"role": "assistant", "content": "x"}], TALK):
        with pytest.raises(InputError, match="cannot be answered"):
            write_conversation(history, begun=True)


@pytest.mark.parametrize("kind", ["byte_bpe", "metaspace_bpe", "unigram"])
@pytest.mark.parametrize("most", [2, 7, 40])
def test_a_text_is_cut_on_the_left_to_as_many_tokens_as_fit(kind, most):
    model, text = ensemble(kind).models("plain")[0], "".join(TEXT)
    kept = cut_left(model, text, most)
    assert text.endswith(kept)
    assert most - 4 <= len(model.tokenizer.encode(Document.plain(kept)).ids) <= most
    assert cut_left(model, kept, most) == kept


@pytest.mark.parametrize(
    ("arguments", "temperature"),
    [
        ({}, 0.0),
        ({"temperature": 0.5}, 0.5),
        ({"do_sample": False, "temperature": 0.5}, 0.0),
        ({"do_sample": True, "temperature": 0.5}, 0.5),
    ],
)
def test_drawing_follows_the_harness(arguments, temperature):
    normalize = pytest.importorskip("lm_eval.models.utils", reason="needs lm_eval (pip install 'lmfuse[eval]')").normalize_gen_kwargs
    assert settings_of(arguments, 9, 3).temperature == temperature == normalize(arguments).get("temperature", 0.0)


def test_limits_and_stop_strings_are_taken_over():
    found = settings_of({"until": ["\n", ""], "max_new_tokens": 7, "top_p": 0.9, "do_sample": True}, 256, 3)
    assert (found.stop, found.max_tokens, found.top_p, found.temperature, found.seed) == (("\n",), 7, 0.9, 1.0, 3)
    assert settings_of({"until": "Q:"}, 256, 3).stop == ("Q:",)
    assert settings_of({"until": None}, 256, 3).max_tokens == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 4}, "unknown 'num_beams'"),
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"top_p": 2}, "top_p"),
        ({"max_gen_toks": 0}, "max_tokens"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        settings_of(arguments, 256, 0)
