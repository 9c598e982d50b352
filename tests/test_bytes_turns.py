"""The end of a turn: what the folder says, and nothing guessed."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse.bytes import ByteTokenizer
from lmfuse.bytes_turns import closing_token
from lmfuse.errors import TokenizerError
from tests import fakes
from tests.bad_tokenizers import State, token

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
ZEPHYR = (
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + eos_token }}{% endif %}"
)
MISTRAL = (
    '{%- if m["role"] == "user" %}{{ "[INST] " + m["content"] + "[/INST]" }}'
    '{%- elif m["role"] == "assistant" %}{{ " " + m["content"]|trim + eos_token }}{% endif %}'
)
LLAMA2 = "{% if role == 'user' %}{{ '[INST] ' + content.strip() + ' [/INST]' }}{% else %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}"


def folder(path: Path, *added: State, eos: str | None = "<|endoftext|>", template: object = None, ends: object = None) -> Path:
    """Write a byte-level tokenizer with some tokens more, and what a model's folder says of them."""
    state = json.loads(fakes.byte_bpe().to_str())
    state["added_tokens"] += added
    (path / "tokenizer.json").write_text(json.dumps(state))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "chat_template": template}))
    if ends is not None:
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return path


def turn(path: Path) -> str | None:
    vocabulary = ByteTokenizer.load(path).vocabulary
    found = vocabulary.control.get("end_of_turn")
    return None if found is None else vocabulary.strings[found]


START, END, OTHER = token("<|im_start|>", 409), token("<|im_end|>", 410), token("<|stop|>", 411)
EOS = "<|endoftext|>"


@pytest.mark.parametrize(
    ("added", "given", "expected"),
    [
        ([], {}, None),
        ([START, END], {}, "<|im_end|>"),
        ([START, END], {"template": CHATML}, "<|im_end|>"),
        ([START, END, OTHER], {"template": CHATML.replace("im_end", "stop")}, "<|stop|>"),
        ([START, END, OTHER], {"ends": [0, 411]}, "<|stop|>"),
        ([START, END, OTHER], {"ends": [0, 410, 411]}, "<|im_end|>"),
        ([START, END, OTHER], {"ends": 410}, "<|im_end|>"),
        ([START, END, token("<|eot_id|>", 411)], {"ends": 411}, "<|eot_id|>"),
        ([START, END, token("<|eot_id|>", 411)], {"eos": "<|eot_id|>"}, "<|eot_id|>"),
        ([START, END | {"special": False}], {}, None),
        ([START, END | {"special": False}], {"template": CHATML}, None),
        ([START, END | {"special": False}], {"template": CHATML, "eos": "<|im_end|>"}, "<|im_end|>"),
        ([], {"template": ZEPHYR}, EOS),
        ([], {"template": ZEPHYR, "eos": None}, None),
        ([], {"template": [{"name": "tool_use", "template": ""}, {"name": "default", "template": ZEPHYR}]}, EOS),
        ([], {"template": 7, "ends": ["x", True, None, -1, 10**30]}, None),
        ([START, token("<|a|>", 410), OTHER], {"ends": [410, 411]}, None),
        ([], {"ends": 0}, None),
        ([], {"ends": 65}, None),
    ],
)
def test_by_hand(tmp_path, added, given, expected):
    assert turn(folder(tmp_path, *added, **given)) == expected


def test_a_template_of_its_own_file_wins(tmp_path):
    path = folder(tmp_path, START, END, OTHER, template=CHATML)
    (path / "chat_template.jinja").write_text(CHATML.replace("im_end", "stop"))
    assert turn(path) == "<|stop|>"


@pytest.mark.parametrize("name", ["<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|endofturn|>"])
def test_known_names_among_control_tokens_only(tmp_path, name):
    assert turn(folder(tmp_path, token(name, 409))) == name
    assert turn(folder(tmp_path, token(name, 409, special=False))) is None


@pytest.mark.parametrize(("template", "expected"), [(ZEPHYR, "</s>"), (MISTRAL, "</s>"), (LLAMA2, "</s>"), (CHATML, None), ("", None)])
def test_published_shapes_of_templates(template, expected):
    assert closing_token(template, {"</s>", "<s>", "[INST]", "[/INST]"}, "</s>") == expected


def test_a_branch_right_behind_content_is_seen():
    template = "{% if role == 'user' %}{{ content }}{% elif role == 'tool' %}{{ content + eos_token }}{% endif %}"
    assert closing_token(template, {"</s>"}, "</s>") is None
    assert closing_token(template.replace("elif role == 'tool'", "else"), {"</s>"}, "</s>") == "</s>"


def test_what_ends_the_users_turn_is_none():
    assert closing_token(MISTRAL.replace("+ eos_token", ""), {"</s>", "[/INST]"}, "</s>") is None


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(["content", "'assistant'", " + ", "eos_token", "</s>", "{% if", "{% else %}", "x", "'user'", "\n"]), max_size=12
    ).map("".join)
)
def test_only_control_tokens_are_ever_found(template):
    assert closing_token(template, {"</s>", "<a>"}, "</s>") in (None, "</s>")
    assert closing_token(template, set(), "</s>") is None


def test_a_long_hostile_template_costs_no_time(tmp_path):
    names = [token(f"<|{number}|>", 409 + number) for number in range(2000)]
    hostile = "{% if content '''''' 'user' content + " * 20_000
    assert turn(folder(tmp_path, *names, template=hostile)) is None


def test_broken_files_are_refused(tmp_path):
    path = folder(tmp_path)
    (path / "generation_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"generation_config.json is broken: not JSON"):
        ByteTokenizer.load(path)
    (path / "generation_config.json").unlink()
    (path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"chat_template.jinja is broken"):
        ByteTokenizer.load(path)


def test_from_tokenizer_takes_it_by_name():
    assert ByteTokenizer.from_tokenizer(fakes.byte_bpe(), end_of_turn=EOS).vocabulary.control["end_of_turn"] == 0
    with pytest.raises(TokenizerError, match="end_of_turn: unknown token"):
        ByteTokenizer.from_tokenizer(fakes.byte_bpe(), end_of_turn="<|im_end|>")


@pytest.mark.parametrize(
    ("name", "expected"), [("qwen2_5", "<|im_end|>"), ("gpt2", None), ("llama2", None), ("t5", None), ("mistral", None)]
)
def test_real_tokenizers(name, expected):
    assert turn(fakes.shared("assets", "tokenizers", name)) == expected
