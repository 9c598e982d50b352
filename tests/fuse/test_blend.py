"""What fusion carries on about the true tokens: how likely the teacher finds them, and where the tokenizations meet."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse.fuse.blend import blend, nothing, take
from lmfuse.fuse.min_ce import MinCE
from lmfuse.fuse.posterior import Posterior
from tests.fuse.build import alignment, random_alignment

NAN, YES, NO = float("nan"), True, False
FIRST = replace(alignment([{1: 0.5}, {1: 0.5}, None, {1: 0.5}], truth=[0.5, 1.0, NAN, NAN]), boundary=np.array([YES, NO, NO, YES]))
SECOND = replace(alignment([{2: 0.5}, {2: 0.5}, {2: 0.5}, {2: 0.5}], truth=[0.25, 2.0, 3.0, 4.0]), boundary=np.array([YES, YES, YES, YES]))


def test_by_hand_what_is_taken_is_the_winners():
    fused = take([FIRST, SECOND], np.array([1, 0, -1, 0]))
    assert fused.truth_nll_nats == pytest.approx([0.25, 1.0, NAN, NAN], nan_ok=True)
    assert fused.boundary.tolist() == [YES, NO, NO, YES]
    chosen = MinCE()([FIRST, SECOND], np.array([2.0, 1.0]))
    assert chosen.truth_nll_nats.tolist() == [0.25, 2.0, 3.0, 4.0]
    assert chosen.boundary.all()


def test_by_hand_a_blend_knows_the_mean_probability_where_all_with_a_part_know_theirs():
    fused = blend([FIRST, SECOND], np.array([0.25, 0.75]))
    expected = [-np.log(0.25 * np.exp(-0.5) + 0.75 * np.exp(-0.25)), -np.log(0.25 * np.exp(-1) + 0.75 * np.exp(-2)), 3.0, NAN]
    assert fused.truth_nll_nats == pytest.approx(expected, nan_ok=True, rel=1e-6)
    assert fused.boundary.tolist() == [YES, NO, YES, YES]  # at the third token only the second source has a part
    alone = blend([FIRST, SECOND], np.array([0.0, 1.0]))
    assert alone.truth_nll_nats == pytest.approx([0.25, 2.0, 3.0, 4.0])
    assert alone.boundary.all()


def test_nobody_knows_nothing():
    for fused in (nothing([FIRST]), blend([FIRST, SECOND], np.zeros(2))):
        assert np.isnan(fused.truth_nll_nats).all()
        assert not fused.boundary.any()


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_invariant_the_blends_truth_lies_between_the_sources(seed):
    rng = np.random.default_rng(seed)
    sources = [random_alignment(rng, 6, 9, 3) for _ in range(3)]
    fused = Posterior()(sources, rng.random(3))
    nll = np.stack([np.where(each.taught, each.truth_nll_nats, NAN) for each in sources])
    where = fused.taught
    assert (fused.truth_nll_nats[where] >= np.nanmin(nll[:, where], 0) - 1e-5).all()
    assert (fused.truth_nll_nats[where] <= np.nanmax(nll[:, where], 0) + 1e-5).all()
    assert np.isnan(fused.truth_nll_nats[~where]).all()
    assert not fused.boundary[~where].any()
