import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmfuse.losses.chunk_likelihood import ChunkLikelihood
from lmfuse.losses.cross_entropy import CrossEntropy
from lmfuse.losses.head import Head
from lmfuse.losses.kl import KL
from lmfuse.losses.objective import objective
from lmfuse.losses.projected_kl import ProjectedKL
from lmfuse.losses.teacher import TeacherRows
from lmfuse.losses.uld import Uld
from tests.losses.build import Case, random_case, teacher_rows

LOSSES = [loss(tail=tail) for loss in (KL, CrossEntropy) for tail in ("bucket", "renormalise")]
HEADS = [{}, {"logit_scale": 0.3, "softcap": 2.0}, {"bias": False}, {"full": True}, {"full": True, "logit_scale": 0.5, "softcap": 2.0}]


def small(teacher: TeacherRows | None, clm_weight: float = 0.75) -> Case:
    """One position whose student says (.5, .25, .25); the truth is token 0."""
    hidden = torch.tensor([[math.log(2), 0.0, 0.0]], requires_grad=True)
    return Case(hidden, torch.eye(3), None, torch.tensor([0]), teacher, torch.tensor([clm_weight]), 3)


@pytest.mark.parametrize(
    ("loss", "fusion", "gradient"),
    [
        # teacher: .5 on id 1, .5 in the tail; student: .25 on id 1, .75 = .5 + .25 outside
        (CrossEntropy(), -0.5 * math.log(0.25) - 0.5 * math.log(0.75), [0.5 - 0.5 * 0.5 / 0.75, 0.25 - 0.5, 0.25 - 0.5 * 0.25 / 0.75]),
        (KL(), 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75), [0.5 - 0.5 * 0.5 / 0.75, 0.25 - 0.5, 0.25 - 0.5 * 0.25 / 0.75]),
        # the tail thrown away: all on id 1
        (CrossEntropy(tail="renormalise"), math.log(4), [0.5, 0.25 - 1, 0.25]),
        (KL(tail="renormalise"), math.log(4), [0.5, 0.25 - 1, 0.25]),
    ],
    ids=str,
)
def test_by_hand(loss, fusion, gradient):
    case = small(teacher_rows({1: 0.5}))
    found = case.fused(loss)
    found.loss.backward()
    assert found.clm_nats.item() == pytest.approx(math.log(2))
    assert found.fusion_nats.item() == pytest.approx(fusion, rel=1e-5)
    assert found.loss.item() == pytest.approx(0.75 * math.log(2) + 0.25 * fusion, rel=1e-5)
    expected = [0.75 * clm + 0.25 * teach for clm, teach in zip([0.5 - 1, 0.25, 0.25], gradient, strict=True)]
    assert case.hidden.grad[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert (found.num_positions, found.num_taught) == (1, 1)


def test_by_hand_a_position_that_is_not_taught_is_plain_cross_entropy():
    for teacher in (None, teacher_rows(None), teacher_rows({})):  # no teacher, a row that does not teach, a row without a candidate
        found = small(teacher, clm_weight=0.1).fused(KL())
        assert found.loss.item() == pytest.approx(math.log(2))
        assert found.fusion_nats.item() == 0
        assert found.num_taught == 0


@pytest.mark.parametrize("options", HEADS, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_oracle_dense_teacher_and_autograd(loss, options):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        case = random_case(dtype=dtype, **options)
        found, expected = case.fused(loss, chunk=7), case.dense(loss)
        assert torch.allclose(found.loss, expected, rtol=tolerance, atol=tolerance)
        for ours, theirs in zip(case.gradients(found.loss), case.gradients(expected), strict=True):
            assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize("options", HEADS, ids=str)
@pytest.mark.parametrize("loss", [KL(), CrossEntropy(tail="renormalise")], ids=str)
def test_gradcheck(loss, options):
    case = random_case(size=(5, 3, 7, 3), **options)

    def value(*leaves):
        case.hidden, case.weight = leaves[:2]
        case.bias = leaves[2] if len(leaves) > 2 else None
        return case.fused(loss, chunk=2).loss

    assert torch.autograd.gradcheck(value, case.leaves)


def test_sums_are_those_of_the_positions():
    case = random_case()
    logits = case.head().logits(case.hidden)
    found = case.fused(KL(), chunk=4)
    assert found.clm_nats.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, case.labels, reduction="sum").item())
    taught = case.teacher.taught.clone()
    taught[2] = False  # has no candidate
    case.clm_weight = torch.zeros_like(case.clm_weight)
    alone = Case(
        case.hidden[taught], case.weight, case.bias, case.labels[taught], case.teacher[taught], case.clm_weight[taught], case.vocab_size
    )
    assert found.fusion_nats.item() == pytest.approx((alone.dense(KL()) * taught.sum()).item())
    assert found.num_taught == taught.sum()
    assert not found.clm_nats.requires_grad
    assert not found.fusion_nats.requires_grad


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_invariant_a_student_that_equals_its_teacher_learns_nothing(loss, full):
    case = random_case(dtype=torch.float32, full=full, size=(11, 8, 30, 6))
    with torch.no_grad():
        log_probs = case.head().logits(case.hidden).log_softmax(1)
    if loss.tail == "bucket":
        kept = log_probs.topk(6)
        tail = log_probs.scatter(1, kept.indices, -torch.inf).logsumexp(1)
    else:  # nothing outside: the teacher keeps the whole vocabulary
        kept, tail = log_probs.topk(30), torch.full((11,), -torch.inf)
    case.teacher, case.clm_weight = TeacherRows.of(kept.indices, kept.values, tail, torch.ones(11, dtype=torch.bool)), torch.zeros(11)
    found = case.fused(loss, chunk=4)
    if loss.name == "kl":
        assert abs(found.loss.item()) < 1e-6
    assert all(gradient.abs().max() < 1e-6 for gradient in case.gradients(found.loss))


def test_invariant_lambda_one_is_torch_cross_entropy():
    case = random_case()
    case.clm_weight = torch.ones_like(case.clm_weight)
    expected = torch.nn.functional.cross_entropy(case.head().logits(case.hidden), case.labels)
    found = case.fused(KL()).loss
    assert torch.allclose(found, expected, rtol=1e-12)
    for ours, theirs in zip(case.gradients(found), case.gradients(expected), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-14)


@pytest.mark.parametrize("full", [False, True])
def test_invariant_neither_chunks_nor_the_order_of_slots_matter(full):
    case = random_case(full=full)
    expected = case.fused(KL(), chunk=1000)
    gradients = case.gradients(expected.loss)
    for chunk in (1, 5, 23):
        found = case.fused(KL(), chunk=chunk)
        assert torch.allclose(found.loss, expected.loss, rtol=1e-12)
        assert all(torch.allclose(*pair, rtol=1e-10, atol=1e-14) for pair in zip(case.gradients(found.loss), gradients, strict=True))
    order, rows = torch.tensor([3, 1, 4, 0, 2]), case.teacher
    case.teacher = TeacherRows.of(rows.ids[:, order], rows.log_probs[:, order], rows.tail, rows.taught)
    found = case.fused(KL())
    assert torch.allclose(found.loss, expected.loss, rtol=1e-12)
    assert all(torch.allclose(*pair, rtol=1e-10, atol=1e-14) for pair in zip(case.gradients(found.loss), gradients, strict=True))


def test_a_scaled_loss_scales_the_gradient_and_gradients_accumulate():
    case = random_case()
    once = case.gradients(case.fused(KL()).loss)
    for _ in range(2):
        (case.fused(KL()).loss / 4).backward()
    for leaf, gradient in zip(case.leaves, once, strict=True):
        assert torch.allclose(leaf.grad, gradient / 2, rtol=1e-12)


def test_only_what_requires_a_gradient_gets_one():
    case = random_case()
    expected = case.gradients(case.fused(KL()).loss)
    case.weight.requires_grad_(False)
    assert torch.equal(case.gradients(case.fused(KL()).loss)[0], expected[0])  # a frozen head
    case.weight.requires_grad_(True)
    case.hidden.requires_grad_(False)
    assert torch.equal(case.gradients(case.fused(KL()).loss)[0], expected[1])  # a frozen body
    with torch.no_grad():
        assert not case.fused(KL()).loss.requires_grad


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(each.numel() for each in tree_leaves(result) if isinstance(each, torch.Tensor))])
        return result


@pytest.mark.parametrize("full", [False, True])
def test_no_tensor_of_positions_times_vocabulary_exists(full):
    case = random_case(size=(64, 4, 200, 5), full=full)
    with Largest() as largest:
        case.fused(KL(), chunk=8).loss.backward()
    assert largest.numel == 8 * (203 if full else 200)


def test_padded_rows_of_the_weight_get_no_gradient():
    case = random_case()
    _, weight, bias = case.gradients(case.fused(KL()).loss)
    assert not weight[case.vocab_size :].any()
    assert not bias[case.vocab_size :].any()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_extreme_logits_stay_finite(full, tail):
    hidden = torch.tensor([[300.0, 0.0, 0.0, -300.0], [0.0, 0.0, 0.0, 400.0]], requires_grad=True)
    # first: the student's tail mass underflows while the teacher's does not; second: the whole vocabulary is kept
    teacher = teacher_rows({0: 0.5, 1: 0.0}, {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}, k=4)
    found = Case(hidden, torch.eye(4), None, torch.tensor([3, 0]), teacher, torch.tensor([0.5, 0.5]), 4, full=full).fused(KL(tail=tail))
    found.loss.backward()
    assert torch.isfinite(found.loss)
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("full", [False, True])
def test_a_tiny_tail_keeps_its_digits(full):
    hidden = torch.tensor([[25.0, 0.0, 0.0]], requires_grad=True)  # tail: 2.8e-11, invisible beside 1 in float32
    case = Case(hidden, torch.eye(3), None, torch.tensor([0]), teacher_rows({0: 1 - 1e-6}), torch.zeros(1), 3, full=full)
    wide = Case(
        hidden.detach().double().requires_grad_(), torch.eye(3).double(), None, case.labels, case.teacher, torch.zeros(1), 3, full=full
    )
    found = case.fused(CrossEntropy())
    assert found.fusion_nats.item() == pytest.approx(wide.dense(CrossEntropy()).item(), rel=1e-5)


@pytest.mark.parametrize("full", [False, True])
def test_bfloat16_autocast_is_near_float32(full):
    case = random_case(dtype=torch.float32, full=full)
    expected = case.fused(KL())
    with torch.autocast("cpu", torch.bfloat16):
        found = case.fused(KL(), chunk=6)
    assert found.loss.dtype == torch.float32
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=2e-2)
    for ours, theirs in zip(case.gradients(found.loss), case.gradients(expected.loss), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 3e-2 * theirs.norm()


def test_bfloat16_weights_get_bfloat16_gradients():
    case, exact = random_case(dtype=torch.float32), random_case(dtype=torch.float32)
    case.hidden, case.weight, case.bias = (each.detach().bfloat16().requires_grad_() for each in case.leaves)
    exact.hidden, exact.weight, exact.bias = (each.detach().float().requires_grad_() for each in case.leaves)
    found, expected = case.fused(KL(), chunk=6).loss, exact.fused(KL()).loss
    assert found.item() == pytest.approx(expected.item(), rel=2e-2)
    for ours, theirs in zip(case.gradients(found), exact.gradients(expected), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).norm() < 3e-2 * theirs.norm()


def test_wrong_input():
    case = random_case()
    hidden, head, labels, teacher, share = case.hidden, case.head(), case.labels, case.teacher, case.clm_weight
    with pytest.raises(ValueError, match="width 8, expected 9"):
        objective(hidden, Head(torch.zeros(40, 9), 40), labels, teacher, share, KL())
    with pytest.raises(ValueError, match="has 30 rows, expected at least its vocabulary of 40"):
        objective(hidden, Head(torch.zeros(30, 8), 40), labels, teacher, share, KL())
    with pytest.raises(ValueError, match="'teacher': 22"):
        objective(hidden, head, labels, teacher[:22], share, KL())
    with pytest.raises(ValueError, match=r"labels from .* to 40, expected 0 to 39"):
        objective(hidden, head, labels.clone().index_fill_(0, torch.tensor([4]), 40), teacher, share, KL())
    with pytest.raises(ValueError, match="labels from -100"):
        objective(hidden, head, labels.clone().index_fill_(0, torch.tensor([4]), -100), teacher, share, KL())
    with pytest.raises(ValueError, match="teacher ids from"):
        objective(
            hidden,
            Head(case.weight, 40),
            labels,
            TeacherRows.of(teacher.ids + 39, teacher.log_probs, teacher.tail, teacher.taught),
            share,
            KL(),
        )
    with pytest.raises(ValueError, match="above 0"):
        objective(hidden[:0], head, labels[:0], None, share[:0], KL())
    with pytest.raises(ValueError, match="chunk"):
        objective(hidden, head, labels, teacher, share, KL(), chunk=0)
    found = case.fused(KL()).loss
    found.backward()
    with pytest.raises(RuntimeError, match="second time"):
        found.backward()


def test_without_a_teacher_every_loss_is_plain_cross_entropy_and_wants_nothing():
    case = random_case()
    case.teacher = None
    for loss in (ChunkLikelihood(), ProjectedKL(), Uld()):
        found = case.fused(loss)
        assert torch.allclose(found.loss, torch.nn.functional.cross_entropy(case.logits(), case.labels))
        assert found.num_taught == 0
