import math

import numpy as np
import pytest
import torch

from lmfuse.merge.piece import PIECE_ELEMENTS, Piece, cuts


def test_by_hand():
    assert list(cuts((3, 200_000))) == [(0, 400_000), (400_000, 600_000)]
    assert list(cuts((2, 800_000), whole_rows=True)) == [(0, 800_000), (800_000, 1_600_000)]
    assert list(cuts((2, 800_000))) == [(0, 524_288), (524_288, 1_048_576), (1_048_576, 1_572_864), (1_572_864, 1_600_000)]
    assert list(cuts((1_200_000,))) == [(0, 524_288), (524_288, 1_048_576), (1_048_576, 1_200_000)]
    assert list(cuts((2, 3, 200_000))) == [(0, 400_000), (400_000, 800_000), (800_000, 1_200_000)]
    assert list(cuts(())) == [(0, 1)]
    assert list(cuts((0, 5))) == list(cuts((5, 0))) == []
    assert PIECE_ELEMENTS == 524_288  # random methods draw by it


@pytest.mark.parametrize("shape", [(1000, 1000), (7, 524_288), (524_289, 2), (1, 1), (5, 4, 3, 2)])
def test_pieces_are_whole_rows_and_cover_the_tensor_once(shape):
    pieces = list(cuts(shape, whole_rows=True))
    assert [start for start, _ in pieces] == [0, *(stop for _, stop in pieces[:-1])]
    assert pieces[-1][1] == math.prod(shape)
    assert all((stop - start) % shape[-1] == 0 for start, stop in pieces)


def test_a_piece_gives_differences_and_some_of_its_elements():
    sources, base = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]), torch.tensor([1.0, 1.0, 1.0])
    piece = Piece("x", 0, (1, 3), sources, base)
    assert piece.deltas.tolist() == [[0.0, 1.0, 2.0], [4.0, 4.0, 4.0]]
    assert (len(piece), piece.row_length) == (3, 3)
    for places in (np.array([0, 2]), slice(0, None, 2)):
        thin = piece.thin(places)
        assert thin.sources.tolist() == [[1.0, 3.0], [5.0, 5.0]]
        assert thin.base.tolist() == [1.0, 1.0]
    alone = Piece("x", 0, (1, 3), sources, None)
    assert alone.thin(np.array([1])).base is None
    with pytest.raises(ValueError, match="x: no base model, expected one to take differences from"):
        alone.deltas  # noqa: B018


def test_a_piece_is_read_as_it_is_stored_and_handed_out_in_float32():
    stored = [torch.tensor([1.5, -2.0, 3.0], dtype=dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)]
    room = torch.full((4, 3), torch.nan)
    piece = Piece("x", 0, (3,), stored, torch.tensor([0.5, 0.5, 1.0]).bfloat16(), room)
    thin = piece.thin(np.array([2, 0]))
    assert [each.dtype for each in thin.stored] == [torch.bfloat16, torch.float16, torch.float32]
    assert thin.sources.tolist() == [[3.0, 1.5]] * 3
    assert thin.base.tolist() == [1.0, 0.5]
    assert torch.isnan(room).all()  # nothing was asked for yet
    assert piece.sources.tolist() == [[1.5, -2.0, 3.0]] * 3
    assert piece.base.tolist() == [0.5, 0.5, 1.0]
    assert room.tolist() == [*piece.sources.tolist(), piece.base.tolist()]


def test_what_may_be_changed_in_place_is_a_copy():
    base = torch.tensor([1.0, 2.0])
    piece = Piece("x", 0, (2,), torch.zeros(1, 2), base)
    piece.copy_of_base().zero_()
    piece.changed(torch.ones(2)).zero_()
    assert base.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="x: no base model"):
        Piece("x", 0, (2,), torch.zeros(1, 2), None).copy_of_base()
