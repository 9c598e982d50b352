"""Sessions side by side."""

import threading

import pytest
import torch

from lmfuse.errors import ResourceError
from lmfuse.generate import crew as crew_room
from lmfuse.generate.cache import Seat, read_alone
from lmfuse.generate.crew import CancelledError, Crew
from lmfuse.generate.rooms import Rooms
from lmfuse.models import LanguageModel
from lmfuse.writing import WritingSettings
from tests.generate.build import small_model


class Stub(LanguageModel):
    """Stands for a session, and for a model on some device."""

    def __init__(self, device):
        object.__setattr__(self, "place", torch.device(device))

    @property
    def device(self):
        return self.place


@pytest.fixture
def stubs(monkeypatch):
    monkeypatch.setattr(crew_room, "Session", lambda model, *_: model)

    def make(*devices):
        return Crew([Stub(device) for device in devices], [str(place) for place in range(len(devices))], "", WritingSettings())

    return make


def test_devices_work_at_the_same_time_and_their_models_one_after_the_other(stubs):
    crew = stubs("meta", "cpu", "meta")
    together, threads = threading.Barrier(2, timeout=20), {}

    def work(index):
        if index in (0, 1):
            together.wait()  # passes only if both devices are at work
        threads[index] = threading.get_ident()
        return torch.is_inference_mode_enabled(), index

    assert crew.each(work) == [(True, 0), (True, 1), (True, 2)]
    assert threads[0] == threads[2] != threads[1]
    crew.close()


def test_one_device_needs_no_threads(stubs):
    crew = stubs("cpu", "cpu")
    assert set(crew.each(lambda _: threading.get_ident())) == {threading.get_ident()}
    crew.close()


def test_a_text_that_is_written_beside_others_stays_in_its_thread(stubs, monkeypatch):
    seen = []
    monkeypatch.setattr(crew_room, "Session", lambda model, *more: seen.append(more[-1]) or model)
    seats = [Seat(Rooms(1), 0, read_alone) for _ in range(3)]
    crew = Crew([Stub("cpu"), Stub("meta"), Stub("cpu")], ["a", "b", "c"], "", WritingSettings(), seats=seats)
    assert list(map(seats.index, seen)) == [0, 2, 1]  # a device at a time
    assert crew.each(lambda index: (index, threading.get_ident())) == [(index, threading.get_ident()) for index in range(3)]


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "meta")])
def test_errors_reach_the_caller(stubs, devices):
    crew = stubs(*devices)

    def work(index):
        raise MemoryError if index == len(devices) - 1 else ValueError("first")

    with pytest.raises(ResourceError if len(devices) == 1 else ValueError):
        crew.each(work)
    crew.close()


def test_threads_end_where_a_prompt_cannot_be_read(monkeypatch):
    def refuse(*_):
        raise ValueError("unreadable")

    before = threading.active_count()
    monkeypatch.setattr(crew_room, "Session", refuse)
    with pytest.raises(ValueError, match="unreadable"):
        Crew([Stub("cpu"), Stub("meta")], ["a", "b"], "", WritingSettings())
    assert threading.active_count() == before


def test_cancelled():
    crew = Crew([small_model()], ["a"], "The", WritingSettings(), lambda: True)
    with pytest.raises(CancelledError):
        crew.go_on()
