import math

import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse.losses.dense import dense_uld
from lmfuse.losses.teacher import TeacherRows
from lmfuse.losses.uld import Uld
from tests.losses.build import Case, random_case, teacher_rows
from tests.losses.test_fused_linear import Largest


def rows_of(probs: torch.Tensor, k: int) -> TeacherRows:
    """Return the k largest of full distributions, the rest in the tail."""
    kept = probs.topk(k)
    return TeacherRows.of(
        kept.indices, kept.values.log(), (probs.sum(1) - kept.values.sum(1)).clamp(min=0).log(), torch.ones(len(probs)) > 0
    )


def test_by_hand():
    """Student (.5, .25, .25) against .625, a tail of .375, with ids that the student does not have."""
    hidden = torch.tensor([[2.0, 1.0, 1.0]]).log().requires_grad_()
    case = Case(hidden, torch.eye(3), None, torch.tensor([0]), teacher_rows({70_000: 0.625}), torch.tensor([0.75]), 3)
    found = case.fused(Uld())
    assert found.fusion_nats.item() == pytest.approx(0.125 + 0.125)
    assert found.loss.item() == pytest.approx(0.75 * math.log(2) + 0.25 * 0.25)
    (gradient,) = case.gradients(found.loss)  # both terms fall as q_0 rises: d/dz = -2 q_0 (o - q)
    rise = torch.tensor([0.25, -0.125, -0.125])
    assert torch.allclose(gradient[0], 0.75 * torch.tensor([-0.5, 0.25, 0.25]) - 0.25 * 2 * rise, atol=1e-6)


def test_by_hand_a_student_with_fewer_tokens_than_the_teacher_keeps():
    found = Uld().distance(torch.tensor([[0.25, 0.5, 0.125]]), torch.tensor([0.125]), torch.tensor([[0.5, 0.5]]))
    assert found.item() == pytest.approx(0.0 + 0.25 + 0.125 + 0.125)


@pytest.mark.parametrize("options", [{}, {"logit_scale": 0.3, "softcap": 2.0}, {"full": True}], ids=str)
def test_oracle_whole_distributions_and_autograd(options):
    case = random_case(**options)
    probs = torch.randn(23, 55, dtype=torch.float64).softmax(1)
    case.teacher = rows_of(probs, 55)
    found, expected = case.fused(Uld(), chunk=7), case.weighed(dense_uld(case.logits(), probs), case.teacher.taught)
    assert torch.allclose(found.loss, expected, rtol=1e-10)
    for ours, theirs in zip(case.gradients(found.loss), case.gradients(expected), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)


def test_gradcheck():
    case = random_case(size=(5, 3, 7, 3))

    def value(*leaves):
        case.hidden, case.weight, case.bias = leaves
        return case.fused(Uld(), chunk=2).loss

    assert torch.autograd.gradcheck(value, case.leaves)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 20), st.integers(12, 20), st.floats(0.1, 4))
@settings(max_examples=80, deadline=None)
def test_invariant_the_bucket_is_within_its_bound(seed, k, size, source_size, sharpness):
    """Ours <= the published sum <= ours + 2 min(tail, tail), and neither ids nor their order matter."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, size, generator=draw, dtype=torch.float64) * sharpness
    probs = (torch.randn(3, source_size, generator=draw, dtype=torch.float64) * sharpness).softmax(1)
    kept = probs.topk(k).values
    tail, student = 1 - kept.sum(1), logits.softmax(1)
    ours, published = Uld().distance(kept, tail, student), dense_uld(logits, probs)
    others = 1 - student.topk(min(k, size)).values.sum(1)
    assert (ours <= published + 1e-9).all()
    assert (published <= ours + 2 * torch.minimum(tail, others) + 1e-9).all()
    order = torch.randperm(size, generator=draw)
    assert torch.allclose(Uld().distance(kept.flip(1), tail, student[:, order]), ours)


def test_invariant_positions_without_a_row_are_plain_cross_entropy():
    case = random_case()
    case.teacher = None
    assert torch.allclose(case.fused(Uld()).loss, torch.nn.functional.cross_entropy(case.logits(), case.labels))


def test_no_tensor_of_positions_times_vocabulary_exists():
    case = random_case(size=(64, 4, 200, 5))
    with Largest() as largest:
        case.fused(Uld(), chunk=8).loss.backward()
    assert largest.numel == 8 * 200


def test_wrong_input():
    with pytest.raises(pydantic.ValidationError):
        Uld(tail="bucket")
    case = random_case()
    case.labels = case.labels - 40
    with pytest.raises(ValueError, match="labels from -"):
        case.fused(Uld())
