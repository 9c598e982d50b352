"""The loss of a training step: the true token's and the teacher's, weighed against each other at every position."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from lmfuse.losses.aids import Aids
from lmfuse.losses.family import Loss, SeenLoss, SparseLoss
from lmfuse.losses.fused_linear import fused_losses
from lmfuse.losses.head import Head
from lmfuse.losses.kl import KL
from lmfuse.losses.recomputed import recomputed_losses
from lmfuse.losses.teacher import TeacherRows


@dataclass(frozen=True, eq=False)
class Objective:
    """What a training step needs, and what its log shows.

    Attributes:
        loss: the mean over positions, in nats; call ``backward`` on it, once.
        clm_nats: sum over all positions of the student's surprise at the true token; detached.
        fusion_nats: sum over taught positions of the loss against the teacher; detached.
        num_positions: how many positions there are.
        num_taught: how many of them have a teacher.
    """

    loss: Float[Tensor, ""]
    clm_nats: Float[Tensor, ""]
    fusion_nats: Float[Tensor, ""]
    num_positions: int
    num_taught: int


def objective(
    hidden: Float[Tensor, "N D"],
    head: Head,
    labels: Int[Tensor, "N"],
    teacher: TeacherRows | None,
    clm_weight: Float[Tensor, "N"],
    loss: Loss,
    *,
    aids: Aids | None = None,
    chunk: int = 256,
) -> Objective:
    """Return the mean over positions of ``clm_weight * CE(truth) + (1 - clm_weight) * loss(teacher)``.

    A position that is not taught counts as plain CE whatever its weight, so that every position weighs the same. Matrix products
    run in the autocast dtype where autocast is on, else in the dtype of ``hidden``; softmax, losses and the sum of the weight's
    gradient in float32 or wider. Masses of ``q_tail`` below the smallest normal number count as that number.

    Args:
        hidden: final hidden states of the positions that have a label, and only these.
        head: the output layer; its weight and bias get a gradient if they require one.
        labels: the true next tokens.
        teacher: one row per position, or None.
        clm_weight: lambda of each position; no gradient flows into it.
        loss: against the teacher.
        aids: what ``loss.wants``.
        chunk: positions at a time. Working memory is a few tensors of chunk x vocabulary (two for a ``SparseLoss``), whatever N is.

    Raises:
        ValueError: shapes that do not fit, no position at all, an id outside the vocabulary, an aid that is missing, or no chunk.
    """
    if chunk < 1:
        raise ValueError(f"objective: chunk is {chunk}, expected at least 1")
    rows = TeacherRows.nothing(len(labels), hidden.device) if teacher is None else teacher
    _check(hidden, head, labels, rows, clm_weight)
    if teacher is None:
        loss = KL()  # nobody teaches: plain cross-entropy under any loss, and this is the fast one
    if isinstance(loss, SparseLoss):
        mean, clm_nats, fusion_nats, num_taught = fused_losses(hidden, head, labels, rows, clm_weight, loss, chunk)
    else:
        assert isinstance(loss, SeenLoss)
        given = Aids() if aids is None else aids
        _check_aids(loss, given, head.vocab_size)
        mean, clm_nats, fusion_nats, num_taught = recomputed_losses(hidden, head, labels, rows, clm_weight, loss, given, chunk)
    return Objective(mean, clm_nats.sum(), fusion_nats.sum(), len(labels), num_taught)


def _check(hidden: Tensor, head: Head, labels: Tensor, rows: TeacherRows, clm_weight: Tensor) -> None:
    if head.full is None and hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(f"objective: hidden states of width {hidden.shape[1]}, expected {head.weight.shape[1]} as the head's weight has")
    if head.full is None and head.weight.shape[0] < head.vocab_size:
        raise ValueError(f"objective: the head has {head.weight.shape[0]} rows, expected at least its vocabulary of {head.vocab_size}")
    lengths = {"hidden": len(hidden), "labels": len(labels), "teacher": len(rows), "clm_weight": len(clm_weight)}
    if len(set(lengths.values())) > 1 or not len(labels):
        raise ValueError(f"objective: got {lengths} positions, expected one number above 0")


def _check_aids(loss: SeenLoss, aids: Aids, vocab_size: int) -> None:
    for name in loss.wants:
        if getattr(aids, name) is None:
            raise ValueError(f"objective: the loss wants aids.{name}, got None")
    sizes = {
        "boundary_ids": None if aids.boundary_ids is None else len(aids.boundary_ids),
        "projection": None if aids.projection is None else aids.projection.shares.shape[1],
    }
    for name in loss.wants:
        if sizes[name] != vocab_size:
            raise ValueError(f"objective: aids.{name} is over {sizes[name]} ids, expected the target's {vocab_size}")
