import math

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse.losses.aids import Aids, Projection
from lmfuse.losses.dense import dense_kl, dense_projected_kl
from lmfuse.losses.projected_kl import ProjectedKL
from lmfuse.losses.teacher import TeacherRows
from lmfuse.types import VocabularyMap
from tests.losses.build import Case, random_case, teacher_rows
from tests.losses.test_fused_linear import Largest


def random_map(seed: int, size: int, source_size: int) -> tuple[VocabularyMap, torch.Tensor]:
    """Return a map of up to three shares a row, some rows empty, some columns unreached, and the same as a matrix."""
    rng = np.random.default_rng(seed)
    dense, indptr, ids, weights = np.zeros((size, source_size)), [0], [], []
    for row in range(size):
        count = min(int(rng.integers(0, 4)), source_size - 3)
        found, share = rng.choice(source_size - 3, count, replace=False), rng.dirichlet(np.ones(max(count, 1)))[:count]
        dense[row, found] = share.astype(np.float32)
        ids += found.tolist()
        weights += share.tolist()
        indptr.append(len(ids))
    onto = VocabularyMap(np.array(indptr), np.array(ids, dtype=np.int64), np.array(weights, dtype=np.float32), source_size, "pieces")
    return onto, torch.from_numpy(dense)


def random_projected(seed: int = 0, **options: object) -> tuple[Case, torch.Tensor]:
    case = random_case(seed, **options)
    onto, dense = random_map(seed, case.vocab_size, 50)
    case.aids = Aids(projection=Projection.from_map(onto))
    draw = torch.Generator().manual_seed(seed)
    rows = case.teacher
    ids = torch.rand(len(rows), 50, generator=draw).argsort(1)[:, : rows.ids.shape[1]]
    case.teacher = TeacherRows.of(torch.where(rows.log_probs > -math.inf, ids, 0), rows.log_probs, rows.tail, rows.taught)
    return case, dense


def test_by_hand_a_number_shares_in_its_first_digit():
    """Target: 2, 201, the, x; source: 2, 0, 1, the, y. The student gives 201 half of its mass, the teacher knows digits only."""
    onto = VocabularyMap.from_single(np.array([0, 0, 3, -1]), 5, "pieces")
    onto = VocabularyMap(
        np.array([0, 1, 4, 5, 5]), np.array([0, 0, 1, 2, 3]), np.array([1, 0.5, 0.25, 0.25, 1], dtype=np.float32), 5, onto.method
    )
    hidden = torch.tensor([[0.125, 0.5, 0.25, 0.125]]).log().requires_grad_()
    teacher = teacher_rows({0: 0.5, 3: 0.25, 4: 0.125})  # y is a token that no target token leads to: its mass joins the tail
    case = Case(
        hidden, torch.eye(4), None, torch.tensor([1]), teacher, torch.tensor([0.75]), 4, aids=Aids(projection=Projection.from_map(onto))
    )
    found = case.fused(ProjectedKL())
    expected = 0.5 * math.log(0.5 / 0.375) + 0.25 * math.log(0.25 / 0.25) + 0.25 * math.log(0.25 / (0.125 + 0.125 + 0.125))
    assert found.fusion_nats.item() == pytest.approx(expected, rel=1e-5)
    assert found.loss.item() == pytest.approx(0.75 * math.log(2) + 0.25 * expected, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"logit_scale": 0.3, "softcap": 2.0}, {"full": True}], ids=str)
def test_oracle_dense_matrix_and_autograd(options):
    for seed in range(4):
        case, onto = random_projected(seed, **options)
        found = case.fused(ProjectedKL(), chunk=7)
        taught = case.teacher.targets("bucket").taught
        which = torch.nonzero(taught)[:, 0]
        fusion = dense_projected_kl(case.logits()[which], case.teacher[which], onto)
        expected = case.weighed(torch.zeros(23, dtype=torch.float64).index_copy(0, which, fusion), taught)
        assert torch.allclose(found.loss, expected, rtol=1e-6)
        for ours, theirs in zip(case.gradients(found.loss), case.gradients(expected), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-8)


def test_gradcheck():
    case, _ = random_projected(size=(5, 3, 7, 3))

    def value(*leaves):
        case.hidden, case.weight, case.bias = leaves
        return case.fused(ProjectedKL(), chunk=2).loss

    assert torch.autograd.gradcheck(value, case.leaves)


def test_oracle_between_equal_vocabularies_it_is_kl():
    case = random_case()
    case.aids = Aids(projection=Projection.from_map(VocabularyMap.from_single(np.arange(40), 40, "exact")))
    rows = case.teacher[torch.nonzero(case.teacher.targets("bucket").taught)[:, 0]]
    taught = case.teacher.targets("bucket").taught
    expected = dense_kl(case.logits()[taught], rows).sum()
    assert torch.allclose(case.fused(ProjectedKL()).fusion_nats, expected, rtol=1e-6)


@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(5, 30))
@settings(max_examples=40, deadline=None)
def test_invariant_projection_loses_nothing_unseen(seed, size, source_size):
    onto, dense = random_map(seed, size, source_size)
    probs = torch.randn(4, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)
    projected, nowhere = Projection.from_map(onto)(probs)
    assert torch.allclose(projected, probs @ dense)
    assert torch.allclose(projected.sum(1) + nowhere, torch.ones(4, dtype=torch.float64), atol=1e-6)
    assert torch.equal(Projection.from_map(onto).reached, dense.sum(0) > 0)


def test_invariant_a_student_whose_projection_is_the_teacher_learns_nothing():
    case, onto = random_projected()
    with torch.no_grad():
        student = case.logits().softmax(1) @ onto
    kept = student.topk(5)
    case.teacher = TeacherRows.of(kept.indices, kept.values.log(), (1 - kept.values.sum(1)).log(), torch.ones(23) > 0)
    case.clm_weight = torch.zeros(23, dtype=torch.float64)
    found = case.fused(ProjectedKL())
    assert abs(found.loss.item()) < 1e-6
    assert all(gradient.abs().max() < 1e-6 for gradient in case.gradients(found.loss))


def test_no_tensor_of_positions_times_vocabulary_exists():
    case, _ = random_projected(size=(64, 4, 200, 5))
    with Largest() as largest:
        case.fused(ProjectedKL(), chunk=8).loss.backward()
    assert largest.numel == 8 * 200


def test_extreme_logits_and_autocast_stay_finite():
    case, _ = random_projected(dtype=torch.float32)
    expected = case.fused(ProjectedKL()).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        assert case.fused(ProjectedKL(), chunk=6).loss.item() == pytest.approx(expected, rel=2e-2)
    case.logit_scale = 300.0
    found = case.fused(ProjectedKL()).loss
    assert torch.isfinite(found)
    assert all(torch.isfinite(gradient).all() for gradient in case.gradients(found))


def test_wrong_input():
    case, _ = random_projected()
    case.teacher = TeacherRows.of(case.teacher.ids + 45, *(getattr(case.teacher, name) for name in ("log_probs", "tail", "taught")))
    with pytest.raises(ValueError, match=r"projected_kl: teacher ids from .* expected 0 to 49"):
        case.fused(ProjectedKL())
    case.aids = Aids()
    with pytest.raises(ValueError, match=r"wants aids\.projection, got None"):
        case.fused(ProjectedKL())
    case.aids = Aids(projection=Projection.from_map(VocabularyMap.from_single(np.arange(7), 7, "exact")))
    with pytest.raises(ValueError, match="over 7 ids, expected the target's 40"):
        case.fused(ProjectedKL())
    with pytest.raises(pydantic.ValidationError):
        ProjectedKL(tail="renormalise")
