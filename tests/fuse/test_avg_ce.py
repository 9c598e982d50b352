import numpy as np
import pydantic
import pytest

from lmfuse.fuse.avg_ce import AvgCE
from lmfuse.fuse.uniform import Uniform
from tests.fuse.build import alignment, as_dict, mass, random_alignment

NAN = float("nan")
FIRST = alignment([{1: 0.5, 2: 0.25}, None, None])
SECOND = alignment([{2: 0.75}, {5: 1.0}, None])


def test_by_hand_uniform():
    fused = Uniform()([FIRST, SECOND], np.zeros(2))
    assert as_dict(fused.topk, 0) == pytest.approx({2: 0.5, 1: 0.25})  # (.25 + .75) / 2 and (.5 + 0) / 2
    assert np.exp(fused.topk.tail[0]) == pytest.approx(0.25)
    assert fused.topk.ids[0].tolist() == [2, 1, 0, 0, 0, 0]  # largest first, then empty slots
    assert as_dict(fused.topk, 1) == pytest.approx({5: 1.0})  # the only source here has all the weight
    assert fused.winner.tolist() == [-2, -2, -1]
    assert fused.taught.tolist() == [True, True, False]


def test_by_hand_published_weights_are_nearly_uniform():
    assert AvgCE().shares(np.array([0.0, np.log(2)])) == pytest.approx([1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(0.5))])
    assert AvgCE(weights="softmax_neg_ce").shares(np.array([0.0, np.log(2)])) == pytest.approx([2 / 3, 1 / 3])
    fused = AvgCE(weights="softmax_neg_ce")([FIRST, SECOND], np.array([0.0, np.log(2)]))
    assert as_dict(fused.topk, 0) == pytest.approx({1: 1 / 3, 2: 1 / 6 + 1 / 4})


def test_who_cannot_be_judged_has_no_weight():
    fused = AvgCE()([FIRST, SECOND], np.array([0.3, NAN]))
    assert as_dict(fused.topk, 0) == pytest.approx({1: 0.5, 2: 0.25})
    assert fused.taught.tolist() == [True, False, False]
    assert not AvgCE()([FIRST, SECOND], np.array([NAN, NAN])).taught.any()


def test_a_cut_moves_probability_to_the_tail():
    fused = Uniform(k=1)([FIRST, SECOND], np.zeros(2))
    assert as_dict(fused.topk, 0) == pytest.approx({2: 0.5})
    assert np.exp(fused.topk.tail[0]) == pytest.approx(0.5)
    assert fused.topk.k == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", [AvgCE(), AvgCE(weights="softmax_neg_ce"), AvgCE(k=4), Uniform()], ids=str)
def test_oracle(seed, method):
    rng = np.random.default_rng(seed)
    sources, scores = [random_alignment(rng, 25, 12, k) for k in (2, 5, 3)], rng.uniform(0, 3, 3)
    weights = {"published": np.exp(np.exp(-scores)), "softmax_neg_ce": np.exp(-scores)}.get(getattr(method, "weights", ""), np.ones(3))
    fused = method(sources, scores)
    for token in range(25):
        able = [s for s in range(3) if sources[s].source_row[token] >= 0]
        expected: dict[int, float] = {}
        for s in able:
            for name, prob in as_dict(sources[s].topk, token).items():
                expected[name] = expected.get(name, 0.0) + weights[s] / sum(weights[able]) * prob
        expected = dict(sorted(expected.items(), key=lambda pair: -pair[1])[: method.k])
        assert as_dict(fused.topk, token) == pytest.approx(expected, rel=1e-6)
        assert fused.taught[token] == bool(able)
    assert mass(fused.topk) == pytest.approx(np.ones(25), abs=1e-6)


def test_invariant_blending_a_source_with_itself_changes_nothing():
    source = random_alignment(np.random.default_rng(3), 30, 12, 4)
    fused = AvgCE()([source, source, source], np.array([0.1, 0.5, 2.0]))
    for token in range(30):
        assert as_dict(fused.topk, token) == pytest.approx(as_dict(source.topk, token), rel=1e-6)
    assert np.array_equal(fused.taught, source.taught)
    assert np.exp(fused.topk.tail) == pytest.approx(np.exp(source.topk.tail), abs=1e-6)


def test_an_empty_document():
    assert len(Uniform()([alignment([]), alignment([])], np.zeros(2)).topk) == 0


def test_wrong_input():
    with pytest.raises(ValueError, match="3 scores for 2 sources, expected 2"):
        AvgCE()([FIRST, SECOND], np.zeros(3))
    with pytest.raises(ValueError, match="vocabulary"):
        Uniform()([FIRST, alignment([None, None, None], vocab_size=5)], np.zeros(2))
    with pytest.raises(pydantic.ValidationError, match="greater than or equal to 1"):
        AvgCE(k=0)
