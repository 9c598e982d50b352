import math

import numpy as np
import pytest
import torch

from lmfuse.merge.affine import Gram, combination, gram, squared_norms, total
from lmfuse.merge.piece import Piece
from tests.merge.build import gap, models


def piece(sources, base=None):
    rows = torch.stack([source.flatten() for source in sources])
    return Piece("x", 0, tuple(sources[0].shape), rows, None if base is None else base.flatten())


def gram_of(sources, base=None, around_base=False):
    steps = gram(around_base)
    look = next(steps)
    with pytest.raises(StopIteration) as end:
        steps.send(look(piece(sources, base)))
    return end.value.value


@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, 20_000])
def test_sums_are_those_of_float64_to_float32_rounding(count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(count))
    assert total(values).item() == pytest.approx(values.double().sum().item(), rel=3e-7)
    assert total(values).dtype == torch.float64
    assert squared_norms(values[None]).tolist() == pytest.approx([values.double().square().sum().item()], rel=3e-7)


def test_sums_do_not_depend_on_torchs_threads():
    values = torch.randn(300_001, generator=torch.Generator().manual_seed(0))
    before, sums = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            sums.add(total(values).item())
    finally:
        torch.set_num_threads(before)
    assert len(sums) == 1


def test_combination_by_hand():
    sources, base = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0])], torch.tensor([10.0, 0.0])
    assert combination([0.5, 0.5])(piece(sources)).tolist() == [2.0, 2.5]
    assert combination([2.0, 1.0], -1.0)(piece(sources, base)).tolist() == [-5.0, 7.0]
    assert combination([0.0, 0.0], 1.0)(piece(sources, base)).tolist() == [10.0, 0.0]
    assert combination([0.0, 0.0])(piece(sources, base)).tolist() == [0.0, 0.0]
    assert combination([1.0, -1.0])(piece(sources)).tolist() == [-2.0, -1.0]


@pytest.mark.parametrize("coefficients", [(0.2, 0.3, 0.5), (1.5, -0.7, 0.2), (3.0, 2.0, 1.0)])
def test_combination_oracle_and_sources_stay_as_they_were(coefficients):
    base, sources = models(3, spread=1e-3)
    before = torch.stack(sources).clone()
    whole = piece(sources, base)
    exact = sum(c * s.double() for c, s in zip(coefficients, sources, strict=True)) + 0.5 * base.double()
    assert gap(combination(coefficients, 0.5)(whole), exact.flatten()) < 2
    assert torch.equal(whole.sources, before.view(3, -1))


@pytest.mark.parametrize("around_base", [False, True])
@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_gram_knows_small_angles(around_base, spread):
    base, sources = models(3, shape=(50, 400), spread=spread)
    vectors = gram_of(sources, base, around_base)
    exact = [(source.double() - (base.double() if around_base else 0)).flatten() for source in sources]
    assert vectors.norms() == pytest.approx([each.norm().item() for each in exact], rel=1e-6)
    for i, one in enumerate(exact):
        across = exact[0] - one * (exact[0] @ one / one.square().sum())
        x = vectors.models[0] - vectors.models[i] * (vectors.dot(vectors.models[0], vectors.models[i]) / vectors.norms()[i] ** 2)
        assert vectors.norm(x) == pytest.approx(across.norm().item(), rel=1e-5, abs=1e-12)
    mixed = vectors.coefficients(np.array([0.2, 0.3, 0.4]) @ vectors.models)
    assert mixed == pytest.approx([0.2, 0.3, 0.4])


def test_gram_by_hand():
    vectors = gram_of([torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])])
    assert vectors.products.tolist() == [[9.0, 0.0], [0.0, 16.0]]
    assert vectors.norms().tolist() == [3.0, 5.0]
    assert math.isclose(vectors.dot(vectors.models, vectors.models[0])[1], 9.0)
    around = gram_of([torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])], torch.tensor([3.0, 0.0]), True)
    assert around.norms().tolist() == [0.0, 4.0]
    assert Gram(np.array([[4.0]])).coefficients(np.array([0.5])) == (0.5,)
