import json
from dataclasses import replace

import pytest
import torch

from lmfuse import answers
from lmfuse.answers import Answer, Answering, Question, answer_prompts, converse, read_questions, render
from lmfuse.errors import BusyError, InputError, TextError
from lmfuse.locks import lock
from lmfuse.models import ModelSpec, load_model
from lmfuse.text import TextSpec, read_documents
from lmfuse.types import Segment
from tests import fakes, runs

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
QUESTIONS = [Question("q1", ("Who are you?", "And why?")), Question("q2", ("How many apples has Anna?",)), Question("q3", ("Go on.",))]
SHORT = Answering(max_new_tokens=12, batch_prompts=2)


def chat_folder(folder):
    fakes.save_model(folder, fakes.byte_bpe(), seed=3)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chat_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(ModelSpec(str(folder), dtype="float32", chat_template="own"))


def user(text: str) -> list[Segment]:
    return [Segment(text, "user", trained=False)]


def answered(model, prompts: list[list[Segment]], settings: Answering) -> dict[int, Answer]:
    return dict(
        pair for batch in answer_prompts(model, [render(model, prompt, settings) for prompt in prompts], settings) for pair in batch
    )


def scripted(monkeypatch, say):
    """Let answers come from a function of the prompts' number; returns the sizes of the batches that were asked."""
    sizes = []

    def batch(_, prompts, settings):
        sizes.append(len(prompts))
        return [say(len(ids)) for ids in prompts]

    monkeypatch.setattr(answers, "_answer_batch", batch)
    return sizes


def test_a_batch_says_what_the_model_says_to_each_prompt_alone(model, folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [user(question.turns[0]) for question in QUESTIONS]
    found = answered(model, prompts, SHORT)
    for place, prompt in enumerate(prompts):
        messages = [{"role": segment.role, "content": segment.text} for segment in prompt]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        alone = model.module.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
        said = tokenizer.decode(alone[0, ids.shape[1] :], skip_special_tokens=True)
        assert found[place].text == said.replace("\ufffd", "").strip()


def test_drawn_answers_depend_on_the_seed_alone(model):
    def draw(seed: int) -> list[str]:
        torch.manual_seed(int(torch.randint(1000, ()).item()))
        return [
            answer.text for answer in answered(model, [user("Go on."), user("Why?")], replace(SHORT, temperature=1.0, seed=seed)).values()
        ]

    assert draw(1) == draw(1) != draw(2)


def test_the_file_is_text_to_train_on_and_says_what_was_cut(model, tmp_path, monkeypatch):
    scripted(monkeypatch, lambda size: Answer("Because.", True, 3))
    counters = converse(model, QUESTIONS, SHORT, tmp_path / "out.jsonl")
    assert counters == {"answers": 4, "answers_cut": 0, "answers_empty": 0, "tokens": 12, "prompts_left_out": 0}
    documents = list(read_documents(TextSpec("chat", path="out.jsonl"), tmp_path))
    assert [[segment.role for segment in document.segments] for document in documents] == [["user", "assistant"] * n for n in (2, 1, 1)]
    assert documents[0].trained_bytes == b"Because.\xffBecause.\xff"
    assert not list(tmp_path.glob("*.partial"))


def test_a_cut_answer_is_context_only_and_ends_its_conversation_and_an_empty_one_is_left_out(model, tmp_path, monkeypatch):
    said = [Answer("It goes on and", False, 12), Answer("Seven.", True, 2), Answer("", True, 1)]
    lengths = [len(model.tokenizer.render_prompt(user(question.turns[0]))) for question in QUESTIONS]
    scripted(monkeypatch, dict(zip(lengths, said, strict=True)).__getitem__)
    counters = converse(model, QUESTIONS, SHORT, tmp_path / "out.jsonl")
    assert (counters["answers"], counters["answers_cut"], counters["answers_empty"]) == (3, 1, 1)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == ["q1", "q2"]
    assert [record["messages"][1] for record in records] == [
        {"role": "assistant", "content": "It goes on and", "weight": 0},
        {"role": "assistant", "content": "Seven."},
    ]


def test_what_was_answered_before_an_interruption_is_not_asked_again(model, tmp_path, monkeypatch):
    whole, interrupted = tmp_path / "whole.jsonl", tmp_path / "interrupted.jsonl"
    converse(model, QUESTIONS, SHORT, whole)
    real, asked = answers._answer_batch, []

    def second_fails(*given):
        asked.append(len(given[1]))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(answers, "_answer_batch", second_fails)
    with pytest.raises(KeyboardInterrupt):
        converse(model, QUESTIONS, SHORT, interrupted)
    assert not interrupted.exists()
    with open(tmp_path / "interrupted.jsonl.partial", "a") as file:
        file.write('{"id": "q2", "turn"')  # as a kill in the middle of a line leaves it
    converse(model, QUESTIONS, SHORT, interrupted)
    assert asked[:3] == [2, 1, 1], "two prompts, the failure, then only the one that was missing"
    assert interrupted.read_bytes() == whole.read_bytes()


def test_answers_of_other_settings_are_neither_taken_for_these_nor_lost(model, tmp_path, monkeypatch):
    scripted(monkeypatch, lambda size: Answer("fresh", True, 1))
    (tmp_path / "out.jsonl.partial").write_text('{"key": "another"}\n{"a": 1}\n')
    with pytest.raises(InputError, match="of another model or of other settings"):
        converse(model, QUESTIONS, SHORT, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl.partial").read_text().endswith('{"a": 1}\n')


def test_a_question_that_is_removed_costs_the_others_nothing(model, tmp_path, monkeypatch):
    sizes = scripted(monkeypatch, lambda size: Answer("Yes.", True, 1))
    monkeypatch.setattr(answers, "write_atomic", failing_once(answers.write_atomic, "out.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        converse(model, QUESTIONS, SHORT, tmp_path / "out.jsonl")
    asked = len(sizes)
    counters = converse(model, QUESTIONS[1:], SHORT, tmp_path / "out.jsonl")
    assert (len(sizes), counters["answers"]) == (asked, 2)


def failing_once(real, name: str):
    """Return a function that is interrupted the first time that it is to write a file of this name."""
    done = []

    def write(path, data):
        if path.name == name and not done:
            done.append(path)
            raise KeyboardInterrupt
        real(path, data)

    return write


def test_two_writers_of_one_file(model, tmp_path):
    with lock(tmp_path / "out.jsonl"), pytest.raises(BusyError):
        converse(model, QUESTIONS, SHORT, tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no question in it"),
        ('{"turns": []}\n', "line 1: no question"),
        ('{"question": "a"}\n{"question": 7}\n', "line 2: no question"),
        ('{"id": 1, "question": "a"}\n{"id": 1, "question": "b"}\n', "line 2: the id '1' stands twice"),
        ('{"turns": "text"}\n', "line 1: no question"),
        ("not json\n", "line 1: no question"),
        ("[1]\n", "line 1: no question"),
    ],
)
def test_questions_that_are_none_are_refused_by_line(tmp_path, text, message):
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        read_questions(tmp_path / "q.jsonl")


def test_questions_in_either_form(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question_id": 81, "turns": ["a", "b"]}\n\n{"question": "c"}\n')
    assert read_questions(tmp_path / "q.jsonl") == [Question("81", ("a", "b")), Question("3", ("c",))]
    (tmp_path / "q.jsonl").write_text('{"id": null, "question": "a\u2028b\x85c"}\n{"id": null, "question": "c"}\n')
    assert read_questions(tmp_path / "q.jsonl") == [Question("1", ("a\u2028b\x85c",)), Question("2", ("c",))]


def test_a_prompt_that_cannot_be_answered_ends_its_conversation_and_no_other(model, tmp_path, monkeypatch):
    scripted(monkeypatch, lambda size: Answer("Yes.", True, 1))
    questions = [Question("long", ("word " * 300,)), Question("later", ("Go on.", "word " * 300)), Question("short", ("Why?",))]
    counters = converse(model, questions, SHORT, tmp_path / "out.jsonl")
    assert (counters["answers"], counters["prompts_left_out"]) == (2, 2)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(record["id"], len(record["messages"])) for record in records] == [("later", 2), ("short", 2)]
    with pytest.raises(InputError, match="no question could be answered"):
        converse(model, questions[:1], SHORT, tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_the_command(folder, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "Who are you?"}\n')
    code, said = runs.lmfuse("answer", folder, tmp_path / "q.jsonl", "--out", tmp_path / "a.jsonl", "--max-new-tokens", 4)
    assert code == 0, said
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1
    fakes.save_model(tmp_path / "base", fakes.byte_bpe())
    code, said = runs.lmfuse("answer", tmp_path / "base", tmp_path / "q.jsonl", "--out", tmp_path / "b.jsonl")
    assert (code, "no chat template" in said) == (2, True)


def test_a_file_with_only_cut_answers_teaches_nothing_and_says_so(model, tmp_path, monkeypatch):
    scripted(monkeypatch, lambda size: Answer("It goes on", False, 12))
    converse(model, QUESTIONS[1:], SHORT, tmp_path / "out.jsonl")
    with pytest.raises(TextError):
        list(read_documents(TextSpec("chat", path="out.jsonl"), tmp_path))
