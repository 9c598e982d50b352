"""The losses once more, as a textbook writes them: slow, with a dense teacher. Tests and benchmarks compare against these."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lmfuse.losses.teacher import TeacherRows


def dense_teacher(
    teacher: TeacherRows, vocab_size: int, tail: Literal["bucket", "renormalise"], dtype: torch.dtype
) -> tuple[Float[Tensor, "N V"], Bool[Tensor, "N V"], Float[Tensor, "N"]]:
    """Return the teacher's probability of every id, which ids it kept, and its tail; candidates and tail sum to 1."""
    kept = torch.zeros(len(teacher), vocab_size, dtype=torch.bool)
    probs = torch.zeros(len(teacher), vocab_size, dtype=dtype)
    for row, (ids, log_probs) in enumerate(zip(teacher.ids.tolist(), teacher.log_probs.to(dtype).exp().tolist(), strict=True)):
        for token, prob in zip(ids, log_probs, strict=True):
            if prob > 0:
                kept[row, token], probs[row, token] = True, prob
    rest = teacher.tail.to(dtype).exp() if tail == "bucket" else torch.zeros(len(teacher), dtype=dtype)
    total = probs.sum(1) + rest
    return probs / total[:, None], kept, rest / total


def dense_cross_entropy(
    logits: Float[Tensor, "N V"], teacher: TeacherRows, tail: Literal["bucket", "renormalise"] = "bucket"
) -> Float[Tensor, "N"]:
    """Return ``-sum_v p_v log q_v - p_tail log q_tail`` of each row (``nan`` where the teacher knows nothing). Differentiable."""
    probs, kept, rest = dense_teacher(teacher, logits.shape[1], tail, logits.dtype)
    log_q = logits.log_softmax(1)
    log_q_tail = logits.masked_fill(kept, -torch.inf).logsumexp(1) - logits.logsumexp(1)
    cross_entropy: Tensor = -(probs * log_q).sum(1) - torch.where(rest > 0, rest * log_q_tail, 0.0)
    return cross_entropy


def dense_kl(logits: Float[Tensor, "N V"], teacher: TeacherRows, tail: Literal["bucket", "renormalise"] = "bucket") -> Float[Tensor, "N"]:
    """Return KL(teacher || student) of each row: the cross-entropy less the teacher's entropy. Differentiable."""
    probs, _, rest = dense_teacher(teacher, logits.shape[1], tail, logits.dtype)
    entropy: Tensor = -torch.special.xlogy(probs, probs).sum(1) - torch.special.xlogy(rest, rest)
    return dense_cross_entropy(logits, teacher, tail) - entropy
