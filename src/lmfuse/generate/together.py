"""Several texts written at the same time: each in a thread of its own, in turns, and what they want of one model is read in one pass.

One thread runs at any time: a text's until it wants a forward pass, then the next text's; when all of them wait, the caller's, which
runs the pass that most of them wait for. So what happens depends on the texts alone, and not on which thread was faster.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from lmfuse.errors import LmfuseError, ResourceError
from lmfuse.generate.cache import Seat, Wanted
from lmfuse.generate.crew import CancelledError
from lmfuse.generate.rooms import Rooms
from lmfuse.generate.stacked import read_many
from lmfuse.memory import out_of_memory_is_an_error

Said = TypeVar("Said")
Write = Callable[[Sequence[Seat]], Iterable[Said]]


class _Text(threading.Thread, Generic[Said]):
    """One text; what it says is in ``said``, why it could not be written in ``error``."""

    def __init__(self, write: Write[Said], rooms: Sequence[Rooms], row: int) -> None:
        super().__init__(name=f"lmfuse-text-{row}", daemon=True)
        self.said, self.ended = list[Said](), False
        self.error: BaseException | None = None
        self.wanted: Wanted | None = None
        self._answer: Tensor | None = None
        self._write, self._seats = write, [Seat(each, row, self._forward) for each in rooms]
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._left = False

    def run(self) -> None:
        """Write, when it is the text's turn."""
        try:
            self._wait()
            with suppress(CancelledError):
                self.said.extend(self._write(self._seats))
        except BaseException as error:  # it is the caller's
            self.error = error
        finally:
            self._seats, self.ended = [], True  # keys and values are not kept until the garbage collector finds them
            self._back.release()

    def _forward(self, wanted: Wanted) -> Float[Tensor, "T V"]:
        self.wanted = wanted
        self._back.release()
        self._wait()
        answer, self._answer = self._answer, None
        assert answer is not None
        return answer

    def _wait(self) -> None:
        self._turn.acquire()
        if self._left:
            raise CancelledError

    # ── what the caller does ────────────────────────────────────────────────────────────────────────────────────────

    def take_turn(self, answer: Float[Tensor, "T V"] | None = None) -> None:
        """Let it go on, with what it waited for, until it wants something or has ended.

        Raises:
            ResourceError: memory did not suffice.
            Exception: anything that is nobody's fault but ours.
        """
        self.wanted, self._answer = None, answer
        self._turn.release()
        self._back.acquire()
        if self.error is not None and (isinstance(self.error, ResourceError) or not isinstance(self.error, LmfuseError)):
            raise self.error

    def leave(self) -> None:
        """Let it end at once, wherever it is."""
        self._left = True
        self._turn.release()

    @property
    def outcome(self) -> list[Said] | LmfuseError:
        """Return what it said, or why it could not; the error holds nothing of what was read."""
        if not isinstance(self.error, LmfuseError):
            return self.said
        self.error.__traceback__ = self.error.__context__ = self.error.__cause__ = None
        return self.error


def write_together(
    writes: Sequence[Write[Said]], num_models: int, done: Callable[[int], None] = lambda _: None
) -> list[list[Said] | LmfuseError]:
    """Write several texts.

    Args:
        writes: each writes a text; it is given a seat for each model, and wants nothing of a model but through it.
        num_models: how many there are.
        done: told the place of each text that has ended.

    Returns:
        For each what it said, or the error that ended it; of a text that was cancelled what it had said until then.

    Raises:
        ResourceError: memory does not suffice for all of them.
    """
    rooms = [Rooms(len(writes)) for _ in range(num_models)]
    texts = [_Text(write, rooms, row) for row, write in enumerate(writes)]

    def turn(row: int, answer: Tensor | None = None) -> None:
        texts[row].take_turn(answer)
        if texts[row].ended:
            done(row)

    try:
        for row, text in enumerate(texts):
            text.start()
            turn(row)
        while waiting := [(row, text.wanted) for row, text in enumerate(texts) if text.wanted is not None]:
            models = [[row for row, wanted in waiting if wanted.reader.seat.rooms is each] for each in rooms]
            rows = max(models, key=len)  # of equals the first
            for row, answer in zip(rows, _read([wanted for row, wanted in waiting if row in rows]), strict=True):
                turn(row, answer)
        return [text.outcome for text in texts]
    finally:
        for text in texts:
            text.leave()
        for text in texts:
            if text.ident is not None:
                text.join()


def _read(wanted: Sequence[Wanted]) -> list[Float[Tensor, "T V"]]:
    with torch.inference_mode(), out_of_memory_is_an_error(f"writing {len(wanted)} texts at the same time"):
        return read_many(wanted)
