"""A unit driven piece by piece: the protocol of merge methods, the order of sums, what is skipped, what is said of errors."""

import random
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lmfuse.errors import InputError
from lmfuse.merge.family import About, Merge
from lmfuse.merge.piece import PIECE_ELEMENTS, Piece
from lmfuse.weights.plan import OutputTensor, TensorRef
from lmfuse.weights.read import OpenFiles, OpenTensor, Reader
from lmfuse.weights.threads import Crew
from lmfuse.weights.units import AHEAD, Unit
from tests.weights.plans import family, opened

ROWS = 5  # pieces of each of the tensors here, one row each


class Fake(Merge):
    """Adds up what it sees, in an order that its sum remembers, twice; then shifts the source by the sum."""

    wants: Callable[[str, int], bool] | None = None
    seen: list[Any]

    def start(self, about: About) -> Generator[Any, Any, Any]:
        sums = []
        for number in range(2):

            def look(piece: Piece) -> tuple[tuple[str, int], ...]:
                return ((piece.name, piece.start),)

            if number and self.wants:
                look.wants = self.wants  # type: ignore[attr-defined]
            sums.append((yield look))
        about.counters["starts"] += 1
        object.__setattr__(self, "seen", sums)
        object.__setattr__(self, "about", about)
        return lambda piece: piece.sources[0] + 1


@pytest.fixture(scope="module")
def tensors(tmp_path_factory) -> list[OpenTensor]:
    """Two tensors of five pieces each, and one without elements."""
    (folder,) = family(tmp_path_factory.mktemp("models"), 1)
    values = {f"t{n}": torch.randn(ROWS, PIECE_ELEMENTS - n) for n in range(2)} | {"t2": torch.zeros(0, 4)}
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    files = OpenFiles(opened([folder]))
    return [files.tensor(OutputTensor(name, tuple(each.shape), "F32", Merge(), (TensorRef(0, name),))) for name, each in values.items()]


def with_method(tensors: list[OpenTensor], method: Merge) -> list[OpenTensor]:
    return [OpenTensor(OutputTensor(t.output.name, t.output.shape, "F32", method, t.output.sources), t.sources, t.base) for t in tensors]


def drive(unit: Unit, shuffled: random.Random | None = None) -> dict[tuple[str, int], torch.Tensor]:
    """Do all work of a unit in this thread; what is handed out together is done in any order."""
    written: dict[tuple[str, int], torch.Tensor] = {}

    def write(tensor: OpenTensor, start: int, merged: torch.Tensor) -> None:
        written[tensor.output.name, start] = merged.clone()

    unit.begin()
    while not unit.done:
        turns = []
        while (turn := unit.hand_out()) is not None:
            turns.append(turn)
        assert turns
        if shuffled:
            shuffled.shuffle(turns)
        for turn in turns:
            unit.work(turn, Reader(), write)
    return written


@pytest.mark.parametrize("seed", range(5))
def test_sums_are_in_the_order_of_pieces_whoever_comes_first(tensors, seed):
    method = Fake()
    written = drive(Unit("both", with_method(tensors, method)), random.Random(seed))
    places = [(name, row * length) for name, length in (("t0", PIECE_ELEMENTS), ("t1", PIECE_ELEMENTS - 1)) for row in range(ROWS)]
    assert method.seen == [tuple(places), tuple(places)]
    assert sorted(written) == sorted(places)
    folder_values = torch.cat([tensors[0].sources[0].values(0, ROWS * PIECE_ELEMENTS)])
    assert torch.equal(torch.cat([written["t0", place] for name, place in places if name == "t0"]), folder_values + 1)


def test_what_a_method_is_told(tensors):
    method = Fake()
    unit = Unit("all", with_method(tensors, method))
    drive(unit)
    about = method.about
    assert (about.names, about.num_sources) == (("t0", "t1", "t2"), 1)
    assert about.num_elements == ROWS * (2 * PIECE_ELEMENTS - 1)
    assert about.shapes[2] == (0, 4)
    assert unit.counters == Counter({"starts": 1})


def test_pieces_that_a_look_does_not_want_are_not_read(tensors):
    method = Fake()
    object.__setattr__(method, "wants", lambda name, start: name == "t1" and start > 0)
    saw: list[int] = []
    drive(Unit("both", with_method(tensors[:2], method), saw=saw.append))
    assert [start // (PIECE_ELEMENTS - 1) for _, start in method.seen[1]] == [1, 2, 3, 4]
    assert {name for name, _ in method.seen[1]} == {"t1"}
    assert sum(saw) == 4 * ROWS * (2 * PIECE_ELEMENTS - 1)  # each byte counts once
    object.__setattr__(method, "wants", lambda name, start: False)
    drive(Unit("both", with_method(tensors[:2], method)))
    assert method.seen[1] is None


def test_finished_tensors_are_looked_at_but_not_written(tensors):
    method = Fake()
    written = drive(Unit("both", with_method(tensors[:2], method), {"t0"}))
    assert {name for name, _ in written} == {"t1"}
    assert {name for name, _ in method.seen[0]} == {"t0", "t1"}
    unit = Unit("both", with_method(tensors[:2], Fake()), {"t0", "t1"})
    unit.begin()
    assert unit.done


def test_no_more_than_some_pieces_wait_to_be_added(tmp_path):
    (folder,) = family(tmp_path, 1)
    rows = AHEAD + 9
    save_file({"t": torch.zeros(rows, PIECE_ELEMENTS, dtype=torch.float16)}, folder / "model.safetensors")
    tensor = OpenFiles(opened([folder])).tensor(OutputTensor("t", (rows, PIECE_ELEMENTS), "F32", Fake(), (TensorRef(0, "t"),)))
    unit = Unit("t", [tensor])
    unit.begin()
    turns = [unit.hand_out() for _ in range(AHEAD)]
    assert turns == list(range(AHEAD))
    assert unit.hand_out() is None
    unit.work(3, Reader(), lambda *given: None)
    assert unit.hand_out() is None  # the first is still missing
    unit.work(0, Reader(), lambda *given: None)
    assert unit.hand_out() == AHEAD


class Broken(Merge):
    def start(self, about: About) -> Generator[Any, Any, Any]:
        if about.num_sources == 1:
            raise ValueError("broken: 1 source, expected 2")
        yield


def test_a_methods_complaint_names_the_tensor(tensors):
    with pytest.raises(InputError, match=r"^t0: broken: 1 source, expected 2$"):
        Unit("t0", with_method(tensors[:1], Broken())).begin()


class Failing(Fake):
    def start(self, about: About) -> Generator[Any, Any, Any]:
        yield from super().start(about)

        def combine(piece: Piece) -> torch.Tensor:
            raise RuntimeError(f"combine {piece.name}")

        return combine


@pytest.mark.parametrize("threads", [1, 3])
def test_what_one_thread_meets_stops_all_and_is_raised(tensors, threads):
    before = torch.get_num_threads()
    units = [Unit(t.output.name, [t]) for t in (*with_method(tensors[:1], Failing()), *with_method(tensors[1:2], Fake()))]
    done: list[str] = []
    crew = Crew(units, lambda *given: None, lambda unit, tensor: done.append(unit.name), threads)
    with pytest.raises(RuntimeError, match="combine t0"):
        crew.run(lambda: None)
    assert torch.get_num_threads() == before
    assert "t0" not in done


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_unit_is_finished_once_and_few_are_begun_at_a_time(tensors, threads):
    begun: list[str] = []
    done: list[str] = []
    most = 0

    def units():
        nonlocal most
        for number in range(40):
            begun.append(f"{number}")
            most = max(most, len(begun) - len(done))
            yield Unit(f"{number}", with_method([tensors[number % 3]], Fake()))  # every third has no elements

    Crew(units(), lambda *given: None, lambda unit, tensor: done.append(unit.name), threads).run(lambda: None)
    assert sorted(done, key=int) == [f"{n}" for n in range(40) if n % 3 != 2]
    assert len(begun) == 40
    assert most <= 2 * threads + 2 + 14 + threads  # those without elements are never done


def test_a_tick_that_raises_stops_the_work(tensors):
    ticks = iter(range(2))

    def tick() -> None:
        if next(ticks, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Crew((Unit("t", with_method(tensors[:1], Fake())) for _ in range(10**6)), lambda *given: None, lambda *given: None, 2).run(
            tick, 0.01
        )
