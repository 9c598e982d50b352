import math

import pytest
import torch

from lmfuse.losses.head import Head


def test_by_hand():
    hidden = torch.tensor([[1.0, 2.0]])
    weight, bias = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]), torch.tensor([0.5, 0.0, 9.0])
    assert Head(weight, 2).logits(hidden).tolist() == [[1.0, 2.0]]  # the third row is padding
    assert Head(weight, 2, bias).logits(hidden).tolist() == [[1.5, 2.0]]
    found = Head(weight, 2, bias, logit_scale=2.0, softcap=4.0).logits(hidden)
    assert found[0].tolist() == pytest.approx([4 * math.tanh(3 / 4), 4 * math.tanh(4 / 4)])


def test_a_full_head_replaces_the_linear_map_and_loses_its_padding_too():
    head = Head(torch.zeros(4, 2), 2, full=lambda hidden: hidden.repeat(1, 2), softcap=1.0)
    assert head.logits(torch.tensor([[1.0, 2.0]]))[0].tolist() == pytest.approx([math.tanh(1), math.tanh(2)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_logits_are_float32_or_wider(dtype):
    head = Head(torch.randn(7, 3).to(dtype), 7)
    assert head.logits(torch.randn(2, 3, dtype=dtype)).dtype == torch.promote_types(dtype, torch.float32)


def test_invariant_logits_are_within_the_cap():
    logits = Head(torch.randn(50, 8) * 30, 50, softcap=5.0).logits(torch.randn(20, 8))
    assert logits.abs().max() <= 5.0


def test_wrong_input():
    with pytest.raises(RuntimeError, match="shape"):
        Head(torch.zeros(4, 3), 4).logits(torch.zeros(2, 5))
