"""A stranger's chat template, rendered in a process that can be ended.

jinja2's sandbox keeps a template away from Python's insides, but not from loops without end or from filling the memory. So it runs in a child
process with limits on processor time, memory and output, which cannot open a file. The child is kept for the next conversation; after a fault
it is ended, and the next question starts another.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from lmfuse.bytes_trial import PASSED_ON, _pythons
from lmfuse.errors import InputError

CPU_SECONDS = 2  # for one conversation; usual ones need a thousandth of it
WALL_SECONDS = 30 if os.name == "posix" else 4  # only a stopped process needs it where processor time is limited
MEMORY_BYTES = 1 << 30
MOST_OUTPUT = 1 << 20  # characters, and GROWTH times those of the messages
GROWTH = 8
LONGEST_ESCAPE = 12  # bytes of JSON that one character can take
HINT = "use a model whose chat template is well known, or name another one: chat_template: openchat, or the path of a template"


@dataclass(frozen=True)
class Rendered:
    """What a template wrote, or why it refuses these messages."""

    text: str = ""
    problem: str = ""


class ChatSandbox:
    """One chat template in one child process, which starts with the first question. Safe for several threads, and after a fork."""

    def __init__(self, model: str, source: str, variables: dict[str, str]) -> None:
        """Keep a template; ``model`` is what errors call it by, ``variables`` are the tokens that it may name."""
        self.model, self.source, self.variables = model, source, variables
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._broken = ""  # why no messages can ever be rendered, once that is known
        self._lock = threading.Lock()

    def render(self, messages: Sequence[tuple[str, str]], *, prompt: bool = False) -> Rendered:
        """Return what the template writes for messages of role and content; with ``prompt`` up to where an answer would begin.

        Raises:
            InputError: the template cannot be read, does not end, needs too much memory, writes too much, or tries to escape.
        """
        most = MOST_OUTPUT + GROWTH * sum(len(text) for _, text in messages)
        named = [{"role": role, "content": text} for role, text in messages]
        asked = json.dumps({"messages": named, "prompt": prompt, "most": most}).encode() + b"\n"
        with self._lock:
            if self._broken:
                raise self._fault(self._broken)
            answer, how = _exchange(self._running(), asked, LONGEST_ESCAPE * most)
            found: dict[str, str] = json.loads(answer) if answer else {"fault": how}
            if "fault" in found:
                self._broken = found["fault"] if "always" in found else ""
                self._end()
                raise self._fault(found["fault"])
        return Rendered(found.get("text", ""), _one_line(found["problem"]) if "problem" in found else "")

    def _fault(self, what: str) -> InputError:
        return InputError(f"model {self.model}: its chat template {_one_line(what)}", HINT)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._owner == os.getpid() and self._child.poll() is None:
            return self._child
        reason = "no Python was found"
        for python in _pythons():
            try:
                child = _start(python)
            except OSError as error:
                reason = f"{python}: {error.strerror}"
                continue
            weakref.finalize(self, _close, child, os.getpid())
            line, how = _exchange(child, self._introduction())
            if line.strip() == b"ready":
                self._child, self._owner = child, os.getpid()
                return child
            child.kill()
            reason = f"{python} cannot import jinja2 ({how})"
        raise self._fault(f"cannot be run: {reason}")

    def _introduction(self) -> bytes:
        import jinja2

        given = {"library": str(Path(jinja2.__file__).resolve().parents[1]), "source": self.source, "variables": self.variables}
        return json.dumps(given | {"seconds": CPU_SECONDS, "bytes": MEMORY_BYTES}).encode() + b"\n"

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


def _start(python: str) -> subprocess.Popen[bytes]:
    code = files("lmfuse").joinpath("chat_child.py").read_text(encoding="utf-8")
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return subprocess.Popen(
        [python, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=kept
    )


def _exchange(child: subprocess.Popen[bytes], line: bytes, most_bytes: int = MOST_OUTPUT) -> tuple[bytes, str]:
    """Write a line to the child and return the one that it answers, and in words how it ended if it answers none.

    A child that answers more than ``most_bytes`` (and some for the names of the fields) is ended.
    """
    assert child.stdin is not None
    assert child.stdout is not None
    late = threading.Event()

    def stop() -> None:
        late.set()
        child.kill()

    clock = threading.Timer(WALL_SECONDS, stop)
    clock.daemon = True
    clock.start()
    with suppress(OSError):  # it has ended; reading says how
        child.stdin.write(line)
        child.stdin.flush()
    answer = child.stdout.readline(most_bytes + 10_000)
    clock.cancel()
    if answer.endswith(b"\n"):
        return answer, ""
    if len(answer) > most_bytes:
        child.kill()
        child.wait()
        return b"", f"answers more than {most_bytes:,} bytes"
    status = child.wait()
    if late.is_set():
        return b"", f"does not end within {WALL_SECONDS} s"
    if status == -getattr(signal, "SIGXCPU", 0):
        return b"", f"does not end in {CPU_SECONDS} s of processor time"
    return b"", f"ends the process that renders it (status {status})"


def _close(child: subprocess.Popen[bytes], owner: int) -> None:
    """End a child that nobody needs any more, unless it belongs to the process that we were forked from."""
    if os.getpid() == owner:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()


def _one_line(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(shown.split())[:200]
