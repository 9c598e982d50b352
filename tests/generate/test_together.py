"""Several texts at the same time: each is the one that is written alone, and nothing of a text reaches another."""

import threading
import time

import pytest
import torch

from lmfuse.decode.byte_mixture import ByteMixture
from lmfuse.decode.cool import Cool
from lmfuse.decode.cool_rerank import CoolRerank
from lmfuse.decode.pack_llm import PackLLM
from lmfuse.decode.rerank import Rerank
from lmfuse.decode.safe import Safe
from lmfuse.decode.unite import Unite
from lmfuse.errors import InputError, ResourceError
from lmfuse.generate import FusedWriter, together
from lmfuse.generate.cache import Wanted
from lmfuse.generate.rooms import Rooms
from lmfuse.generate.together import write_together
from lmfuse.writing import Finish, Passage, WritingSettings
from tests.generate.build import small_model
from tests.generate.table_models import START, table_model

KINDS = ("byte_bpe", "metaspace_bpe", "unigram")
PROMPTS = ("The quick brown fox", "naïve café – 東京 🙂", "The", "A much longer one. " * 6)
METHODS = (Cool(), Cool(length=4), Rerank(), CoolRerank(), ByteMixture(), Unite(), PackLLM(), Safe())


def fused(method=None, kinds=KINDS):
    return FusedWriter([small_model(kind, seed) for seed, kind in enumerate(kinds)], kinds, method)


def same(found, wanted):
    """What is said and counted is the same, scores but for rounding."""
    assert [type(each) for each in found] == [type(each) for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one, Finish):
            assert one == other
        else:
            assert (one.text, one.author, one.candidates) == (other.text, other.author, other.candidates)
            assert one.scores == pytest.approx(other.scores, rel=1e-4)


def no_threads():
    return not [thread for thread in threading.enumerate() if thread.name.startswith("lmfuse-text")]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_texts_are_those_that_are_written_one_by_one(method):
    writer = fused(method)
    settings = [WritingSettings(max_bytes=20 + 10 * place, temperature=place % 2, seed=place) for place in range(len(PROMPTS))]
    ended = []
    many = writer.write_many(PROMPTS, settings, done=ended.append)
    for prompt, own, found in zip(PROMPTS, settings, many, strict=True):
        same(found, list(writer.write(prompt, own)))
    assert sorted(ended) == list(range(len(PROMPTS)))
    assert no_threads()


def test_passes_are_shared(monkeypatch):
    writer, passes = fused(), []
    read = together.read_many
    monkeypatch.setattr(together, "read_many", lambda wanted: passes.append(len(wanted)) or read(wanted))
    writer.write_many(PROMPTS, WritingSettings(max_bytes=40))
    assert passes[:3] == [4, 4, 4]  # the prompts, a model at a time
    assert sum(passes) / len(passes) > 1.5


def test_the_order_of_the_texts_is_kept_and_calls_repeat():
    writer, settings = fused(kinds=KINDS[:2]), WritingSettings(max_bytes=20, temperature=1.0)
    one, again = (writer.write_many(PROMPTS, settings) for _ in range(2))
    assert one == again
    backwards = writer.write_many(PROMPTS[::-1], settings)
    for found, wanted in zip(backwards[::-1], one, strict=True):
        same(found, wanted)


def test_one_model_and_one_text():
    writer = FusedWriter([small_model()])
    assert writer.write_many(["The quick"], WritingSettings(max_bytes=30)) == [
        list(writer.write("The quick", WritingSettings(max_bytes=30)))
    ]
    assert writer.write_many([], WritingSettings()) == []


def test_an_error_ends_its_own_text_only():
    writer, settings = fused(), WritingSettings(max_bytes=40)
    first, long, last = writer.write_many(["The quick", "word " * 600, "Anna"], settings)
    assert isinstance(long, InputError)
    assert "reads at most 512" in str(long)
    same(first, list(writer.write("The quick", settings)))
    same(last, list(writer.write("Anna", settings)))
    assert no_threads()


def test_a_conversation_without_a_template_is_that_texts_error():
    from lmfuse.types import Segment

    found = fused().write_many([[Segment("Hi", "user")], "Anna"], WritingSettings(max_bytes=20))
    assert isinstance(found[0], InputError)
    assert isinstance(found[1][-1], Finish)


def test_no_memory_for_a_pass_ends_all(monkeypatch):
    calls = []

    def fails(wanted):
        calls.append(wanted)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(together, "read_many", fails)
    with pytest.raises(ResourceError, match="out of memory: writing 3 texts at the same time"):
        fused().write_many(PROMPTS[:3], WritingSettings())
    assert len(calls) == 1
    assert no_threads()


def test_a_mistake_of_ours_is_not_a_texts_error(monkeypatch):
    def fails(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(together, "read_many", fails)
    with pytest.raises(ZeroDivisionError):
        fused().write_many(PROMPTS[:3], WritingSettings())

    def writes(_):
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_together([writes], 1)
    assert no_threads()


@pytest.mark.parametrize("method", [Cool(), Rerank(), ByteMixture()])
def test_texts_that_nobody_waits_for_stop(method):
    words = {START: {" one": 1.0}, " one": {" one": 1.0}}
    asked = []
    writer = FusedWriter([table_model(words)] * 2, method=method)
    found = writer.write_many([""] * 3, WritingSettings(), lambda: asked.append(0) or len(asked) > 12)
    assert not any(isinstance(each, Finish) for text in found for each in text)
    assert len(asked) <= 20
    assert writer.write_many(["", ""], WritingSettings(), lambda: True) == [[], []]
    assert no_threads()


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_an_interrupt_ends_all_threads(raised, monkeypatch):
    read, count = together.read_many, []

    def interrupted(wanted):
        count.append(0)
        if len(count) == 7:
            raise raised
        return read(wanted)

    monkeypatch.setattr(together, "read_many", interrupted)
    with pytest.raises(raised):
        fused().write_many(PROMPTS, WritingSettings())
    assert no_threads()


def test_an_interrupt_comes_through_while_a_text_has_its_turn():
    import _thread

    release = threading.Event()

    def writes(_):
        threading.Timer(0.1, _thread.interrupt_main).start()
        release.wait(20)
        yield 1

    begun = time.monotonic()
    threading.Timer(0.4, release.set).start()  # a thread cannot be stopped from outside: it is waited for
    with pytest.raises(KeyboardInterrupt):
        write_together([writes, writes], 1)
    assert time.monotonic() - begun < 5
    assert no_threads()


def test_what_done_raises_ends_all():
    def done(_):
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        fused().write_many(PROMPTS, WritingSettings(max_bytes=20), done=done)
    assert no_threads()


def test_the_model_that_most_wait_for_is_read_first(monkeypatch):
    read = []

    def reads(wanted):
        read.append([(each.reader, len(each.ids)) for each in wanted])
        return [torch.zeros(1, 1)] * len(wanted)

    class Reader:
        def __init__(self, name, seat):
            self.name, self.seat = name, seat

    def text(*names):
        def writes(seats):
            readers = [Reader(name, seat) for name, seat in zip("AB", seats, strict=True)]
            for name in names:
                reader = readers["AB".index(name)]
                yield reader.seat.forward(Wanted(reader, [1]))

        return writes

    monkeypatch.setattr(together, "read_many", reads)
    found = write_together([text("A", "B"), text("B", "B"), text("B"), text("A")], 2)
    assert [[reader.name for reader, _ in each] for each in read] == [["A", "A"], ["B", "B", "B"], ["B"]]
    assert list(map(len, found)) == [2, 2, 1, 1]


def test_keys_and_values_are_gone_with_the_texts(monkeypatch):
    import gc
    import weakref

    kept = []

    class Watched(Rooms):
        def __init__(self, rows):
            super().__init__(rows)
            kept.append(weakref.ref(self))

    monkeypatch.setattr(together, "Rooms", Watched)
    writer = fused(kinds=KINDS[:2])
    gc.disable()
    try:
        found = writer.write_many(["The quick", "word " * 600, "Anna"], WritingSettings(max_bytes=10))
        assert len(kept) == 2
        assert not any(each() for each in kept)
    finally:
        gc.enable()
    assert isinstance(found[1], InputError)


def test_more_settings_than_prompts():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        fused().write_many(["The"], [WritingSettings()] * 2)


def test_what_is_said_is_passages():
    [found] = fused().write_many(["The quick"], WritingSettings(max_bytes=30))
    assert all(isinstance(each, Passage) for each in found[:-1])
