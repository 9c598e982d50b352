"""Files of prompts."""

import json

import pytest

from lmfuse import generate_batch
from lmfuse.errors import InputError
from lmfuse.generate import FusedWriter
from lmfuse.generate_batch import Task, read_tasks, write_batch
from lmfuse.types import Segment
from lmfuse.writing import WritingSettings
from tests.generate.build import run, small_model

SETTINGS = WritingSettings(max_bytes=20)
TASKS = [Task("a", "The quick"), Task("b", "Anna has"), Task("c", "def add")]


@pytest.fixture
def writer():
    return FusedWriter([small_model("byte_bpe"), small_model("unigram", 1)], ["x", "y"])


class InterruptedBatchError(Exception):
    pass


def stop_after(count):
    def progress(_):
        nonlocal count
        count -= 1
        if count < 0:
            raise InterruptedBatchError

    return progress


def test_every_prompt_has_its_text(writer, tmp_path):
    counters = write_batch(writer, TASKS, SETTINGS, tmp_path / "out.jsonl")
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == ["a", "b", "c"]
    for task, record in zip(TASKS, records, strict=True):
        text, passages, finish = run(writer, task.prompt, max_bytes=20)
        assert (record["text"], record["finish_reason"]) == (text, finish.reason)
        assert [(each["author"], each["text"]) for each in record["passages"]] == [(each.author, each.text) for each in passages]
    assert counters["texts"] == 3
    assert counters["bytes"] == sum(len(record["text"].encode()) for record in records)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["out.jsonl"]


def test_an_interrupted_batch_goes_on_where_it_was(writer, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    write_batch(writer, TASKS, SETTINGS, whole)
    with pytest.raises(InterruptedBatchError):
        write_batch(writer, TASKS, SETTINGS, out, stop_after(2))  # the first call is for what was there before
    journal = out.with_name("out.jsonl.partial")
    journal.write_text(journal.read_text() + '{"id": "b", "text": "cut he')  # killed while writing
    written = []
    write = FusedWriter.write
    monkeypatch.setattr(FusedWriter, "write", lambda self, prompt, *more: written.append(prompt) or write(self, prompt, *more))
    write_batch(writer, TASKS, SETTINGS, out)
    assert written == ["Anna has", "def add"] or written == ["def add"]
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("change", ["settings", "tasks", "models", "method"])
def test_another_batch_begins_anew(writer, tmp_path, change):
    out = tmp_path / "out.jsonl"
    with pytest.raises(InterruptedBatchError):
        write_batch(writer, TASKS, SETTINGS, out, stop_after(2))
    settings = WritingSettings(max_bytes=21) if change == "settings" else SETTINGS
    tasks = [*TASKS[:2], Task("c", "def sub")] if change == "tasks" else TASKS
    other = writer
    if change == "models":
        other = FusedWriter([small_model("metaspace_bpe"), small_model("unigram", 1)], ["x", "y"])
    if change == "method":
        from lmfuse.decode.cool import Cool

        other = FusedWriter([small_model("byte_bpe"), small_model("unigram", 1)], ["x", "y"], Cool(length=2))
    done = []
    write_batch(other, tasks, settings, out, done.append)
    assert done == [0, 1, 1, 1]


def test_prompts_and_conversations(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n{"question_id": 7, "question": "Why?"}\n')
    assert read_tasks(path, chat=True, system="Be brief.") == [
        Task("1", [Segment("Be brief.", "system", False), Segment("Hi", "user", False)]),
        Task("7", [Segment("Be brief.", "system", False), Segment("Why?", "user", False)]),
    ]
    with pytest.raises(InputError, match="line 1: a conversation, and no chat template"):
        read_tasks(path, chat=False)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "line 1: no JSON"),
        ('\n["a"]', "line 2: list, expected an object"),
        ('{"text": "a"}', "neither prompt, question nor messages"),
        ('{"prompt": 5}', "neither prompt, question nor messages"),
        ('{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}', "line 2: id '1' stands twice"),
        (" \n", "no prompt in it"),
        ('{"messages": [{"role": "tool", "content": "a"}]}', "line 1"),
    ],
)
def test_wrong_files(tmp_path, content, expected):
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=expected):
        read_tasks(path, chat=True)


def test_two_processes_do_not_write_one_file(writer, tmp_path):
    from lmfuse.errors import BusyError
    from lmfuse.locks import lock

    with lock(tmp_path / "out.jsonl"), pytest.raises(BusyError):
        write_batch(writer, TASKS, SETTINGS, tmp_path / "out.jsonl")
    assert generate_batch.HINT
