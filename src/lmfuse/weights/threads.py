"""Several threads on the pieces of many units: the oldest unit first, a few at a time, so that what is held at once is bounded."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from lmfuse.weights.read import Reader
from lmfuse.weights.units import Unit, Write

Done = Callable[[Unit, int], None]  # a unit, and the index of its tensor whose last piece was written


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crew:
    """Threads that merge units.

    Args:
        units: in the order of the files; taken one after the other, as they are begun.
        write: takes each merged piece.
        done: is told of each finished tensor.
        threads: how many.
    """

    def __init__(self, units: Iterable[Unit], write: Write, done: Done, threads: int) -> None:
        self._coming: Iterator[Unit] = iter(units)
        self._write, self._done = write, done
        self._most_active = 2 * threads + 2
        self._active: deque[Unit] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._stop = self._dry = False
        self._waiting = 0
        self._threads = [threading.Thread(target=self._work, name=f"merge-{n}", daemon=True) for n in range(threads)]

    def run(self, tick: Callable[[], None], seconds: float = 0.05) -> None:
        """Merge everything; ``tick`` is called in this thread every so many seconds and may raise to stop the work.

        Raises:
            Exception: the first that a thread met; all have stopped then.
        """
        with _one_torch_thread():
            for thread in self._threads:
                thread.start()
            try:
                for thread in self._threads:
                    while thread.is_alive():
                        tick()
                        thread.join(seconds)
            finally:
                with self._changed:
                    self._stop = True
                    self._changed.notify_all()
                for thread in self._threads:
                    thread.join()
        if self._error is not None:
            raise self._error
        tick()

    def _work(self) -> None:
        reader = Reader()
        try:
            while (task := self._take()) is not None:
                unit, turn = task
                tensor, complete = unit.work(turn, reader, self._write)
                if tensor is not None:
                    self._done(unit, tensor)
                with self._changed:
                    if unit.done and unit in self._active:
                        self._active.remove(unit)
                    if self._waiting or complete:
                        self._changed.notify_all()
        except BaseException as error:  # handed to the thread that waits in ``run``
            with self._changed:
                self._error = self._error or error
                self._stop = True
                self._changed.notify_all()

    def _take(self) -> tuple[Unit, int] | None:
        """Return a piece to work on, as soon as there is one; None when all is done."""
        with self._changed:
            while not self._stop:
                for unit in self._active:
                    turn = unit.hand_out()
                    if turn is not None:
                        return unit, turn
                if len(self._active) < self._most_active and not self._dry:
                    self._begin()
                elif not self._active:
                    return None
                else:
                    self._waiting += 1
                    self._changed.wait()
                    self._waiting -= 1
            return None

    def _begin(self) -> None:
        unit = next(self._coming, None)
        if unit is None:
            self._dry = True
            return
        unit.begin()
        if not unit.done:
            self._active.append(unit)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Let each of our threads compute alone: torch's own threads would fight with them over the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
