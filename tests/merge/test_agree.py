import pytest
import torch

from lmfuse.merge.agree import BLOCK, agreed, disagreement, keep_unanimous
from lmfuse.merge.piece import Piece


def test_agreed_by_hand():
    changes = torch.tensor([[1.0, -1.0, 0.0, 2.0, 0.0], [3.0, 3.0, 0.0, -2.0, -1.0]])
    merged = agreed(changes.clone(), (1.0, 3.0), (1.0, 3.0))
    assert merged.tolist() == [2.5, 3.0, 0.0, 2.0, -1.0]  # where they cancel + wins; zeros have no part
    assert agreed(changes.clone(), (1.0, 3.0), None).tolist() == [10.0, 9.0, 0.0, 2.0, -3.0]
    assert agreed(changes.clone(), (0.0, 1.0), (0.0, 1.0)).tolist() == [3.0, 3.0, 0.0, 0.0, -1.0]  # a divisor of 0
    assert agreed(changes.clone(), (1.0, 1.0), (1.0, -1.0)).tolist() == [4.0, -3.0, 0.0, 2.0, 1.0]
    assert agreed(changes.clone(), (0.5, 0.5), (0.5, 0.5), least=1.0).tolist() == [2.0, 1.5, 0.0, 1.0, -0.5]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_agreed_oracle(count):
    changes = torch.randn(count, 999, generator=torch.Generator().manual_seed(count))
    weights = torch.rand(count, generator=torch.Generator().manual_seed(9)).tolist()
    keep = changes.sign() == torch.where(changes.sum(0) >= 0, 1.0, -1.0)
    shares = torch.tensor(weights)[:, None] * keep
    assert torch.allclose(agreed(changes.clone(), weights, weights), (shares * changes).sum(0) / shares.sum(0))


def test_unanimous_numbers_are_restored():
    sources = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.5, 3.0], [1.0, 2.0, 4.0]])
    assert keep_unanimous(torch.tensor([9.0, 9.0, 9.0]), sources).tolist() == [1.0, 9.0, 9.0]
    assert keep_unanimous(torch.tensor([9.0, 9.0, 9.0]), sources[:1]).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("size", [1, 100, BLOCK, BLOCK + 1, 2 * BLOCK + 17])
def test_disagreement_is_the_variance_times_the_number_squared(count, size):
    sources = torch.randn(count, size, generator=torch.Generator().manual_seed(size)) * 1e-4 + 1
    found = disagreement(Piece("x", 0, (size,), sources, None))
    assert torch.allclose(found[0].double(), sources.double().var(0, unbiased=False) * count**2, rtol=1e-5, atol=0)


def test_disagreement_is_zero_exactly_where_all_agree():
    sources = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
    sources[2, 7] = sources[2, 7].nextafter(torch.tensor(9.0))
    assert disagreement(Piece("x", 0, (1000,), sources, None)).nonzero().tolist() == [[0, 7]]
