"""One writer, one text at a time, a line of bounded length, and a thread that lives as long as the server.

The thread frees the writer itself, when a text is really over: a client that goes away, or a task that is cancelled, cannot leave
the writer taken, and two texts never run at once. It is one thread for all texts because every thread that computes keeps
helper threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from lmfuse.serve.api_error import ApiError, api_error_of
from lmfuse.writing import Finish, Passage, Prompt, Usage, Writer, WritingSettings

log = logging.getLogger("lmfuse.serve")

LATE_SECONDS = 30.0  # a writer that has not noticed for so long that its time is over will not notice any more


@dataclass(frozen=True)
class Halt:
    """A text that was ended from outside: its time was over, the server closes, or nobody listens any more.

    Attributes:
        usage: where the time was over and the writer can count.
    """

    why: Literal["time", "closing", "gone"]
    usage: Usage | None = None


@runtime_checkable
class Counts(Protocol):
    """A writer that can say how long a text is whose end it never saw (see ``counting.py``)."""

    def usage(self, prompt: Prompt, text: str) -> Usage:
        """Return what a ``Finish`` after this text would say."""
        ...


Ending: TypeAlias = Finish | Halt | Exception


class Job:
    """A text that a client waits for: what to write, and its passages as they come. Made in the event loop."""

    def __init__(self, prompt: Prompt, settings: WritingSettings, seconds: float, request_id: str = "") -> None:
        self.prompt, self.settings, self.seconds, self.request_id = prompt, settings, seconds, request_id
        self.created = time.monotonic()
        self.deadline = math.inf
        self._stopped: Literal["", "closing", "gone"] = ""
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Passage | Ending] = asyncio.Queue()

    def stop(self, why: Literal["closing", "gone"]) -> None:
        """Ask for its end at the next passage."""
        self._stopped = self._stopped or why

    def cancelled(self) -> bool:
        """Return whether the writer should stop: what it asks between passages."""
        return bool(self._stopped) or time.monotonic() >= self.deadline

    @property
    def stopped(self) -> Literal["", "closing", "gone"]:
        """Return why its end was asked for, if it was."""
        return self._stopped

    def post(self, piece: Passage | Ending) -> None:
        """Hand over a piece, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:  # the event loop is closed
            self.stop("gone")

    async def piece(self) -> Passage | Finish | Halt:
        """Return the next passage, or how the text ended.

        Raises:
            ApiError: the writer failed; the server closed before the text began.
        """
        found = await self._pieces.get()
        if isinstance(found, Exception):
            field = "prompt" if isinstance(self.prompt, str) else "messages"
            raise api_error_of(found, field) or ApiError(500, f"internal error (request {self.request_id})", code="internal_error")
        return found


class Desk:
    """Where one writer works.

    Args:
        writer: whose texts are asked for.
        places: how many requests may wait while one is answered.
    """

    def __init__(self, writer: Writer, places: int) -> None:
        self.writer, self.places = writer, places
        self._wake = threading.Condition()
        self._line: deque[Job] = deque()
        self._current: Job | None = None
        self._closing = False
        self._mean_seconds = 1.0
        self._thread = threading.Thread(target=self._work, name=f"lmfuse-writer-{writer.name}", daemon=True)

    @property
    def waiting(self) -> int:
        """Return how many requests wait."""
        return len(self._line)

    @property
    def writing(self) -> bool:
        """Return whether a text is being written."""
        return self._current is not None

    @property
    def stuck(self) -> bool:
        """Return whether the writer has long passed the end of a text's time and never asked whether to stop."""
        current = self._current
        return current is not None and time.monotonic() > current.deadline + LATE_SECONDS

    def check_alive(self) -> None:
        """Raise where the writer will not write any more.

        Raises:
            ApiError: 503.
        """
        if self.stuck:
            raise ApiError(503, f"model {self.writer.name} does not answer any more", code="stuck")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job in line; its pieces come by themselves.

        Raises:
            ApiError: 429 when the line is full, 503 when the server closes or the writer is stuck.
        """
        self.check_alive()
        with self._wake:
            if self._closing:
                raise ApiError(503, "the server is shutting down", code="shutting_down")
            present = len(self._line) + self.writing
            if present > self.places:
                raise self._busy(f"{len(self._line)} requests are waiting for model {self.writer.name} already", present)
            self._line.append(job)
            self._wake.notify()

    def give_up(self, job: Job, wait_seconds: float) -> None:
        """Take a job that has waited for too long out of the line; nothing happens to one that is being written.

        Raises:
            ApiError: 429, it was in line for ``wait_seconds`` or longer.
        """
        if time.monotonic() < job.created + wait_seconds:
            return
        with self._wake:
            if job in self._line:
                self._line.remove(job)
                raise self._busy(f"model {self.writer.name} was busy for {wait_seconds:g} seconds", len(self._line) + self.writing)

    def _busy(self, message: str, present: int) -> ApiError:
        seconds = min(60, max(1, math.ceil(self._mean_seconds * present)))
        return ApiError(429, message, code="rate_limit_exceeded", retry_after_seconds=seconds)

    def leave(self, job: Job) -> None:
        """Give up a job, in whatever state it is; the end of everyone's visit."""
        job.stop("gone")
        with self._wake:
            if job in self._line:
                self._line.remove(job)

    def close(self) -> None:
        """Take no more jobs and send away those that wait; the text that is being written goes on."""
        with self._wake:
            self._closing = True
            waiting, self._line = list(self._line), deque()
            self._wake.notify()
        for job in waiting:
            job.post(ApiError(503, "the server is shutting down", code="shutting_down"))

    def stop(self) -> None:
        """End the text that is being written, for its reader at once, for the writer at its next passage."""
        current = self._current
        if current is not None:
            current.stop("closing")
            current.post(Halt("closing"))

    def join(self, seconds: float) -> bool:
        """Wait for the thread's end after ``close``; return whether it came. A thread that hangs does not hold up the process."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._take()) is not None:
            began = time.monotonic()
            job.deadline = began + job.seconds
            ending = self._write(job)
            self._mean_seconds += 0.2 * (time.monotonic() - began - self._mean_seconds)
            self._current = None  # before the client hears the end: its next request must find the writer free
            job.post(ending)

    def _take(self) -> Job | None:
        with self._wake:
            while not self._line:
                if self._closing:
                    return None
                self._wake.wait()
            self._current = self._line.popleft()
            return self._current

    def _write(self, job: Job) -> Ending:
        pieces, text = None, ""
        try:
            pieces = self.writer.write(job.prompt, job.settings, job.cancelled)
            for piece in pieces:
                if isinstance(piece, Finish):
                    return piece
                text += piece.text
                job.post(piece)
                if job.cancelled():
                    break
            if not job.cancelled():
                raise RuntimeError("the writer ended without a Finish")
            if job.stopped:
                return Halt(job.stopped)
            return Halt("time", self.writer.usage(job.prompt, text) if isinstance(self.writer, Counts) else None)
        except Exception as error:
            if api_error_of(error) is None:
                log.exception("request %s: the writer failed", job.request_id)
            return error.with_traceback(None)  # which would keep a whole model's activations alive
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()


class House:
    """All desks by the name of their model."""

    def __init__(self, writers: tuple[Writer, ...], places: int) -> None:
        self.desks = {writer.name: Desk(writer, places) for writer in writers}
        if len(self.desks) < len(writers):
            raise ValueError(f"two writers of one name: {[writer.name for writer in writers]}")
        self.closed = asyncio.Event()

    @property
    def closing(self) -> bool:
        """Return whether no more requests are taken."""
        return self.closed.is_set()

    def start(self) -> None:
        """Start every desk's thread."""
        for desk in self.desks.values():
            desk.start()

    def close(self) -> None:
        """Take no more requests; texts that are being written go on. Called in the event loop."""
        self.closed.set()
        for desk in self.desks.values():
            desk.close()

    def stop(self) -> None:
        """End the texts that are being written."""
        for desk in self.desks.values():
            desk.stop()

    def join(self, seconds: float) -> bool:
        """Wait for all threads' ends after ``close``, so long in all; return whether they came."""
        end = time.monotonic() + seconds
        return all(desk.join(max(0.0, end - time.monotonic())) for desk in self.desks.values())

    def find(self, name: str) -> Desk:
        """Return a model's desk.

        Raises:
            ApiError: 404.
        """
        if name not in self.desks:
            known = ", ".join(self.desks)
            raise ApiError(404, f"the model {name[:200]!r} does not exist (known: {known})", param="model", code="model_not_found")
        return self.desks[name]
