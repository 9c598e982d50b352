"""A file of prompts in, a file of texts out: resumable, one line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmfuse.artefacts import content_key
from lmfuse.conversations import read_turns, turns_field
from lmfuse.disk import full_disk_is_an_error, write_atomic
from lmfuse.errors import InputError, LmfuseError, TextError
from lmfuse.generate import FusedWriter
from lmfuse.locks import lock
from lmfuse.types import Segment
from lmfuse.writing import Finish, Passage, Prompt, WritingSettings, prompt_bytes

HINT = 'one object a line: {"prompt": "..."}, {"question": "..."} or {"messages": [...]}, with an "id" if it has one'

BATCH_PROMPTS = 8  # that are written at the same time


@dataclass(frozen=True)
class Task:
    """A prompt and its identity in files."""

    id: str
    prompt: Prompt


def read_tasks(path: Path, *, chat: bool, system: str = "") -> list[Task]:
    """Read prompts from JSON lines.

    Args:
        path: the file.
        chat: whether prompts are conversations; a ``prompt`` or ``question`` then is a user's message.
        system: a system message for conversations that have none.

    Raises:
        InputError: the file is missing, malformed or empty, an id stands twice, or a conversation is there and ``chat`` is not; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", HINT) from None
    found: dict[str, Task] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # the latter: brackets within brackets
            raise InputError(f"{where}: no JSON", HINT) from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: {type(record).__name__}, expected an object", HINT)
        named = [record[key] for key in ("id", "question_id") if record.get(key) is not None]
        name = str(named[0] if named else number)
        if name in found:
            raise InputError(f"{where}: id {name!r} stands twice", HINT if named else "a line without an id is called by its number")
        found[name] = Task(name, _prompt(record, where, chat, system))
    if not found:
        raise InputError(f"{path}: no prompt in it", HINT)
    return list(found.values())


def _prompt(record: dict[str, Any], where: str, chat: bool, system: str) -> Prompt:
    text = next((record[key] for key in ("prompt", "question") if record.get(key) is not None), None)
    if turns_field(record) is not None:
        if not chat:
            raise InputError(f"{where}: a conversation, and no chat template", "add --chat-template own")
        try:
            turns = [Segment(said, role, trained=False) for role, said, _ in read_turns(record, where)]
        except TextError as error:
            raise InputError(str(error), error.hint) from None
    elif isinstance(text, str):
        if not chat:
            return text
        turns = [Segment(text, "user", trained=False)]
    else:
        raise InputError(f"{where}: neither prompt, question nor messages", HINT)
    return [*([Segment(system, "system", trained=False)] if system and turns[0].role != "system" else []), *turns]


def write_batch(
    writer: FusedWriter,
    tasks: Sequence[Task],
    settings: WritingSettings,
    out: Path,
    progress: Callable[[int], None] = lambda _: None,
    batch_prompts: int = BATCH_PROMPTS,
) -> dict[str, int]:
    """Write a text for each prompt and put them into ``out``, in the order of the prompts; an interrupted call is continued.

    Of a call that was finished nothing is written again. What is kept of an interrupted one is whole batches: a batch is always written by
    the same prompts together, so that the file does not depend on interrupts. A prompt that was corrected costs its own batch only.

    Args:
        writer: the models.
        tasks: the prompts.
        settings: of all texts.
        out: the file.
        progress: told how many texts more there are.
        batch_prompts: how many texts are written at the same time.

    Returns:
        Counters: ``texts``, ``cut`` (by a limit), ``bytes``.

    Raises:
        BusyError: another process writes the same file.
        InputError: a prompt cannot be read by all models, before anything is written; names it; or see ``Writer.write``; or ``out``, or what
            is there of it, was written with other models, settings or prompts.
        ResourceError: the disk or the memory is too small.
    """
    setup = _setup(writer, settings)
    groups = {content_key([setup, [[task.id, _plain(task.prompt)] for task in batch]]): batch for batch in batches(tasks, batch_prompts)}
    names = {task.id: key for key, batch in groups.items() for task in batch}
    with lock(out):
        if out.exists():
            records = _finished(out, [(task.id, names[task.id]) for task in tasks])
            progress(len(records))
            return _counters(records)
        _refuse_unreadable(writer, tasks)
        journal = out.with_name(f"{out.name}.partial")
        done = _continued(journal, setup, groups)
        progress(sum(map(len, done.values())))
        for key, batch in groups.items():
            if key not in done:
                done[key] = _write(writer, key, batch, settings, progress)
                with full_disk_is_an_error(journal), open(journal, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "texts": done[key]}, ensure_ascii=False) + "\n")
        by_id = {record["id"]: record for some in done.values() for record in some}
        records = [by_id[task.id] for task in tasks]
        write_atomic(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
        journal.unlink()
    return _counters(records)


def _counters(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    cut = sum(record["finish_reason"] == "length" for record in records)
    return {"texts": len(records), "cut": cut, "bytes": sum(record["usage"]["text_bytes"] for record in records)}


def batches(tasks: Sequence[Task], batch_prompts: int) -> list[list[Task]]:
    """Divide tasks into those that are written at the same time: prompts of about the same length, so that they are read in one pass.

    >>> [[task.id for task in batch] for batch in batches([Task("a", "a long one"), Task("b", "short"), Task("c", "a longer one")], 2)]
    [['b', 'a'], ['c']]
    """
    ordered = sorted(tasks, key=lambda task: prompt_bytes(task.prompt)) if batch_prompts > 1 else list(tasks)
    return [ordered[start : start + batch_prompts] for start in range(0, len(ordered), batch_prompts)]


def _setup(writer: FusedWriter, settings: WritingSettings) -> str:
    method = {"name": type(writer.method).__name__, **asdict(writer.method)}  # type: ignore[call-overload]
    return content_key(["generate", 2, writer.keys, writer.models, method, asdict(settings)])


def _plain(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [asdict(segment) for segment in prompt]


def _refuse_unreadable(writer: FusedWriter, tasks: Sequence[Task]) -> None:
    for task in tasks:
        try:
            writer.check(task.prompt)
        except InputError as error:
            raise type(error)(f"prompt {task.id!r}: {error}", error.hint) from None


def _write(
    writer: FusedWriter, key: str, batch: Sequence[Task], settings: WritingSettings, progress: Callable[[int], None]
) -> list[dict[str, Any]]:
    records = []
    for task, written in zip(batch, writer.write_many([task.prompt for task in batch], settings, done=lambda _: progress(1)), strict=True):
        if isinstance(written, LmfuseError):
            raise type(written)(f"prompt {task.id!r}: {written}", written.hint)
        records.append(_record(task, key, written))
    return records


def _record(task: Task, key: str, written: Sequence[Passage | Finish]) -> dict[str, Any]:
    passages = [each for each in written if isinstance(each, Passage)]
    finish = next(each for each in written if isinstance(each, Finish))
    usage = {**asdict(finish.usage), "tokens": dict(finish.usage.tokens), "prompt_tokens": dict(finish.usage.prompt_tokens)}
    said = [{"author": each.author, "text": each.text} for each in passages]
    text = "".join(each.text for each in passages)
    return {"id": task.id, "text": text, "finish_reason": finish.reason, "passages": said, "usage": usage, "batch": key}


def _finished(out: Path, expected: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the texts of a file that a call like this one has finished."""
    records: list[dict[str, Any]] = []
    with suppress(ValueError, TypeError, KeyError, RecursionError, OSError):
        records = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]
        if [(record["id"], record["batch"]) for record in records] == list(expected):
            return records
    raise InputError(f"{out} is there already, and not from this call", "name another --out, or remove it")


def _continued(journal: Path, setup: str, groups: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the batches that an earlier call has written; the journal then holds these, and whole lines only."""
    header = json.dumps({"setup": setup})
    lines = journal.read_text(encoding="utf-8", errors="replace").split("\n") if journal.exists() else [header]
    if lines[0] != header:
        raise InputError(f"{journal} holds texts of other models or of other settings", "remove it, or name another --out")
    done: dict[str, list[dict[str, Any]]] = {}
    for line in lines[1:]:
        with suppress(ValueError, TypeError, KeyError):  # the last line of a process that was killed
            batch = json.loads(line)
            if batch["key"] in groups:
                done[batch["key"]] = batch["texts"]
    journal.parent.mkdir(parents=True, exist_ok=True)
    kept = (json.dumps({"key": key, "texts": texts}, ensure_ascii=False) for key, texts in done.items())
    write_atomic(journal, "".join(f"{line}\n" for line in (header, *kept)).encode())
    return done
