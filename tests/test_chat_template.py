"""Which template a model has, and where in what it writes the contents stand."""

from __future__ import annotations

import json
import pickle

import pytest

from lmfuse.chat_layout import Controls, lay_out
from lmfuse.chat_template import ChatTemplate, Stretch, Unfit, choose_template
from lmfuse.errors import InputError
from lmfuse.types import Segment
from tests.chat_templates import FAMILIES, GEMMA, LLAMA2, MISTRAL, talk


def rendered(template: str, *turns: str, system: str | None = None, prompt: bool = False):
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    return ChatTemplate("m", template, variables).render(talk(*turns, system=system).segments, prompt=prompt)


def test_stretches_by_hand():
    found = rendered(MISTRAL, "What?", "That.", "Why?")
    assert found == [
        Stretch("<s>[INST] "), Stretch("What?", 0), Stretch(" [/INST] "), Stretch("That.", 1), Stretch("</s>[INST] "), Stretch("Why?", 2),
        Stretch(" [/INST]"),
    ]  # fmt: skip
    assert rendered(FAMILIES["chatml"].template, "Hi", prompt=True, system="")[-1] == Stretch("<|im_end|>\n<|im_start|>assistant\n")


def test_a_system_message_may_stand_inside_the_first_question():
    found = rendered(LLAMA2, "What?\n ", "That.", system=" Be brief.")
    assert found[:5] == [
        Stretch("<s>[INST] <<SYS>>\n"), Stretch(" Be brief.", 0), Stretch("\n<</SYS>>\n\n"), Stretch("What?", 1), Stretch(" [/INST] "),
    ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_stretches_joined_are_the_rendering(family):
    template = ChatTemplate("m", FAMILIES[family].template, {"bos_token": "<s>", "eos_token": "</s>"})
    document = talk("a zqContent0001zq b", "zqContent0000zq", "<s>", "{{ messages }} {% raw %}")
    found = template.render(document.segments)
    said = template._sandbox.render([(segment.role, segment.text) for segment in document.segments])
    assert "".join(stretch.text for stretch in found) == said.text
    assert [stretch.text for stretch in found if stretch.message >= 0] == [segment.text for segment in document.segments]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "leaves out or changes what stands in turn 1 (user)"),
        (
            "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}",
            "leaves out or changes what stands in turn 1 (user)",
        ),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "repeats what stands in turn 1 (user)"),
        ("{% for m in messages %}{{ m.content.split('</think>')[-1] }}|{% endfor %}", "changes what the messages say"),
        ("{% for m in messages %}{{ m.content | replace('b', 'B') }}|{% endfor %}", "changes what the messages say"),
        ("{% for m in messages %}{{ m.content[:20] }}|{% endfor %}", "changes what the messages say"),
        ("{% for m in messages %}{{ m.content }}{{ m.content | length }}|{% endfor %}", "changes what the messages say"),
        (GEMMA + "{{ raise_exception('no') }}", "no"),
    ],
)
def test_a_template_that_changes_what_was_said_is_refused(template, reason):
    found = rendered(template, "a question, somewhat long", "thought</think>b and more of an answer")
    assert isinstance(found, Unfit)
    assert reason in found.reason


def test_roles_that_are_refused_are_asked_about_once(monkeypatch):
    template = ChatTemplate("m", GEMMA, {"bos_token": "<s>"})
    refused = template.render(talk("a", "b", system="c").segments)
    assert refused == Unfit("System role not supported")
    monkeypatch.setattr(template._sandbox, "render", None)
    assert template.render(talk("d", "e", system="f").segments) == refused


def test_answers_are_never_trimmed_questions_may_be():
    trims = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    assert [stretch.text for stretch in rendered(trims, " a ", "b")] == ["[", "a", "][", "b", "]"]
    assert rendered(trims, "a", " b ") == Unfit("it changes what the messages say")


def test_very_many_turns_are_not_rendered():
    assert "1,002 turns" in rendered(MISTRAL, *["a", "b"] * 501).reason


def test_templates_are_told_apart_by_what_they_write():
    first = ChatTemplate("m", MISTRAL, {"bos_token": "<s>"})
    assert first.key == pickle.loads(pickle.dumps(first)).key == ChatTemplate("other name", MISTRAL, {"bos_token": "<s>"}).key
    assert first.key != ChatTemplate("m", MISTRAL + " ", {"bos_token": "<s>"}).key
    assert first.key != ChatTemplate("m", MISTRAL, {"bos_token": "<b>"}).key


# ---------------------------------------------------------------------------------------------------------- which template


def test_templates_of_folders(tmp_path):
    assert choose_template("none", tmp_path, {}, "", "m") is None
    with pytest.raises(InputError, match=r"^model m has no chat template$") as caught:
        choose_template("own", tmp_path, {}, "", "m")
    assert "chat_template: openchat" in caught.value.hint
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "older", "bos_token": {"content": "<b>"}, "pad_token": "<p>"})
    )
    found = choose_template("own", tmp_path, {"bos": "<s>", "end_of_turn": "<e>"}, "", "m")
    assert (found.source, found.variables) == ("older", {"bos_token": "<s>", "pad_token": "<p>"})
    (tmp_path / "chat_template.jinja").write_text("newer")
    assert choose_template("own", tmp_path, {}, "", "m").source == "newer"
    (tmp_path / "mine.jinja").write_text("mine é")
    assert choose_template(str(tmp_path / "mine.jinja"), tmp_path, {}, "", "m").source == "mine é"


def test_openchat_writes_quotes_and_backslashes_as_they_are(tmp_path):
    found = choose_template("openchat", tmp_path, {"eos": "</s>", "end_of_turn": "<\"END\\n🙂'>"}, "<START>", "m")
    said = "".join(stretch.text for stretch in found.render(talk("a", "b").segments))
    assert said == "<START>GPT4 Correct User: a<\"END\\n🙂'>GPT4 Correct Assistant: b<\"END\\n🙂'>"
    with pytest.raises(InputError, match="model m: no token ends a turn or a text"):
        choose_template("openchat", tmp_path, {"bos": "<s>"}, "", "m")


@pytest.mark.parametrize("data", [None, b"\xff", b"x" * 1_000_001])
def test_impossible_templates_are_refused(tmp_path, data):
    path = tmp_path / "t.jinja"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=r"no file|not UTF-8|more than 1,000,000 bytes"):
        choose_template(str(path), tmp_path, {}, "", "m")


# ------------------------------------------------------------------------------------------------------------------ layouts


def test_a_layout_by_hand():
    controls = Controls({"<s>": 1, "</s>": 2}, {i: _flags() for i in (1, 2)})
    segments = talk("a</s>", "b").segments
    stretches = [Stretch("<s>[ "), Stretch("a</s>", 0), Stretch(" ]"), Stretch("b", 1), Stretch("</s>")]
    layout = lay_out(segments, stretches, controls)
    assert [(part.text, part.contents) for part in layout.parts] == [("", ()), ("[ a</s> ]b", ((9, 10),)), ("", ())]
    assert layout.controls == (1, 2)
    assert layout.begins == [0, 1, 12]
    assert layout.text([2, 1]) == "\U00100001[ a</s> ]b\U00100000"


def test_control_tokens_take_whitespace_with_them():
    controls = Controls({"<e>": 1}, {1: _flags(lstrip=True, rstrip=True)})
    stretches = [Stretch(" <e> \n"), Stretch("b", 1), Stretch(" \t<e> "), Stretch(" a", 0)]
    layout = lay_out(talk(" a", "b").segments, stretches, controls)
    assert [(part.text, part.contents) for part in layout.parts] == [("", ()), ("b", ((0, 1),)), ("a", ())]


def test_answers_out_of_order_are_refused():
    controls = Controls({}, {})
    segments = (Segment("a", "assistant"), Segment("b", "assistant"))
    assert lay_out(segments, [Stretch("b", 1), Stretch("a", 0)], controls) == Unfit("it changes the order of the answers")


def _flags(**flags: bool):
    from tokenizers import AddedToken

    return AddedToken("x", **flags)
