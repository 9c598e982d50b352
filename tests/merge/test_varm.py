from collections import Counter

import pydantic
import pytest
import torch

from lmfuse.merge.varm import Varm
from lmfuse.merge.whole import merge_models, merge_tensors
from tests.merge.build import gap, models

FIRST = torch.tensor([[0.4, -0.2, 0.0], [0.1, 0.0, 0.3]])
SECOND = torch.tensor([[-0.1, -0.6, 0.0], [0.1, 0.2, -0.5]])


def oracle(sources, base):
    squares = [(source.double() - base.double()).square().mean() for source in sources]
    return sum(square / sum(squares) * source.double() for square, source in zip(squares, sources, strict=True))


def test_by_hand_the_golden_vectors():
    merged = merge_tensors(Varm(), [FIRST, SECOND], torch.zeros(2, 3))
    assert torch.allclose(merged, torch.tensor([[0.0546, -0.4763, 0.0], [0.1, 0.1381, -0.2526]]), atol=5e-5)


@pytest.mark.parametrize("spread", [(1.0, 0.5, 2.0), (1e-4, 3e-4, 1e-6)])
def test_oracle(spread):
    base, sources = models(3, spread=spread)
    assert gap(merge_tensors(Varm(), sources, base), oracle(sources, base)) < 2


def test_small_changes_count_by_their_squares():
    base, sources = models(2, shape=(300, 400), spread=(1e-4, 3e-4))
    zero = torch.zeros_like(base)
    changes = [source - base for source in sources]
    one, other = (changes[0] * 1.0).norm() ** 2, (changes[1] * 1.0).norm() ** 2
    weight = float(other / (one + other))
    assert weight == pytest.approx(0.9, abs=0.01)
    assert gap(merge_tensors(Varm(), changes, zero), changes[0].double() * (1 - weight) + changes[1].double() * weight) < 4


def test_granularity_says_what_one_set_of_weights_is_for():
    base, sources = models(2, shape=(4, 50), spread=(1.0, 0.3))
    sources[1][2] = base[2] + (sources[1][2] - base[2]) * 20
    names = ("model.layers.0.a", "model.layers.0.b", "model.layers.1.a", "lm_head")
    split = [dict(zip(names, model, strict=True)) for model in (*sources, base)]

    def merged(granularity, rows):
        whole = merge_models(Varm(granularity=granularity), split[:2], split[2])
        return torch.stack([whole[names[row]] for row in rows])

    assert gap(merged("model", range(4)), oracle(sources, base)) < 2
    assert gap(merged("layer", [0, 1]), oracle([source[:2] for source in sources], base[:2])) < 2
    assert gap(merged("layer", [2]), oracle([source[2:3] for source in sources], base[2:3])) < 2
    for row in range(4):
        assert gap(merged("tensor", [row]), oracle([s[row : row + 1] for s in sources], base[row : row + 1])) < 2
    assert gap(merged("tensor", [3]), merged("layer", [3])) == 0


def test_invariants():
    base, sources = models(3, spread=(1.0, 0.5, 2.0))
    assert gap(merge_tensors(Varm(), sources, base), merge_tensors(Varm(), sources[::-1], base)) < 2
    assert torch.equal(merge_tensors(Varm(), [sources[0]] * 3, base), sources[0])
    assert torch.equal(merge_tensors(Varm(), [sources[0], base], base), sources[0])


def test_no_change_at_all_is_counted():
    base, _ = models(0)
    counters = Counter()
    assert torch.equal(merge_tensors(Varm(), [base, base], base, counters=counters), base)
    assert counters == {"varm_no_change": 1}


def test_wrong_input():
    with pytest.raises(ValueError, match="varm: no base model, expected one"):
        merge_tensors(Varm(), [FIRST, SECOND])
    with pytest.raises(pydantic.ValidationError, match="granularity"):
        Varm(granularity="matrix")
    with pytest.raises(ValueError, match="merge: tensors of different names or shapes"):
        merge_tensors(Varm(), [FIRST, SECOND.T], torch.zeros(2, 3))
