import math
from dataclasses import replace
from itertools import chain

import hypothesis.strategies as st
import pydantic
import pytest
import torch
from hypothesis import given, settings

from lmfuse.losses.aids import Aids, boundary_ids
from lmfuse.losses.chunk_likelihood import ChunkLikelihood, log1mexp
from lmfuse.losses.chunks import Chunks
from lmfuse.losses.dense import dense_chunk_likelihood
from lmfuse.types import Vocabulary
from tests.losses.build import Case, random_case, teacher_rows
from tests.losses.test_fused_linear import Largest

YES, NO, NAN = True, False, math.nan
PLAIN = ChunkLikelihood(temperature=1, debias=False)
HEADS = [{}, {"logit_scale": 0.3, "softcap": 2.0}, {"bias": False}, {"full": True}]


def spoken(case: Case, seed: int = 0, unknown: float = 0.1) -> Case:
    """Let the case's teacher know the true tokens: chunks of one to a few tokens, some spoilt, several documents."""
    draw, rows = torch.Generator().manual_seed(seed), case.teacher
    truth = torch.rand(len(rows), generator=draw, dtype=case.hidden.dtype) * 5
    truth[torch.rand(len(rows), generator=draw) < unknown] = math.nan
    joined = torch.rand(len(rows), generator=draw) > 0.15
    joined[0] = False
    case.teacher = replace(rows, truth_nll_nats=truth, boundary=torch.rand(len(rows), generator=draw) > 0.4, joined=joined)
    case.aids = Aids(boundary_ids=torch.rand(case.vocab_size, generator=draw) > 0.5)
    return case


def dense(case: Case, loss: ChunkLikelihood) -> torch.Tensor:
    ids = case.aids.boundary_ids if loss.debias else None
    return case.weighed(*dense_chunk_likelihood(case.logits(), case.labels, case.teacher, loss.temperature, ids, loss.threshold))


def by_hand(*truth: float, boundary: list[bool], clm_weight: float = 0.75) -> Case:
    """A student that says (.5, .25, .25) at every position, where id 0 stands; all positions joined."""
    hidden = torch.tensor([[2.0, 1.0, 1.0]]).log().repeat(len(truth), 1).requires_grad_()
    rows = teacher_rows(*[{1: 0.5, 0: 0.25}] * len(truth))
    joined = torch.tensor([NO] + [YES] * (len(truth) - 1))
    rows = replace(rows, truth_nll_nats=-torch.tensor(truth).log(), boundary=torch.tensor(boundary), joined=joined)
    share = torch.full((len(truth),), clm_weight)
    return Case(hidden, torch.eye(3), None, torch.zeros(len(truth), dtype=torch.int64), rows, share, 3)


def divergence(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_by_hand_two_tokens_are_one_chunk():
    case = by_hand(0.5, 0.25, 0.5, boundary=[NO, YES, YES])  # chunks of probability 1/8 and 1/2, the student's 1/4 and 1/2
    found = case.fused(PLAIN)
    assert found.num_taught == 3
    assert found.fusion_nats.item() == pytest.approx(divergence(1 / 8, 1 / 4), rel=1e-5)  # a chunk counts once
    clm, fusion = math.log(2), divergence(1 / 8, 1 / 4) / 3
    assert found.loss.item() == pytest.approx(0.75 * clm + 0.25 * fusion, rel=1e-5)
    # d divergence / d log q = (q - p) / (1 - q) = 1/6 at both tokens of the first chunk, 0 in the second, where both sides agree
    (gradient,) = case.gradients(found.loss)
    slope = torch.tensor([1 / 6, 1 / 6, 0.0])
    expected = (-0.75 + 0.25 * slope)[:, None] / 3 * (torch.tensor([1.0, 0, 0]) - torch.tensor([0.5, 0.25, 0.25]))
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_by_hand_what_is_not_in_a_chunk_is_plain_cross_entropy():
    for boundary, truth in ([[NO, NO, NO], (0.5, 0.5, 0.5)], [[YES, YES, YES], (NAN, NAN, NAN)], [[NO, NO, YES], (0.5, NAN, 0.5)]):
        found = by_hand(*truth, boundary=boundary, clm_weight=0.1).fused(PLAIN)
        assert (found.num_taught, found.fusion_nats.item()) == (0, 0)
        assert found.loss.item() == pytest.approx(math.log(2))


def test_by_hand_boundaries_are_debiased_on_both_sides():
    """White space is id 1: 2/3 of what the teacher's candidates say, 1/4 of the student. Nothing follows the last chunk."""
    case = by_hand(0.5, 0.25, boundary=[YES, YES])
    case.aids = Aids(boundary_ids=torch.tensor([NO, YES, NO]))
    loss = ChunkLikelihood(temperature=1, threshold=0.5)
    expected = divergence(0.5 * 2 / 3, 0.5 * 1 / 4) + divergence(0.25, 0.5)
    assert case.fused(loss).fusion_nats.item() == pytest.approx(expected, rel=1e-5)
    joined = case.fused(replace_loss(loss, threshold=0.7))  # the first boundary is not sure enough: one chunk of two tokens
    assert joined.fusion_nats.item() == pytest.approx(divergence(0.125, 0.25), rel=1e-5)
    case.teacher = replace(case.teacher, taught=torch.tensor([YES, NO]))  # no row follows: no correction
    assert case.fused(loss).fusion_nats.item() == pytest.approx(divergence(0.5, 0.5) + divergence(0.25, 0.5), rel=1e-5)


def replace_loss(loss: ChunkLikelihood, **changes: object) -> ChunkLikelihood:
    return ChunkLikelihood(**{name: getattr(loss, name) for name in ("temperature", "debias", "threshold")} | changes)


def test_a_vocabulary_without_boundaries_has_no_chunk_but_the_last():
    case = by_hand(0.5, 0.25, boundary=[YES, YES])
    case.aids = Aids(boundary_ids=torch.zeros(3, dtype=torch.bool))
    found = case.fused(ChunkLikelihood(temperature=1))
    assert found.fusion_nats.item() == pytest.approx(divergence(0.125, 0.25), rel=1e-5)
    assert torch.isfinite(case.gradients(found.loss)[0]).all()


def test_no_tensor_of_positions_times_vocabulary_exists():
    case = spoken(random_case(size=(64, 4, 200, 5)))
    with Largest() as largest:
        case.fused(ChunkLikelihood(), chunk=8).loss.backward()
    assert largest.numel == 8 * 200


def test_by_hand_which_tokens_stand_behind_a_boundary():
    vocabulary = Vocabulary.from_tokens([b"", b" a", b"\n", b"\t\t", b"a ", b"\xc2\xa0", b"", b"9"])
    assert boundary_ids(vocabulary).tolist() == [YES, YES, YES, YES, NO, NO, YES, NO]


@pytest.mark.parametrize("options", HEADS, ids=str)
@pytest.mark.parametrize(
    "loss", [PLAIN, ChunkLikelihood(), ChunkLikelihood(debias=False), ChunkLikelihood(temperature=3, threshold=0.5)], ids=str
)
def test_oracle_textbook_version_and_autograd(loss, options):
    for seed in range(3):
        case = spoken(random_case(seed, **options), seed)
        found, expected = case.fused(loss, chunk=7), dense(case, loss)
        assert found.num_taught > 0
        assert torch.allclose(found.loss, expected, rtol=1e-9)
        for ours, theirs in zip(case.gradients(found.loss), case.gradients(expected), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", [PLAIN, ChunkLikelihood(temperature=5, threshold=0.2)], ids=str)
def test_gradcheck(loss):
    case = spoken(random_case(size=(6, 3, 7, 3)), unknown=0.0)
    case.teacher = replace(
        case.teacher, joined=torch.tensor([NO, YES, YES, YES, NO, YES]), boundary=torch.tensor([NO, YES, NO, YES, YES, YES])
    )

    def value(*leaves):
        case.hidden, case.weight, case.bias = leaves
        return case.fused(loss, chunk=2).loss

    assert torch.autograd.gradcheck(value, case.leaves)


def test_oracle_a_high_temperature_approaches_its_limit():
    """t KL(p^(1/t), q^(1/t)) tends to a log(a / b) - a + b with a = -log p, b = -log q."""
    a, b = torch.tensor([0.3, 2.0, 9.0], dtype=torch.float64), torch.tensor([1.5, 2.0, 1.0], dtype=torch.float64)
    found = ChunkLikelihood(temperature=1e6).divergence(a, b)
    assert torch.allclose(found, a * (a / b).log() - a + b, atol=1e-4)


def test_oracle_log1mexp():
    nats = torch.logspace(-30, 2.5, 200, dtype=torch.float64)
    wide = [math.log1p(-math.exp(-x)) if x > 0.1 else math.log(-math.expm1(-x)) for x in nats.tolist()]
    assert torch.allclose(log1mexp(nats), torch.tensor(wide, dtype=torch.float64), rtol=1e-13, atol=0)
    assert torch.autograd.gradcheck(log1mexp, torch.tensor([1e-3, 0.5, 0.6931, 0.7, 3.0, 30.0], dtype=torch.float64, requires_grad=True))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_invariant_chunks_are_cut_alike_wherever_the_batch_is_cut(data):
    """Documents behind each other are chunked as each of them alone, and every chunk lies in one document."""
    cases = []
    for _ in range(data.draw(st.integers(1, 3))):
        size = data.draw(st.integers(1, 6))
        flags = st.lists(st.booleans(), min_size=size, max_size=size)
        truth = [NAN if hidden else 0.5 for hidden in data.draw(flags)]
        cases.append((truth, data.draw(flags), [NO, *[YES] * (size - 1)]))
    joint = [torch.tensor(list(chain(*column))) for column in zip(*[map(list, case) for case in cases], strict=True)]
    together = Chunks.of(*joint)
    alone = [Chunks.of(*map(torch.tensor, case)) for case in cases]
    assert together.whole[together.number].tolist() == [flag for each in alone for flag in each.whole[each.number].tolist()]
    assert together.size[together.number].tolist() == [count for each in alone for count in each.size[each.number].tolist()]
    whole = together.whole
    values = together.total(joint[0].nan_to_num(99.0))
    assert torch.allclose(values[whole], 0.5 * together.size[whole])


def test_invariant_a_student_that_agrees_learns_nothing():
    case = spoken(random_case(dtype=torch.float32), unknown=0.0)
    with torch.no_grad():
        nll = -case.logits().log_softmax(1).gather(1, case.labels[:, None])[:, 0]
    case.teacher, case.clm_weight = replace(case.teacher, truth_nll_nats=nll), torch.zeros(len(nll))
    for loss in (PLAIN, ChunkLikelihood(debias=False)):
        chunk_only = case.fused(loss)
        assert abs(chunk_only.fusion_nats.item()) < 1e-4
    unchunked = ~dense_chunk_likelihood(case.logits(), case.labels, case.teacher, 1.0)[1]
    (gradient, *_) = case.gradients(case.fused(PLAIN).loss)
    assert gradient[~unchunked].abs().max() < 1e-5


def test_invariant_neither_chunks_of_logits_nor_lambda_one_matter():
    case = spoken(random_case())
    loss = ChunkLikelihood(temperature=2)
    expected = case.fused(loss, chunk=1000).loss
    for size in (1, 5, 23):
        assert torch.allclose(case.fused(loss, chunk=size).loss, expected, rtol=1e-12)
    case.clm_weight = torch.ones_like(case.clm_weight)
    assert torch.allclose(case.fused(loss).loss, torch.nn.functional.cross_entropy(case.logits(), case.labels), rtol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_certain_and_impossible_chunks_stay_finite(temperature):
    hidden = torch.tensor([[300.0, 0.0], [0.0, 300.0], [300.0, 0.0], [0.0, 0.0]], requires_grad=True)
    for truth in (0.0, 1e-9, 1.0, 200.0, math.inf):
        rows = replace(
            teacher_rows(*[{0: 0.5, 1: 0.5}] * 4), truth_nll_nats=torch.full((4,), truth), boundary=torch.ones(4, dtype=torch.bool)
        )
        case = Case(hidden, torch.eye(2), None, torch.zeros(4, dtype=torch.int64), rows, torch.zeros(4), 2)
        found = case.fused(ChunkLikelihood(temperature=temperature, debias=False))
        assert found.num_taught == 4
        assert torch.isfinite(found.loss)
        assert torch.isfinite(case.gradients(found.loss)[0]).all()


def test_bfloat16_autocast_is_near_float32():
    case = spoken(random_case(dtype=torch.float32))
    expected = case.fused(ChunkLikelihood())
    with torch.autocast("cpu", torch.bfloat16):
        found = case.fused(ChunkLikelihood(), chunk=6)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=2e-2)


def test_wrong_input():
    case = spoken(random_case())
    case.aids = None
    with pytest.raises(ValueError, match=r"wants aids\.boundary_ids, got None"):
        case.fused(ChunkLikelihood())
    case.aids = Aids(boundary_ids=torch.ones(7, dtype=torch.bool))
    with pytest.raises(ValueError, match="over 7 ids, expected the target's 40"):
        case.fused(ChunkLikelihood())
    case.labels = case.labels + 40
    with pytest.raises(ValueError, match=r"labels from .* expected 0 to 39"):
        case.fused(PLAIN)
    for wrong in ({"temperature": 0}, {"temperature": math.inf}, {"threshold": 1}, {"tail": "bucket"}):
        with pytest.raises(pydantic.ValidationError):
            ChunkLikelihood(**wrong)
