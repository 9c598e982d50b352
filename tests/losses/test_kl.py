import math

import pydantic
import pytest
import torch

from lmfuse.losses.cross_entropy import CrossEntropy
from lmfuse.losses.dense import dense_cross_entropy, dense_kl
from lmfuse.losses.kl import KL
from tests.losses.build import random_case, teacher_rows


def test_by_hand_with_three_tokens():
    logits = torch.tensor([[2.0, 1.0, 1.0]]).log()  # student: .5, .25, .25
    teacher = teacher_rows({1: 0.5, 0: 0.25})
    assert dense_cross_entropy(logits, teacher).item() == pytest.approx(0.5 * math.log(4) + 0.25 * math.log(2) + 0.25 * math.log(4))
    assert dense_kl(logits, teacher).item() == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(0.5) + 0.25 * math.log(1))
    assert dense_kl(logits, teacher, "renormalise").item() == pytest.approx(2 / 3 * math.log(8 / 3) + 1 / 3 * math.log(2 / 3))


def test_by_hand_lambda_ramps_in_a_straight_line():
    assert KL().clm_weight_at(0.7) == 0.9
    ramp = CrossEntropy(clm_weight=0.5, clm_weight_end=1.0)
    assert [ramp.clm_weight_at(done) for done in (0.0, 0.25, 1.0)] == [0.5, 0.625, 1.0]


def test_oracle_torch_kl_div_where_the_teacher_keeps_everything():
    logits, log_probs = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64).log_softmax(1)
    teacher = teacher_rows(*[dict(enumerate(row)) for row in log_probs.exp().tolist()], k=5, dtype=torch.float64)
    expected = torch.nn.functional.kl_div(logits.log_softmax(1), log_probs, reduction="none", log_target=True).sum(1)
    for tail in ("bucket", "renormalise"):
        assert torch.allclose(dense_kl(logits, teacher, tail), expected)


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_invariant_the_two_losses_differ_by_the_entropy_and_not_in_their_gradient(tail):
    case = random_case()
    kl, cross_entropy = case.fused(KL(tail=tail)), case.fused(CrossEntropy(tail=tail))
    targets = case.teacher.targets(tail)
    entropy = (targets.entropy_nats * (1 - case.clm_weight) * targets.taught).mean()
    assert torch.allclose(cross_entropy.loss - kl.loss, entropy)
    assert kl.fusion_nats >= 0
    assert all(map(torch.equal, case.gradients(kl.loss), case.gradients(cross_entropy.loss)))


@pytest.mark.parametrize("loss", [KL, CrossEntropy])
def test_wrong_input(loss):
    for bad in ({"clm_weight": 1.5}, {"clm_weight_end": -0.1}, {"tail": "drop"}, {"lambda_": 0.9}, {"name": "jsd"}):
        with pytest.raises(pydantic.ValidationError, match=next(iter(bad))):
            loss(**bad)
    with pytest.raises(ValueError, match=r"progress is 1\.5"):
        loss().clm_weight_at(1.5)
