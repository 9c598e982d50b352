"""Any head and any loss, a few positions at a time: logits are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lmfuse.losses.aids import Aids
from lmfuse.losses.family import SeenLoss
from lmfuse.losses.head import Head
from lmfuse.losses.teacher import TeacherRows


def by_chunks(
    hidden: Float[Tensor, "N D"], head: Head, chunk: int, look: Callable[[Tensor, slice], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Call ``look`` with the logits of ``chunk`` positions at a time and which ones they are; return its results joined. Differentiable.

    One tensor of chunk x vocabulary lives at a time, and what ``look`` makes of it: twice, forward and backward.
    """

    def visit(states: Tensor, start: int) -> tuple[Tensor, ...]:
        return look(head.logits(states), slice(start, start + len(states)))

    starts = range(0, len(hidden), chunk)
    parts = [checkpoint(visit, hidden[start : start + chunk], start, use_reentrant=False) for start in starts]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def recomputed_losses(
    hidden: Float[Tensor, "N D"],
    head: Head,
    labels: Int[Tensor, "N"],
    rows: TeacherRows,
    clm_weight: Float[Tensor, "N"],
    loss: SeenLoss,
    aids: Aids,
    chunk: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, "N"], Float[Tensor, "N"], int]:
    """Return the mean loss, and detached of each position the true token's loss and the teacher's, and how many are taught.

    Raises:
        ValueError: a label outside the vocabulary, or rows that the loss cannot use.
    """
    low, high = torch.stack([labels.min(), labels.max()]).tolist()
    if low < 0 or high >= head.vocab_size:
        raise ValueError(f"objective: labels from {low} to {high}, expected 0 to {head.vocab_size - 1}")
    loss.check(rows, aids)

    def look(logits: Tensor, which: slice) -> tuple[Tensor, Tensor]:
        surprise = logits.logsumexp(1) - logits.gather(1, labels[which, None])[:, 0]
        return surprise, loss.see(logits, rows[which], aids)

    surprise, seen = by_chunks(hidden, head, chunk, look)
    fusion, taught = loss.judge(surprise, seen, rows, aids)
    fusion = torch.where(taught, fusion, 0.0)
    share = torch.where(taught, clm_weight, 1.0).detach().to(surprise.dtype)
    mean = (share * surprise + (1 - share) * fusion).mean()
    return mean, surprise.detach(), fusion.detach(), int(taught.sum())
