import math

import numpy as np
import pytest
import torch

from lmfuse.merge.piece import PIECE_ELEMENTS, Piece, cuts


def test_by_hand():
    assert list(cuts((3, 50_000))) == [(0, 100_000), (100_000, 150_000)]
    assert list(cuts((2, 200_000), whole_rows=True)) == [(0, 200_000), (200_000, 400_000)]
    assert list(cuts((2, 200_000))) == [(0, 131_072), (131_072, 262_144), (262_144, 393_216), (393_216, 400_000)]
    assert list(cuts((300_000,))) == [(0, 131_072), (131_072, 262_144), (262_144, 300_000)]
    assert list(cuts((2, 3, 50_000))) == [(0, 100_000), (100_000, 200_000), (200_000, 300_000)]
    assert list(cuts(())) == [(0, 1)]
    assert list(cuts((0, 5))) == list(cuts((5, 0))) == []
    assert PIECE_ELEMENTS == 131_072  # random methods draw by it


@pytest.mark.parametrize("shape", [(1000, 1000), (7, 131_072), (131_073, 2), (1, 1), (5, 4, 3, 2)])
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
