"""Where templates meet answers: counted by hand, and on a model's folder from end to end."""

from __future__ import annotations

import json

from lmfuse.doctor import examine
from lmfuse.doctor.axis import Axis
from lmfuse.doctor.terminal import summary
from lmfuse.doctor.turns import boundaries
from tests import fakes
from tests.chat_templates import FAMILIES, load, talk, write_folder
from tests.doctor.build import documents, tokenizer

TALKS = [talk("What?", "the dog", "Why?", "over"), talk("Hi", "the lazy dog")]


def found(tmp_path, target: tuple[str, str], source: tuple[str, str], talks=TALKS):
    sides = [load(tmp_path / family, fakes.KINDS[kind](), family) for family, kind in (target, source)]
    return boundaries(Axis.of(talks, *sides), *(side.vocabulary for side in sides))


def test_boundaries_by_hand(tmp_path):
    clean = {"prefixed": 0, "masked_first": 0, "masked_last": 0, "masked_end": 0}
    assert found(tmp_path, ("chatml", "byte_bpe"), ("mistral", "metaspace_bpe")) == {
        "turns": 3, "target": clean | {"end": "<|im_end|>"}, "source": clean | {"end": "</s>", "prefixed": 3},
    }  # fmt: skip
    assert found(tmp_path, ("llama2", "metaspace_bpe"), ("llama2", "byte_bpe"))["target"] == clean | {
        "end": None, "prefixed": 3, "masked_end": 3,
    }  # fmt: skip


def test_tokens_over_the_edge_of_an_answer_are_counted(tmp_path):
    template = "{% for m in messages %}| t{{ m.content }}he|{% endfor %}"
    folder = write_folder(tmp_path, fakes.byte_bpe(), FAMILIES["zephyr"], template=template)
    from lmfuse.bytes import ByteTokenizer

    side = ByteTokenizer.load(folder, chat_template="own")
    turns = boundaries(Axis.of([talk("a", "he dog"), talk("a", "dog t"), talk("a", "x")], side, side), side.vocabulary, side.vocabulary)
    assert turns["target"] == {"end": None, "prefixed": 0, "masked_first": 1, "masked_last": 1, "masked_end": 3}


def test_plain_texts_have_no_turns():
    side = tokenizer("byte_bpe")
    assert boundaries(Axis.of(documents("the dog \xff", "b"), side, side), side.vocabulary, side.vocabulary) is None


def test_a_file_of_conversations_is_read_with_the_models_own_templates(tmp_path):
    folders = [
        write_folder(tmp_path / name, fakes.KINDS[kind](), FAMILIES[name]) for name, kind in (("chatml", "byte_bpe"), ("zephyr", "unigram"))
    ]
    record = {"messages": [{"role": "user", "content": "the dog"}, {"role": "assistant", "content": "the dog\non the lazy dog"}]}
    (tmp_path / "talks.json").write_text(json.dumps([record] * 3))
    report = examine(*map(str, folders), tmp_path / "talks.json", lines=4)
    assert report["turns"]["turns"] == 3
    assert report["turns"]["source"]["end"] == "</s>"
    assert report["text"]["bytes"] == 3 * len(b"the dog\non the lazy dog\xff")
    lines = [bytes.fromhex("".join(chunk["bytes"] for chunk in line["chunks"])) for line in report["lines"]]
    assert all(b"\xff" not in line[:-1] for line in lines)  # the end of a turn ends a line
    shown = dict(summary(report))
    assert shown["trained turns"] == "3"
    assert shown["  target"] == "<|im_end|> ends a turn; masked bytes at turns: 0 first, 0 last, 0 end; 0 begin with the template's space"
    everyone = examine(*map(str, folders), tmp_path / "talks.json", lines=4, chat_template="openchat")
    assert everyone["turns"]["source"]["prefixed"] == 3
