import dataclasses
import threading
from collections import Counter

import pytest
import torch

from lmfuse.merge import piece, rank, whole
from lmfuse.merge.dare import Dare
from lmfuse.merge.della import Della
from lmfuse.merge.linear import Linear
from lmfuse.merge.model_stock import ModelStock
from lmfuse.merge.sce import Sce
from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.merge.ties import Ties
from lmfuse.merge.varm import Varm
from lmfuse.merge.whole import merge_models, merge_tensors
from tests.merge.build import BY_SUMS, NUMBER_BY_NUMBER, OF_TWO, RANDOM, gap, models, num_sources

ALL = NUMBER_BY_NUMBER + BY_SUMS + OF_TWO + RANDOM
SHAPES = [(), (7,), (40, 30), (3, 20, 20), (1, 1), (2, 1300)]


@pytest.mark.parametrize("method", NUMBER_BY_NUMBER + BY_SUMS + OF_TWO, ids=str)
@pytest.mark.parametrize("elements", [1, 40, 1000])
def test_pieces_do_not_show(method, elements, monkeypatch):
    base, sources = models(num_sources(method), shape=(40, 60), spread=0.3)
    whole = merge_tensors(method, sources, base)
    monkeypatch.setattr(piece, "PIECE_ELEMENTS", elements)
    in_pieces = merge_tensors(method, sources, base)
    if method in NUMBER_BY_NUMBER:
        assert torch.equal(in_pieces, whole)
    else:
        assert gap(in_pieces, whole) < 2  # sums are rounded elsewhere
        assert torch.equal(in_pieces == base, whole == base)  # the same elements are selected


@pytest.mark.parametrize("method", ALL, ids=str)
def test_every_shape_and_dtype(method):
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            base, sources = models(num_sources(method), shape=shape, spread=0.3, dtype=dtype)
            merged = merge_tensors(method, sources, base)
            assert merged.shape == shape
            assert merged.dtype == dtype
            assert merged.isfinite().all()
            in_float32 = merge_tensors(method, [source.float() for source in sources], base.float())
            assert torch.equal(merged, in_float32.to(dtype))  # one cast at the end
    empty = torch.zeros(0, 5)
    assert merge_tensors(method, [empty] * num_sources(method), empty).shape == (0, 5)


@pytest.mark.parametrize("method", ALL, ids=str)
def test_the_same_bytes_each_time_and_in_any_thread(method):
    base, sources = models(num_sources(method), shape=(100, 3000), spread=0.3)
    once = merge_tensors(method, sources, base)
    again = []
    thread = threading.Thread(target=lambda: again.append(merge_tensors(method, sources, base)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(once, again[0])


@pytest.mark.parametrize("method", ALL, ids=str)
def test_sources_stay_as_they_were(method):
    base, sources = models(num_sources(method), shape=(20, 30))
    before = [each.clone() for each in (base, *sources)]
    merge_tensors(method, sources, base)
    assert all(map(torch.equal, before, (base, *sources)))


def test_models_are_merged_unit_by_unit_in_the_order_of_the_first():
    names = ("lm_head", "layers.0.a", "layers.1.a", "layers.0.b")
    base, sources = models(2, shape=(4, 30))
    parts = [dict(zip(names, model, strict=True)) for model in (*sources, base)]
    counters = Counter()
    merged = merge_models(Varm(granularity="layer"), [parts[0], dict(reversed(parts[1].items()))], parts[2], counters)
    assert tuple(merged) == names
    assert torch.equal(merged["lm_head"], merge_tensors(Varm(), [source[0] for source in sources], base[0]))
    merge_models(Varm(granularity="layer"), [parts[2], parts[2]], parts[2], counters)
    assert counters == {"varm_no_change": 3}


def test_wrong_input():
    base, sources = models(2)
    with pytest.raises(ValueError, match="merge: tensors of different names or shapes"):
        merge_models(Linear(), [{"a": base}, {"b": base}])
    with pytest.raises(ValueError, match="merge: tensors of different names or shapes"):
        merge_tensors(ModelStock(), sources, base[:1])
    with pytest.raises(ValueError, match="linear: 0 sources, expected 1 or more"):
        merge_models(Linear(), [])


def watched(method, held: list[int]):
    """Return a method that notes how many numbers of a model its pieces have."""

    class Watched(type(method)):
        def start(self, about):
            combine = yield from super().start(about)
            return lambda piece: held.append(len(piece)) or combine(piece)

    return Watched(**{name: getattr(method, name) for name in (each.name for each in dataclasses.fields(method))})


@pytest.mark.parametrize("method", [Linear(), TaskArithmetic(weights=0.5), Ties(density=0.3), Sce(), Della(), Dare()], ids=repr)
@pytest.mark.parametrize("shape", [(300_001,), (2, 150_000)])
def test_long_rows_are_never_held_whole_unless_the_method_needs_them(monkeypatch, method, shape):
    monkeypatch.setattr(piece, "PIECE_ELEMENTS", 131_072)
    base, sources = models(2, shape)
    held = []
    merged = merge_tensors(watched(method, held), sources, None if isinstance(method, Linear) else base)
    assert merged.shape == shape
    assert (max(held) <= 131_072) == (not method.needs_rows)
    if isinstance(method, Linear):
        assert torch.equal(merged, sources[0] + 0.5 * (sources[1] - sources[0]))
    if isinstance(method, Ties):  # the same bytes as from one piece: nothing is added up
        monkeypatch.setattr(whole, "cuts", lambda shape, _: iter([(0, 300_001 if len(shape) == 1 else 300_000)]))
        monkeypatch.setattr(rank, "cuts", lambda shape: iter([(0, 300_001 if len(shape) == 1 else 300_000)]))
        assert torch.equal(merge_tensors(method, sources, base), merged)
