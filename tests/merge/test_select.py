from collections import Counter

import numpy as np
import pytest
import torch

from lmfuse.merge import rank
from lmfuse.merge.family import About
from lmfuse.merge.piece import Piece, cuts
from lmfuse.merge.select import share_of, top_k

SIZES = [1, 2, 999, 1000, 1001, 4000, 50_000]
TINY = 2.0**-149


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Pieces of 1000 elements and a sample of 3000, so that small tensors have many of both; a sample that small is less sure."""
    monkeypatch.setattr("lmfuse.merge.piece.PIECE_ELEMENTS", 1000)
    monkeypatch.setattr(rank, "SAMPLE", 3000)
    monkeypatch.setattr(rank, "UNEVEN", 0.1)


def run(tensors, counts, asked=False, counters=None, looks=None):
    """Select by each row of tensors [R, ...]; return the tops, and masks of what is selected."""
    names = [f"tensor {n}" for n in range(len(tensors))]
    shapes = [tuple(tensor.shape[1:]) for tensor in tensors]
    flat = [tensor.reshape(len(tensor), -1) for tensor in tensors]
    pieces = [
        Piece(name, start, shape, rows[:, start:stop], None)
        for name, shape, rows in zip(names, shapes, flat, strict=True)
        for start, stop in cuts(shape)
    ]
    counters = Counter() if counters is None else counters
    about = About(tuple(names), tuple(shapes), len(tensors[0]), sum(rows.shape[1] for rows in flat), counters)

    def values(piece):
        return piece.sources.clone()

    def twice(piece, row):
        return torch.stack([piece.sources[row], 2 * piece.sources[row]])

    steps, total = top_k(values, counts, about, twice if asked else None), None
    while True:
        try:
            look = steps.send(total)
        except StopIteration as end:
            tops = end.value
            break
        seen = [look(piece) for piece in pieces if getattr(look, "wants", lambda *_: True)(piece.name, piece.start)]
        if looks is not None:
            looks.append(len(seen))
        total = seen[0]
        for each in seen[1:]:
            total = total + each
    masks = [torch.cat([top.mask(piece, piece.sources[row]) for piece in pieces]) for row, top in enumerate(tops)]
    for row, top in enumerate(tops):
        places = torch.cat([torch.from_numpy(top.among(p, p.sources[row].numpy())) + 0 for p in pieces])
        assert len(places) == top.num_selected == int(masks[row].sum())
        if asked and row == 0:
            chosen = [(at[kept], few.sources[0][kept]) for p in pieces for at, few, kept in [top.of(p, values)]]
            selected = torch.cat(flat, 1)[0][masks[0].bool()]
            assert torch.equal(torch.cat([few for _, few in chosen]), selected[selected > 0])
    return tops, masks


def first_largest(values, k):
    """Of equal values the first."""
    mask = torch.zeros(len(values))
    mask[values.sort(descending=True, stable=True).indices[:k]] = 1
    return mask


def kind(name, size, seed=0):
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=draw).abs()
    if name == "few levels":
        return (values * 3).round()
    if name == "mostly zero":
        return values * (torch.rand(size, generator=draw) < 0.02)
    if name == "infinities":
        return torch.where(torch.rand(size, generator=draw) < 0.1, torch.inf, values)
    if name == "denormals":
        return (values * 20).round() * TINY
    if name == "sorted":
        return values.sort().values
    if name == "one value":
        return torch.full((size,), 0.3)
    return values


KINDS = ["plain", "few levels", "mostly zero", "infinities", "denormals", "sorted", "one value"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.98, 1.0])
def test_oracle_a_stable_sort(name, size, share):
    values, k = kind(name, size), max(1, int(share * size))
    (top,), (mask,) = run([values.view(1, -1, 1)], [lambda *_: k], asked=name != "infinities")
    assert torch.equal(mask, first_largest(values, k))
    assert top.threshold == values.topk(k).values[-1]
    if name != "infinities":
        exact = values[mask.bool()].double().sum().item()
        assert top.sums.tolist() == pytest.approx([exact, 2 * exact], rel=1e-5, abs=TINY)


def test_by_hand_several_quantities_over_several_tensors():
    first, second = torch.tensor([[3.0, 1.0], [0.0, 5.0]]), torch.tensor([[[2.0], [3.0], [9.0]], [[5.0], [5.0], [0.0]]])
    tops, masks = run([first, second], [lambda n, _: n - 3, lambda _, not_zero: not_zero - 1])
    assert [top.threshold for top in tops] == [3.0, 5.0]
    assert masks[0].tolist() == [1, 0, 0, 0, 1]  # 2 of 5; of the 3s the first
    assert masks[1].tolist() == [0, 1, 1, 0, 0]  # 2 of 3 that are not 0; of the 5s the first two
    tops, masks = run([first, second], [lambda *_: 3, lambda *_: 0])
    assert masks[0].tolist() == [1, 0, 0, 1, 1]
    assert tops[1].num_selected == masks[1].sum() == 0


@pytest.mark.parametrize("asked", [False, True])
def test_usually_there_are_two_looks_and_for_a_partial_tie_one_at_a_single_piece(asked):
    looks, counters = [], Counter()
    run([kind("plain", 50_000).view(1, 500, 100)], [lambda *_: 5000], asked, counters, looks)
    assert looks == [17, 50]
    looks.clear()
    run([kind("few levels", 50_000).view(1, 500, 100)], [lambda *_: 5000], asked, counters, looks)
    assert looks == ([17, 50, 1] if asked else [17, 50])
    assert not counters


def test_pieces_that_differ_much_are_all_sampled():
    looks, counters = [], Counter()
    values = kind("plain", 50_000).view(500, 100)
    values[::7] *= 10
    values[100:200] *= 50
    _, (mask,) = run([values.view(1, 500, 100)], [lambda *_: 5000], True, counters, looks)
    assert torch.equal(mask, first_largest(values.flatten(), 5000))
    assert looks == [17, 50, 50]
    assert not counters


def test_a_large_tensor_among_many_small_ones_is_not_overlooked():
    looks, counters = [], Counter()
    tensors = [kind("plain", 2, seed).view(1, 2) for seed in range(400)]
    tensors[5] = kind("plain", 60_000).view(1, 1, 60_000)  # most of the values, in 60 of 459 pieces
    _, (mask,) = run(tensors, [lambda *_: 5000], True, counters, looks)
    assert torch.equal(mask, first_largest(torch.cat([each.flatten() for each in tensors]), 5000))
    assert looks == [17, 459, 459]
    assert not counters


def test_a_tensor_that_deceives_the_sample_is_searched_digit_by_digit():
    values = torch.full((1, 16_000, 1), 0.5)
    stride = 16_000 // 3000
    values[0, ::stride] = torch.rand(len(values[0, ::stride]), 1, generator=torch.Generator().manual_seed(0)) + 1
    for k in (1, 500, 2000, 8001):
        counters, looks = Counter(), []
        (top,), (mask,) = run([values], [lambda *_, k=k: k], True, counters, looks)
        assert torch.equal(mask, first_largest(values.flatten(), k))
        assert top.sums[0] == pytest.approx(values.flatten()[mask.bool()].double().sum().item(), rel=1e-6)
        assert counters == ({} if k == 1 else {"select_by_digits": 1})
        assert len(looks) == (2 if k == 1 else 6) + (k == 8001)


def test_the_sample_is_small_and_spread_over_rows_and_columns():
    about = About(("x",), ((400, 120),), 1, 48_000, Counter())
    look = rank._Sampling(
        lambda piece: piece.sources.clone(), frozenset(("x", start) for start in range(0, 48_000, 960)), rank._stride(about, 1)
    )
    numbers = torch.arange(48_000.0).view(1, -1)
    seen = np.concatenate(
        [part for start in range(0, 48_000, 960) for part in look(Piece("x", start, (400, 120), numbers[:, start : start + 960], None))], 1
    )
    assert 2000 < seen.size <= 3000
    assert len(np.unique(seen // 120)) == 400
    assert len(np.unique(seen % 120)) == 120
    assert len(np.unique(np.diff(seen[0]))) == 1  # the pieces do not show


def test_shares_are_the_decimal_numbers_that_people_write():
    assert [share_of(share, 100) for share in (0.29, 0.57, 0.58, 1.0, 0.1)] == [29, 57, 58, 100, 10]
    assert [share_of(0.1, count) for count in (9, 10, 30, 10**12 + 9)] == [0, 1, 3, 10**11]
    assert share_of(1e-05, 100_000) == 1
