"""A stranger's Python program and its tests, run where they can do no harm.

The program runs in a child process (``sandbox_child.py``) under every protection that the system gives an ordinary user: namespaces of its own
(no network, no other process, a root that holds the interpreter, read only, and an empty folder in memory), Landlock (no file but these), a
filter of system calls (no sockets but pairs of its own, no new processes, no signals to others), limits on processor time, memory, files and
threads, and a clock outside. It sees no environment and no standard input, and only the standard library. The child and everything in it are
killed at the end in any case.

A filter, and a root of its own or Landlock, are the least: where the system has neither, nothing is run and an error says so.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from io import FileIO
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from lmfuse.bytes_trial import _pythons
from lmfuse.errors import InputError
from lmfuse.judges.sandbox_host import folder_bytes, remove_folder, threads_of, working_user
from lmfuse.judges.system_calls import machine_is_known, seccomp_filter

Outcome = Literal["passed", "failed", "timeout", "memory", "output", "disk", "ended"]
HINT = "run on Linux with Landlock (6.2 or newer) or with user namespaces, on x86-64 or 64-bit ARM, or leave the judge `unit_tests` out"
PASSED_ON = ("LD_LIBRARY_PATH",)  # passed on where an interpreter does not start without it; the program does not see it
FLAGS = ("-I", "-S", "-B", "-X", "utf8")  # nothing from the environment, no packages, no files written, UTF-8 whatever the locale
TICK = 0.05  # seconds between two looks at the folder, where it is on a disk
ANSWERED = b'{"answered": true}\n'  # what the child reports when the program has ended
THREADS = 256  # beside those that its user has already, which the kernel counts with it
LONGEST_REPORT = 100_000  # bytes
LONGEST_DETAIL = 2000  # characters
LIMIT_SIGNALS = (signal.SIGXCPU, signal.SIGKILL)  # of processor time: asked to end, made to end


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class SandboxLimits:
    """How much a program may use.

    - ``wall_seconds``, ``cpu_seconds``: of time by the clock, of processor time.
    - ``memory_mb``: of address space.
    - ``disk_mb``: of all files together, in memory where the system allows; ``file_mb``: of one.
    - ``output_kb``: of what it writes to its standard output and error; what writes more is killed.
    """

    wall_seconds: Annotated[float, Field(gt=0, le=3600)] = 20.0
    cpu_seconds: Annotated[int, Field(ge=1, le=3600)] = 10
    memory_mb: Annotated[int, Field(ge=64)] = 1024
    disk_mb: Annotated[int, Field(ge=1)] = 64
    file_mb: Annotated[int, Field(ge=1)] = 16
    output_kb: Annotated[int, Field(ge=1)] = 256


@dataclass(frozen=True)
class Ran:
    """How a program ended.

    Attributes:
        outcome: ``passed``: it and its tests ran to their end; ``failed``: one of them raised; ``timeout``, ``memory``, ``output``, ``disk``: a
            limit was met; ``ended``: it ended before its tests did.
        detail: what it raised, or how it ended.
        output: what it wrote to standard output and error, up to the limit; bytes that are no UTF-8 as ``\\xff``.
        layers: the protections that held.
        folder_left: whether something of its folder could not be removed.
    """

    outcome: Outcome
    detail: str
    output: str
    layers: dict[str, Any] = field(default_factory=dict)
    folder_left: bool = False


def run_python(answer: str, tests: str, limits: SandboxLimits, without: Collection[str] = ()) -> Ran:
    """Execute a program, then its tests in the same module.

    The tests and a word, which only a run to their end reads, are handed in once the program has ended: one that exits early has not passed, one
    that replaces Python's own functions has failed, and none can read its tests before it is tested. What the tests call is the program's all the
    same: functions written to deceive (a result that equals everything, a thread that looks for the word) can pass; they cannot do harm.

    Args:
        answer: the program.
        tests: assertions about it, as source code.
        limits: what it may use.
        without: layers that are not to be used, ``namespaces`` or ``landlock``; what is left must suffice all the same.

    Raises:
        InputError: this system cannot run a stranger's program safely; says what is missing.
    """
    if not machine_is_known():
        raise InputError(f"unit_tests: no sandbox for {sys.platform} on this processor", HINT)
    word, folder, user = secrets.token_hex(16), tempfile.mkdtemp(prefix="lmfuse-sandbox-"), working_user()
    try:
        with _pipe() as (reader, report), _pipe() as (token, writer):
            order = {
                "answer": answer, "program": _source("sandbox_program.py"), "folder": os.path.realpath(folder), "without": [*without],
                "filter": seccomp_filter().hex(), "parent": os.getpid(), "report": report.fileno(), "token": token.fileno(),
                "user": user, "threads": threads_of(user) + THREADS, "cpu_seconds": limits.cpu_seconds,
                "memory_bytes": limits.memory_mb << 20, "file_bytes": limits.file_mb << 20, "folder_bytes": limits.disk_mb << 20,
            }  # fmt: skip
            child = _start(order, (report.fileno(), token.fileno()))
            report.close()
            token.close()
            source = tests.encode("utf-8", "surrogatepass")
            watch = _Watch(child, reader.fileno(), limits, Path(folder))
            watch.until_it_ends(writer, len(source).to_bytes(8, "big") + source + word.encode())
    finally:
        remove_folder(Path(folder))
    ran = _verdict(watch, word)
    return replace(ran, folder_left=os.path.lexists(folder))


def _start(order: dict[str, Any], kept: tuple[int, ...]) -> subprocess.Popen[bytes]:
    code = _source("sandbox_child.py")
    reason = "no Python was found"
    for python in _pythons():
        try:
            child = subprocess.Popen(
                [python, *FLAGS, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env=_environment(python), start_new_session=True, pass_fds=kept, cwd="/",
            )  # fmt: skip
        except OSError as error:
            reason = f"{python}: {error.strerror}"
            continue
        assert child.stdin is not None
        with suppress(BrokenPipeError):
            child.stdin.write(json.dumps(order).encode())
        with suppress(BrokenPipeError):
            child.stdin.close()
        return child
    raise InputError(f"unit_tests: the sandbox cannot start: {reason}", HINT)


def _source(name: str) -> str:
    return files("lmfuse.judges").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment(python: str) -> dict[str, str]:
    """Return what an interpreter needs to start: nothing, unless it does not start so."""
    told = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    for given in ({}, told) if told else ():
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run([python, *FLAGS, "-c", "import ctypes"], env=given, cwd="/", capture_output=True, timeout=60, check=False)
            if done.returncode == 0:
                return given
    return {}


@contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """Make a pipe of two ends that can be closed twice: the number of one that is closed may be another thread's at once."""
    reader, writer = os.pipe()
    with FileIO(reader, "rb") as out, FileIO(writer, "wb") as into:
        yield out, into


class _Watch:
    """Reads what a child writes until it ends or meets a limit, then kills whatever is left of it."""

    def __init__(self, child: subprocess.Popen[bytes], report: int, limits: SandboxLimits, folder: Path) -> None:
        assert child.stdout is not None
        self.child, self.limits, self.folder = child, limits, folder
        self.texts = {report: bytearray(), child.stdout.fileno(): bytearray()}
        self.report, self.output = self.texts.values()
        self.most = {report: LONGEST_REPORT, child.stdout.fileno(): limits.output_kb << 10}
        self.broke: Outcome | None = None
        self.status = 0

    def until_it_ends(self, into: FileIO, tests: bytes) -> None:
        """Wait; hand in the tests when the program has run to its end."""
        deadline = time.monotonic() + self.limits.wall_seconds
        os.set_blocking(into.fileno(), False)
        waiting = True
        try:
            with selectors.DefaultSelector() as selector:
                for handle in self.texts:
                    selector.register(handle, selectors.EVENT_READ)
                while selector.get_map() and self.broke is None:
                    for key, _ in selector.select(min(TICK, max(0.0, deadline - time.monotonic()))):
                        if key.fd == into.fileno():
                            tests = tests[_written(key.fd, tests) :]
                        if not (tests if key.fd == into.fileno() else self._read(key.fd)):
                            selector.unregister(key.fd)
                    if waiting and ANSWERED in self.report:
                        selector.register(into.fileno(), selectors.EVENT_WRITE)
                        waiting = False
                    self._look(deadline)
            while self.broke is None and not self._has_ended():
                time.sleep(TICK / 5)
                self._look(deadline)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)  # before it is waited for: until then its number is its own
            self.status = self.child.wait()
            assert self.child.stdout is not None
            self.child.stdout.close()

    def _has_ended(self) -> bool:
        """Return whether the child has ended, without waiting for it: its number stays its own."""
        return os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _read(self, handle: int) -> bool:
        data, text = os.read(handle, 65536), self.texts[handle]
        text += data[: self.most[handle] - len(text)]
        if len(text) >= self.most[handle]:
            self.broke = "output"
        return bool(data)

    def _look(self, deadline: float) -> None:
        if self.broke is None and time.monotonic() >= deadline:
            self.broke = "timeout"
        if self.broke is None and folder_bytes(self.folder) > self.limits.disk_mb << 20:
            self.broke = "disk"


def _written(handle: int, data: bytes) -> int:
    """Write what there is room for; return how much, or everything where nobody reads any more."""
    try:
        return os.write(handle, data)
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return len(data)


def _verdict(watch: _Watch, word: str) -> Ran:
    said: dict[str, Any] = {}
    for line in bytes(watch.report).split(b"\n"):
        with suppress(ValueError, TypeError, RecursionError):
            said = {**json.loads(line), **said}  # the first word on each matter: later ones may be the program's
    layers = said.get("layers")
    output = bytes(watch.output).decode("utf-8", "backslashreplace")
    if not isinstance(layers, dict):
        reason = said.get("refused") or output.strip().split("\n")[-1] or f"status {watch.status}"
        raise InputError(f"unit_tests: this system cannot run a stranger's program safely: {str(reason)[:300]}", HINT)
    outcome, detail = _outcome(watch, said, word)
    return Ran(outcome, detail, output, layers)


def _outcome(watch: _Watch, said: dict[str, Any], word: str) -> tuple[Outcome, str]:
    if watch.broke is not None:
        return watch.broke, {"timeout": f"{watch.limits.wall_seconds:g} s by the clock", "disk": f"{watch.limits.disk_mb} MB of files"}.get(
            watch.broke, f"{watch.limits.output_kb} KB of output"
        )
    ended, used = said.get("signal"), said.get("seconds")
    if ended in LIMIT_SIGNALS and isinstance(used, float) and used >= 0.5 * watch.limits.cpu_seconds:
        return "timeout", f"{watch.limits.cpu_seconds} s of processor time"
    if said.get("passed") == word:
        return "passed", ""
    failure = str(said["failed"])[:LONGEST_DETAIL] if "failed" in said else ""
    if "MemoryError" in failure:
        return "memory", failure
    how = f"signal {ended}" if isinstance(ended, int) else f"status {watch.status}"
    return ("failed", failure) if failure else ("ended", f"{how} before the tests were done")
