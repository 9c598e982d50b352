"""How far sources are from their base: by hand, against float64, and what is said of it."""

import json
import math
import random

import pytest
import torch

from lmfuse.merge.piece import Piece
from lmfuse.weights.deltas import ONE_IN, RelativeSize, TensorDeltas, delta_warnings, relative_sizes


def piece(base: torch.Tensor, *sources: torch.Tensor) -> Piece:
    return Piece("t", 0, tuple(base.shape), torch.stack(sources), base)


def test_by_hand():
    """Base (3, 4) of length 5; one source 1 off in each number, one equal."""
    deltas = TensorDeltas(2)
    base = torch.tensor([3.0, 4.0])
    deltas.see(0, piece(base, base + 1, base))
    assert deltas.record() == {"base": 25.0, "differences": [2.0, 0.0], "equal": [False, True]}
    sizes = relative_sizes([((5, 7), deltas.record())])
    assert sizes == {5: RelativeSize(math.sqrt(2 / 25), False), 7: RelativeSize(0.0, True)}


def test_against_float64_and_in_any_order():
    random_numbers = torch.Generator().manual_seed(0)
    pieces = [
        piece(base, base + 0.01 * torch.randn(1000, generator=random_numbers), torch.randn(1000, generator=random_numbers))
        for base in torch.randn(40, 1000, generator=random_numbers)
    ]
    records = []
    for seed in range(3):
        order = list(range(40))
        random.Random(seed).shuffle(order)
        deltas = TensorDeltas(2)
        for number in order:
            deltas.see(number, pieces[number])
        records.append(json.dumps(deltas.record()))
    assert len(set(records)) == 1
    seen = pieces[::ONE_IN]
    for source, size in relative_sizes([((0, 1), json.loads(records[0]))]).items():
        difference = math.sqrt(sum(float((each.sources[source].double() - each.base.double()).square().sum()) for each in seen))
        whole = math.sqrt(sum(float(each.base.double().square().sum()) for each in seen))
        assert size.value == pytest.approx(difference / whole, rel=1e-6)


def test_a_difference_in_a_piece_that_is_not_measured_still_counts_as_one():
    base = torch.ones(4)
    deltas = TensorDeltas(1)
    for number in range(ONE_IN):
        deltas.see(number, piece(base, base + (0.5 if number == 3 else 0.0)))
    assert deltas.record() == {"base": 4.0, "differences": [0.0], "equal": [False]}


def test_tensors_add_up_by_model_and_pieces_without_a_base_say_nothing():
    deltas = TensorDeltas(1)
    deltas.see(0, Piece("t", 0, (2,), torch.ones(1, 2), None))
    assert deltas.record() == {"base": 0.0, "differences": [0.0], "equal": [True]}
    records = [((1,), {"base": 1.0, "differences": [1.0], "equal": [True]}), ((1,), {"base": 3.0, "differences": [0.0], "equal": [False]})]
    assert relative_sizes(records) == {1: RelativeSize(0.5, False)}
    assert relative_sizes([((0,), {"base": 0.0, "differences": [2.0], "equal": [False]})])[0].value == math.inf


def test_words():
    labels = ["base", "same", "tune", "stranger"]
    sizes = {1: RelativeSize(0.0, True), 2: RelativeSize(0.02, False), 3: RelativeSize(1.4142, False)}
    same, stranger = delta_warnings(sizes, labels, "base")
    assert same == "same is identical to the base base: it adds nothing"
    assert stranger.startswith("stranger differs from the base base by 1.41 times its size")
