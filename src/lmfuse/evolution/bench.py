"""Children judged, each once: from the journal where it knows them, else here or by worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType

import torch

from lmfuse.errors import InputError, LmfuseError, ResourceError
from lmfuse.evolution.journal import Journal
from lmfuse.evolution.judge import Question, Task, Unanswered, Verdict, judge
from lmfuse.evolution.scores import Scores
from lmfuse.evolve.genome import Genome
from lmfuse.evolve.program import program

_task: Task | None = None  # of a worker process


@dataclass
class Ticket:
    """A child that is being judged; ``result`` waits for it."""

    key: str
    result: Callable[[], Verdict]


class Bench:
    """Where children are judged.

    Attributes:
        fresh: how many verdicts were made by this process and its workers, rather than found in the journal.

    Args:
        task: what judging needs.
        journal: where verdicts are written as soon as they are known.
        workers: processes; with 1 children are judged here, one after the other.
    """

    def __init__(self, task: Task, journal: Journal, workers: int = 1) -> None:
        if workers < 1:
            raise InputError(f"workers: {workers}, expected at least 1", "1 judges children in this process")
        self._task, self._journal = task, journal
        self._begin = time.monotonic() - journal.elapsed
        self._lock = threading.Lock()
        self._running: dict[str, Ticket] = {}
        self._pool = None if workers == 1 else _pool(task, workers)
        self.fresh = 0

    @property
    def elapsed(self) -> float:
        """Return for how many seconds this search has run, interrupted runs included."""
        return time.monotonic() - self._begin

    def submit(self, genome: Genome, units: tuple[str, ...], rival: Scores | None = None, *, keep_failure: bool = True) -> Ticket:
        """Have a child judged. One that is being judged already is judged after that, so that nothing is scored twice.

        Args:
            genome: the child.
            units: to score it on, in this order.
            rival: scores of the member whose slot it would take, if the child may be stopped.
            keep_failure: whether a failure is written down, and not tried again by the next run.
        """
        key = genome.key
        if key in self._running:
            before = self._running[key]
            return Ticket(key, lambda: (before.result(), self.submit(genome, units, rival, keep_failure=keep_failure).result())[1])
        with self._lock:
            if (key, units[0]) in self._journal.failed:
                failure, message = self._journal.failed[key, units[0]]
                return Ticket(key, _constant(Verdict(failure=failure, message=message)))
            known = {unit: score for unit, score in self._journal.known.get(key, {}).items() if unit in set(units)}
        question = Question(program(genome), units, known, rival)
        try:
            return Ticket(key, _constant(judge(self._task, question, only_known=True)))
        except Unanswered:
            pass
        if self._pool is None:
            return Ticket(key, _constant(self._published(key, question, judge(self._task, question), keep_failure)))
        return self._sent(self._pool, key, question, keep_failure)

    def _sent(self, pool: ProcessPoolExecutor, key: str, question: Question, keep_failure: bool) -> Ticket:
        published: Future[Verdict] = Future()

        def done(work: Future[Verdict]) -> None:
            try:
                published.set_result(self._published(key, question, work.result(), keep_failure))
            except BaseException as reason:
                published.set_exception(reason)

        def result() -> Verdict:
            try:
                return published.result()
            except BrokenProcessPool as reason:
                raise ResourceError("a worker process was ended from outside", "use fewer workers: memory may be too small") from reason
            finally:
                self._running.pop(key, None)

        try:
            pool.submit(_work, question).add_done_callback(done)
        except BrokenProcessPool as reason:
            raise ResourceError("a worker process was ended from outside", "use fewer workers: memory may be too small") from reason
        self._running[key] = Ticket(key, result)
        return self._running[key]

    def _published(self, key: str, question: Question, verdict: Verdict, keep_failure: bool) -> Verdict:
        with self._lock:
            self.fresh += 1
            if verdict.failure and keep_failure:
                self._journal.failure(key, question.units[0], verdict.failure, verdict.message, self.elapsed)
            elif not verdict.failure:
                self._journal.judged(key, {unit: verdict.scores[unit] for unit in verdict.new}, self.elapsed)
        return verdict

    def __enter__(self) -> Bench:
        self._threads = torch.get_num_threads()
        if self._pool is None:
            torch.set_num_threads(self._task.threads)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the workers; after an error what they are at is given up."""
        torch.set_num_threads(self._threads)
        if self._pool is None:
            return
        if error is not None:
            for process in list((getattr(self._pool, "_processes", None) or {}).values()):  # shutdown would wait for them
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _constant(verdict: Verdict) -> Callable[[], Verdict]:
    return lambda: verdict


def _pool(task: Task, workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_work, initargs=(task, os.getpid()))


def _begin_work(task: Task, parent: int) -> None:
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    torch.set_num_threads(task.threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when its parent is gone: after ``kill -9`` nobody else would."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _work(question: Question) -> Verdict:
    if _task is None:
        raise LmfuseError("a worker without a task")
    return judge(_task, question)
