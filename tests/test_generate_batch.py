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
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().strip().split("\n")]
    assert [record["id"] for record in records] == ["a", "b", "c"]
    for task, record in zip(TASKS, records, strict=True):
        text, passages, finish = run(writer, task.prompt, max_bytes=20)
        assert (record["text"], record["finish_reason"]) == (text, finish.reason)
        assert [(each["author"], each["text"]) for each in record["passages"]] == [(each.author, each.text) for each in passages]
    assert counters["texts"] == 3
    assert counters["bytes"] == sum(len(record["text"].encode()) for record in records)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["out.jsonl"]


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_interrupted_call_goes_on_where_it_was(writer, tmp_path, monkeypatch, at_once):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    write_batch(writer, TASKS, SETTINGS, whole, batch_prompts=at_once)
    with pytest.raises(InterruptedBatchError):
        write_batch(writer, TASKS, SETTINGS, out, stop_after(3), at_once)  # the first call is for what was there before
    journal = out.with_name("out.jsonl.partial")
    kept = [text["id"] for line in journal.read_text().strip().split("\n")[1:] for text in json.loads(line)["texts"]]
    assert kept == (["a", "b"] if at_once == 1 else ["c", "b"])  # the shortest two prompts, written together
    journal.write_text(journal.read_text() + '{"key": "c", "texts": [{"text": "cut he')  # killed while writing
    written, counted = [], []
    write = FusedWriter.write_many
    monkeypatch.setattr(
        FusedWriter, "write_many", lambda self, prompts, *more, **rest: written.extend(prompts) or write(self, prompts, *more, **rest)
    )
    write_batch(writer, TASKS, SETTINGS, out, counted.append, at_once)
    assert written == [task.prompt for task in TASKS if task.id not in kept]
    assert counted == [2, 1]
    assert out.read_bytes() == whole.read_bytes()


def test_a_batch_that_is_not_whole_is_written_again(writer, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    write_batch(writer, TASKS, SETTINGS, whole)
    with pytest.raises(InterruptedBatchError):
        write_batch(writer, TASKS, SETTINGS, out, stop_after(1))
    counted = []
    write_batch(writer, TASKS, SETTINGS, out, counted.append)
    assert counted == [0, 1, 1, 1]
    assert out.read_bytes() == whole.read_bytes()


def test_what_is_finished_is_not_written_again_and_nothing_is_overwritten(writer, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    counters = write_batch(writer, TASKS, SETTINGS, out)
    before = out.read_bytes()
    monkeypatch.setattr(FusedWriter, "write_many", None)
    assert write_batch(writer, TASKS, SETTINGS, out) == counters
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "mine"}\n')
    for place, settings, tasks in ((out, WritingSettings(max_bytes=21), TASKS), (out, SETTINGS, TASKS[:2]), (prompts, SETTINGS, TASKS)):
        with pytest.raises(InputError, match=r"is there already, and not from this call"):
            write_batch(writer, tasks, settings, place)
    assert out.read_bytes() == before
    assert prompts.read_text() == '{"prompt": "mine"}\n'


def test_the_texts_do_not_depend_on_how_many_are_written_at_the_same_time(writer, tmp_path):
    found = []
    for at_once in (1, 2, 3, 8):
        out = tmp_path / f"{at_once}.jsonl"
        write_batch(writer, TASKS, SETTINGS, out, batch_prompts=at_once)
        found.append([json.loads(line) | {"batch": ""} for line in out.read_text().strip().split("\n")])
    assert all(each == found[0] for each in found)


def test_a_prompt_that_was_corrected_costs_its_own_batch_only(writer, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(InterruptedBatchError):
        write_batch(writer, TASKS, SETTINGS, out, stop_after(3), 1)
    counted = []
    write_batch(writer, [*TASKS[:2], Task("c", "def sub")], SETTINGS, out, counted.append, 1)
    assert counted == [2, 1]
    assert json.loads(out.read_text().strip().split("\n")[2])["id"] == "c"


def test_an_error_names_its_prompt(writer, tmp_path):
    written = []
    with pytest.raises(InputError, match=r"prompt 'long': the prompt has .* x reads at most 512") as caught:
        write_batch(writer, [*TASKS, Task("long", "word " * 600)], SETTINGS, tmp_path / "out.jsonl", written.append)
    assert caught.value.hint == "shorten the prompt"
    assert written == []  # before anything was written


@pytest.mark.parametrize("change", ["settings", "models", "method"])
def test_what_other_models_or_settings_have_written_is_neither_used_nor_lost(writer, tmp_path, change):
    out = tmp_path / "out.jsonl"
    with pytest.raises(InterruptedBatchError):
        write_batch(writer, TASKS, SETTINGS, out, stop_after(2), 1)
    journal = out.with_name("out.jsonl.partial")
    before = journal.read_bytes()
    settings = WritingSettings(max_bytes=21) if change == "settings" else SETTINGS
    other = writer
    if change == "models":
        other = FusedWriter([small_model("metaspace_bpe"), small_model("unigram", 1)], ["x", "y"])
    if change == "method":
        from lmfuse.decode.cool import Cool

        other = FusedWriter([small_model("byte_bpe"), small_model("unigram", 1)], ["x", "y"], Cool(length=2))
    with pytest.raises(InputError, match=r"out\.jsonl\.partial holds texts of other models or of other settings"):
        write_batch(other, TASKS, settings, out, batch_prompts=1)
    assert journal.read_bytes() == before


def test_of_other_batches_only_those_of_the_same_prompts_are_kept(writer, tmp_path):
    out, counted = tmp_path / "out.jsonl", []
    with pytest.raises(InterruptedBatchError):
        write_batch(writer, TASKS, SETTINGS, out, stop_after(2), 1)
    write_batch(writer, TASKS, SETTINGS, out, counted.append, 2)
    assert counted == [1, 1, 1]  # "a" is the longest prompt and a batch of its own either way
    write_batch(writer, TASKS, SETTINGS, tmp_path / "whole.jsonl", batch_prompts=2)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_prompts_and_conversations(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n{"question_id": 7, "question": "Why?"}\n')
    assert read_tasks(path, chat=True, system="Be brief.") == [
        Task("1", [Segment("Be brief.", "system", False), Segment("Hi", "user", False)]),
        Task("7", [Segment("Be brief.", "system", False), Segment("Why?", "user", False)]),
    ]
    path.write_bytes(b'\xef\xbb\xbf{"prompt": null, "question": "Why?"}\n')
    assert read_tasks(path, chat=False) == [Task("1", "Why?")]
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    with pytest.raises(InputError, match="line 1: a conversation, and no chat template"):
        read_tasks(path, chat=False)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "line 1: no JSON"),
        ('{"prompt": ' + "[" * 100_000, "line 1: no JSON"),
        ('{"id": "2", "prompt": "a"}\n{"prompt": "b"}', "line 2: id '2' stands twice"),
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
