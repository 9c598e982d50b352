"""A file of prompts in, a file of texts out: resumable, one line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmfuse.artefacts import content_key
from lmfuse.conversations import read_turns, turns_field
from lmfuse.disk import full_disk_is_an_error, write_atomic
from lmfuse.errors import InputError, TextError
from lmfuse.generate import FusedWriter
from lmfuse.locks import lock
from lmfuse.types import Segment
from lmfuse.writing import Finish, Passage, Prompt, WritingSettings

HINT = 'one object a line: {"prompt": "..."}, {"question": "..."} or {"messages": [...]}, with an "id" if it has one'


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
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", HINT) from None
    found: dict[str, Task] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError:
            raise InputError(f"{where}: no JSON", HINT) from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: {type(record).__name__}, expected an object", HINT)
        name = str(record.get("id", record.get("question_id", number)))
        if name in found:
            raise InputError(f"{where}: id {name!r} stands twice", HINT)
        found[name] = Task(name, _prompt(record, where, chat, system))
    if not found:
        raise InputError(f"{path}: no prompt in it", HINT)
    return list(found.values())


def _prompt(record: dict[str, Any], where: str, chat: bool, system: str) -> Prompt:
    text = record.get("prompt", record.get("question"))
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
    writer: FusedWriter, tasks: Sequence[Task], settings: WritingSettings, out: Path, progress: Callable[[int], None] = lambda _: None
) -> dict[str, int]:
    """Write a text for each prompt and put them into ``out``, in the order of the prompts; an interrupted call is continued.

    Returns:
        Counters: ``texts``, ``cut`` (by a limit), ``bytes``.

    Raises:
        BusyError: another process writes the same file.
        InputError: see ``Writer.write``.
        ResourceError: the disk or the memory is too small.
    """
    prompts = [task.prompt if isinstance(task.prompt, str) else [asdict(segment) for segment in task.prompt] for task in tasks]
    method = {"name": type(writer.method).__name__, **asdict(writer.method)}  # type: ignore[call-overload]
    key = content_key(["generate", writer.keys, writer.models, method, asdict(settings), [task.id for task in tasks], prompts])
    with lock(out):
        journal = out.with_name(f"{out.name}.partial")
        done = _continued(journal, key)
        progress(len(done))
        for task in tasks:
            if task.id in done:
                continue
            done[task.id] = _record(task, list(writer.write(task.prompt, settings)))
            with full_disk_is_an_error(journal), open(journal, "a", encoding="utf-8") as file:
                file.write(json.dumps(done[task.id], ensure_ascii=False) + "\n")
            progress(1)
        records = [done[task.id] for task in tasks]
        write_atomic(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
        journal.unlink()
    cut = sum(record["finish_reason"] == "length" for record in records)
    return {"texts": len(records), "cut": cut, "bytes": sum(record["usage"]["text_bytes"] for record in records)}


def _record(task: Task, written: Sequence[Passage | Finish]) -> dict[str, Any]:
    passages = [each for each in written if isinstance(each, Passage)]
    finish = next(each for each in written if isinstance(each, Finish))
    usage = {**asdict(finish.usage), "tokens": dict(finish.usage.tokens), "prompt_tokens": dict(finish.usage.prompt_tokens)}
    said = [{"author": each.author, "text": each.text} for each in passages]
    text = "".join(each.text for each in passages)
    return {"id": task.id, "text": text, "finish_reason": finish.reason, "passages": said, "usage": usage}


def _continued(journal: Path, key: str) -> dict[str, dict[str, Any]]:
    """Return what an earlier call with the same key has written; the journal then holds that, and whole lines only."""
    header = json.dumps({"key": key}) + "\n"
    lines = journal.read_text(encoding="utf-8", errors="replace").split("\n") if journal.exists() else [""]
    done: dict[str, dict[str, Any]] = {}
    if lines[0] + "\n" == header:
        for line in lines[1:]:
            with suppress(ValueError, TypeError, KeyError):  # the last line of a process that was killed
                record = json.loads(line)
                done[record["id"]] = record
    journal.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(journal, (header + "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in done.values())).encode())
    return done
