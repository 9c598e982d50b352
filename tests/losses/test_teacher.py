import numpy as np
import pytest
import torch

from lmfuse.losses.teacher import TeacherRows
from lmfuse.types import TopK
from tests.losses.build import teacher_rows

TAUGHT = np.array([True, True])


def topk(ids: list[list[int]], probs: list[list[float]], vocab_size: int = 9) -> TopK:
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array(probs, np.float32))
        tail = np.log(np.maximum(1 - np.array(probs, np.float32).sum(1), 0))
    return TopK(np.array(ids), log_probs, tail, vocab_size)


def test_by_hand():
    rows = TeacherRows.from_numpy(topk([[7, 2], [3, 0]], [[0.5, 0.25], [0.25, 0.0]]), np.array([True, False]))
    assert rows.ids.tolist() == [[7, 2], [3, 0]]
    assert rows.log_probs.exp().flatten().tolist() == pytest.approx([0.5, 0.25, 0.25, 0.0])
    assert rows.tail.exp().tolist() == pytest.approx([0.25, 0.75])
    assert rows.taught.tolist() == [True, False]
    assert len(rows) == 2


def test_by_hand_targets_sum_to_one_and_empty_slots_point_to_a_kept_id():
    rows = teacher_rows({5: 0.5, 7: 0.25}, {4: 0.5}, None, {}, k=2)
    bucket, alone = rows.targets("bucket"), rows.targets("renormalise")
    assert bucket.ids.tolist() == [[5, 7], [4, 4], [0, 0], [0, 0]]
    assert bucket.owns.tolist() == [[True, True], [True, False], [True, False], [True, False]]
    assert bucket.probs[0].tolist() == pytest.approx([0.5, 0.25])
    assert alone.probs[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert bucket.tail.tolist() == pytest.approx([0.25, 0.5, 0.0, 0.0])
    assert alone.tail.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert bucket.taught.tolist() == [True, True, False, False]  # a row without any candidate teaches nothing
    assert bucket.entropy_nats.tolist() == pytest.approx([1.5 * np.log(2), np.log(2), 0.0, 0.0], abs=1e-6)


def test_oracle_rows_that_do_not_sum_to_one_are_stretched():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(5), 20) * rng.uniform(0.9, 1.1, (20, 1))  # storage in few bits
    rows = TeacherRows.of(
        torch.arange(4).expand(20, 4), torch.tensor(probs[:, :4]).log(), torch.tensor(probs[:, 4]).log(), torch.ones(20, dtype=torch.bool)
    )
    for tail, width in (("bucket", 5), ("renormalise", 4)):
        expected = probs[:, :width] / probs[:, :width].sum(1, keepdims=True)
        found = rows.targets(tail)
        assert np.allclose(found.probs, expected[:, :4])
        assert np.allclose(found.entropy_nats, -(expected * np.log(expected)).sum(1))


def test_invariant_cutting_and_joining_changes_nothing():
    rows = teacher_rows({5: 0.5, 7: 0.25}, None, {4: 1.0}, k=2)
    joined = TeacherRows.cat([rows[:1], rows[1:]])
    for name in ("ids", "log_probs", "tail", "taught"):
        assert torch.equal(getattr(joined, name), getattr(rows, name))
    wide = TeacherRows.cat([rows, teacher_rows({1: 0.1, 2: 0.2, 3: 0.3}, k=3), TeacherRows.nothing(2)])
    assert wide.targets("bucket").probs.sum(1).tolist() == pytest.approx([0.75, 0.0, 1.0, 0.6, 0.0, 0.0])
    assert rows.to("cpu").ids.tolist() == rows.ids.tolist()


def test_wrong_input():
    with pytest.raises(ValueError, match="ids 2 to 9, expected 0 to 8"):
        TeacherRows.from_numpy(topk([[2, 9]], [[0.5, 0.25]]), TAUGHT[:1])
    with pytest.raises(ValueError, match="row 1 holds the same id twice"):
        TeacherRows.from_numpy(topk([[2, 3], [4, 4]], [[0.5, 0.25], [0.5, 0.25]]), TAUGHT)
    with pytest.raises(ValueError, match="not a number"):
        TeacherRows.from_numpy(topk([[2, 3]], [[0.5, np.nan]]), TAUGHT[:1])
    rows = topk([[2, 0], [4, 4]], [[0.5, 0.0], [0.5, 0.25]])
    assert len(TeacherRows.from_numpy(rows, np.array([True, False]))) == 2  # what does not teach may hold anything
