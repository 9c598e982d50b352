import numpy as np
import pydantic
import pytest

from lmfuse.fuse.avg_ce import AvgCE
from lmfuse.fuse.posterior import Posterior
from tests.fuse.build import alignment, as_dict, mass, random_alignment

NAN = float("nan")
FIRST = alignment([{1: 0.75}, {1: 0.5}, None], truth=[-np.log(0.75), -np.log(0.5), NAN])
SECOND = alignment([{1: 0.25}, {2: 1.0}, {3: 0.5}], truth=[-np.log(0.25), np.inf, -np.log(0.5)])


def test_by_hand():
    fused = Posterior(memory=1.0)([FIRST, SECOND], np.zeros(2))
    assert as_dict(fused.topk, 0) == pytest.approx({1: 0.5})  # equal so far: (.75 + .25) / 2
    assert as_dict(fused.topk, 1) == pytest.approx({1: 0.375, 2: 0.25})  # 3/4 * 1/2 and 1/4 * 1
    assert as_dict(fused.topk, 2) == pytest.approx({3: 0.5})  # only the second has a row
    assert fused.winner.tolist() == [0, 0, 1]
    assert mass(fused.topk) == pytest.approx(np.ones(3))


def test_prior_by_hand():
    shares = Posterior(prior_bytes=10.0, memory=1.0)([FIRST, SECOND], np.array([0.1, 0.1 + np.log(3) / 10]))
    assert as_dict(shares.topk, 0) == pytest.approx({1: 0.75 * 0.75 + 0.25 * 0.25})  # held-out text makes the first three times as likely


def test_memory_fades_evidence_into_the_prior():
    nll = -np.log(np.array([[0.8, 0.5, 0.5], [0.2, 0.5, 0.5]]))
    weights = Posterior(memory=0.5).weights(nll, np.zeros(2))
    assert np.log(weights[0] / weights[1]) == pytest.approx([0.0, np.log(4) / 2, np.log(4) / 4])
    assert Posterior(memory=0.0).weights(nll, np.log([0.9, 0.1]))[0] == pytest.approx([0.9, 0.9, 0.9])


def test_silence_is_no_evidence():
    weights = Posterior(memory=1.0).weights(np.array([[0.1, NAN, 0.3], [2.0, 1.0, 0.3], [0.7, NAN, 0.3]]), np.zeros(3))
    assert weights[0, 2] / weights[2, 2] == pytest.approx(weights[0, 1] / weights[2, 1])  # the two that were silent keep their ratio
    assert weights[1, 2] == pytest.approx(weights[1, 1])  # and who spoke alone is compared with nobody
    assert weights.sum(0) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("seed", range(5))
def test_oracle_bayes_rule(seed):
    rng = np.random.default_rng(seed)
    sources = [random_alignment(rng, 20, 12, 4) for _ in range(3)]
    for each in sources:
        each.source_row[:] = np.arange(20)  # every source speaks everywhere
    scores = rng.uniform(0, 1, 3)
    weights = Posterior(memory=1.0).weights(np.stack([each.truth_nll_nats for each in sources]), -64 * scores)
    for token in range(20):
        joint = np.exp([-64 * s - each.truth_nll_nats[:token].sum() for s, each in zip(scores, sources, strict=True)])
        assert weights[:, token] == pytest.approx(joint / joint.sum(), rel=1e-9)


def test_invariant_the_blend_never_looks_at_the_token_it_teaches():
    rng = np.random.default_rng(1)
    sources = [random_alignment(rng, 20, 12, 4) for _ in range(2)]
    before = Posterior()(sources, np.array([0.5, 0.6]))
    sources[0].truth_nll_nats[12:] = 9.0
    after = Posterior()(sources, np.array([0.5, 0.6]))
    assert np.array_equal(before.topk.log_probs[:13], after.topk.log_probs[:13])
    assert not np.array_equal(before.topk.log_probs[13:], after.topk.log_probs[13:])


def test_invariant_without_memory_it_is_a_fixed_blend():
    rng = np.random.default_rng(2)
    sources, scores = [random_alignment(rng, 20, 12, 4) for _ in range(2)], np.array([0.4, 0.7])
    fused = Posterior(memory=0.0, prior_bytes=1.0, k=8)(sources, scores)
    fixed = AvgCE(weights="softmax_neg_ce")(sources, scores)
    for token in range(20):
        assert as_dict(fused.topk, token) == pytest.approx(as_dict(fixed.topk, token), rel=1e-6)


def test_nobody_teaches_where_plain_training_is_better():
    assert not Posterior()([FIRST, SECOND], np.array([0.5, 0.6, 0.4])).taught.any()
    assert Posterior()([FIRST, SECOND], np.array([0.5, 0.3, 0.4])).taught.all()
    assert not Posterior()([FIRST, SECOND], np.array([NAN, NAN])).taught.any()


def test_who_cannot_be_judged_has_no_part():
    fused = Posterior()([FIRST, SECOND], np.array([NAN, 0.5]))
    assert as_dict(fused.topk, 0) == pytest.approx({1: 0.25})
    assert fused.winner.tolist() == [1, 1, 1]


def test_wrong_input():
    with pytest.raises(ValueError, match="scores for 2 sources"):
        Posterior()([FIRST, SECOND], np.zeros(4))
    with pytest.raises(pydantic.ValidationError, match="less than or equal to 1"):
        Posterior(memory=1.5)
