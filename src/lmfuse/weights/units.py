"""A merge method driven over the pieces of its unit: a tensor, or several that the method looks at together."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lmfuse.errors import InputError
from lmfuse.merge.family import About
from lmfuse.merge.piece import cuts
from lmfuse.weights.deltas import TensorDeltas
from lmfuse.weights.read import OpenTensor, Reader, refuse_non_finite

AHEAD = 32  # pieces that may be looked at before an earlier one is added: what waits to be added may be large

Write = Callable[[OpenTensor, int, Float[Tensor, "N"]], None]  # a tensor, the piece's first element, its merged values


@dataclass(frozen=True)
class Place:
    """One piece of a unit: which of its tensors, which piece of that, and its elements."""

    tensor: int
    number: int
    start: int
    stop: int


@dataclass
class Step:
    """One look over all pieces of a unit, or at last their merging."""

    job: Callable[..., Any]
    combining: bool
    order: list[int]
    handed: int = 0
    added: int = 0
    total: Any = None
    waiting: dict[int, Any] = field(default_factory=dict)


class Unit:
    """One unit on its way. Several threads work on its pieces; what its looks return is added in the order of the pieces.

    Attributes:
        name: for messages.
        tensors: of the result, open.
        counters: fallbacks that the method counted.
        deltas: how far the sources are from the base, for each tensor.

    Args:
        finished: names of tensors that are written already; they are looked at, but not merged.
        saw: is told how many bytes of files were read for the first time, by any thread.
    """

    def __init__(
        self, name: str, tensors: Sequence[OpenTensor], finished: Collection[str] = (), saw: Callable[[int], None] = lambda _: None
    ) -> None:
        self.name, self.tensors, self._saw = name, tensors, saw
        self.counters: Counter[str] = Counter()
        self.deltas = [TensorDeltas(len(tensor.sources)) for tensor in tensors]
        rows = tensors[0].output.method.needs_rows
        self._places = [Place(t, n, *cut) for t, tensor in enumerate(tensors) for n, cut in enumerate(cuts(tensor.output.shape, rows))]
        self._finished = [tensor.output.name in finished for tensor in tensors]
        self._left = Counter(place.tensor for place in self._places)
        self._seen = bytearray(len(self._places))
        self._lock = threading.Lock()
        self._generator: Generator[Any, Any, Any] | None = None
        self._step: Step | None = None

    @property
    def done(self) -> bool:
        """Return whether nothing is left to do."""
        return self._step is None

    def begin(self) -> None:
        """Ask the method what it wants to look at first.

        Raises:
            InputError: its settings do not fit.
        """
        if not self._places or all(self._finished):
            return
        outputs = [tensor.output for tensor in self.tensors]
        elements = sum(place.stop - place.start for place in self._places)
        names, shapes = tuple(each.name for each in outputs), tuple(each.shape for each in outputs)
        about = About(names, shapes, len(outputs[0].sources), elements, self.counters)
        if without := sum(tensor.rows_without_base for tensor in self.tensors):
            self.counters["rows_without_base"] = without
        self._generator = outputs[0].method.start(about)
        self._step = self._next(None)

    def _next(self, total: Any) -> Step:
        assert self._generator is not None
        try:
            while True:
                step = self._look(self._generator.send(total))
                if step.order:
                    return step
                total = None
        except StopIteration as stop:
            order = [index for index, place in enumerate(self._places) if not self._finished[place.tensor]]
            return Step(stop.value, True, order)
        except ValueError as reason:
            raise InputError(f"{self.name}: {reason}", "correct the merge's recipe") from reason

    def _look(self, look: Callable[..., Any]) -> Step:
        wants = getattr(look, "wants", None)
        wanted = [
            index for index, place in enumerate(self._places) if wants is None or wants(self.tensors[place.tensor].output.name, place.start)
        ]
        return Step(look, False, wanted)

    def hand_out(self) -> int | None:
        """Return the next piece to work on, None where there is none now; for one thread at a time."""
        step = self._step
        if step is None or step.handed == len(step.order) or step.handed >= step.added + AHEAD:
            return None
        step.handed += 1
        return step.handed - 1

    def work(self, turn: int, reader: Reader, write: Write) -> tuple[int | None, bool]:
        """Do what ``hand_out`` gave: look at a piece, or merge and write it.

        Returns:
            The index of a tensor that this was the last piece of, and whether the unit went a step on: what waits may look again.

        Raises:
            ModelError: a value is not finite.
        """
        step = self._step
        assert step is not None
        index = step.order[turn]
        place = self._places[index]
        tensor = self.tensors[place.tensor]
        piece = reader.piece(tensor, place.start, place.stop)
        if not self._seen[index]:
            refuse_non_finite(piece, tensor.columns)
            self.deltas[place.tensor].see(place.number, piece)
            self._seen[index] = 1
            self._saw(sum(column.dtype.itemsize for column in tensor.columns) * (place.stop - place.start))
        result = step.job(piece)
        if step.combining:
            write(tensor, place.start, result)
            result = None
        return self._deliver(step, turn, result, place.tensor)

    def _deliver(self, step: Step, turn: int, result: Any, tensor: int) -> tuple[int | None, bool]:
        with self._lock:
            step.waiting[turn] = result
            while step.added in step.waiting:
                earlier = step.waiting.pop(step.added)
                step.total = earlier if step.added == 0 or step.combining else step.total + earlier
                step.added += 1
            whole = False
            if step.combining:
                self._left[tensor] -= 1
                whole = self._left[tensor] == 0
            complete = step.added == len(step.order)
        if complete:  # only one thread delivers the last piece
            self._step = None if step.combining else self._next(step.total)
        return (tensor if whole else None), complete
