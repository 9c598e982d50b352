"""The losses once more, as a textbook writes them: slow, with a dense teacher. Tests and benchmarks compare against these."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
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


def dense_chunk_likelihood(
    logits: Float[Tensor, "N V"],
    labels: Int[Tensor, "N"],
    teacher: TeacherRows,
    temperature: float,
    boundary_ids: Bool[Tensor, "V"] | None = None,
    threshold: float = 0.0,
) -> tuple[Float[Tensor, "N"], Bool[Tensor, "N"]]:
    """Return each token's part of its chunk's binary divergence (times the temperature), and which are in a chunk. Differentiable.

    With ``boundary_ids`` both likelihoods are corrected, and chunks joined, as ``chunk_likelihood`` says.
    """
    log_q, size = logits.log_softmax(1), len(labels)
    loss, inside, start = [logits.new_zeros(())] * size, torch.zeros(size, dtype=torch.bool), 0
    for last in range(size):
        follows = last + 1 < size and bool(teacher.joined[last + 1])
        says = follows and bool(teacher.taught[last + 1]) and bool((teacher.log_probs[last + 1] > -torch.inf).any())
        p_break, q_break = torch.ones((), dtype=logits.dtype), torch.ones((), dtype=logits.dtype)
        if boundary_ids is not None and says:
            kept = teacher.log_probs[last + 1].to(logits.dtype).exp()
            p_break = (kept * boundary_ids[teacher.ids[last + 1]]).sum() / kept.sum()
            q_break = log_q[last + 1][boundary_ids].exp().sum()
        ends = bool(teacher.boundary[last]) and (not says or boundary_ids is None or float(p_break) > threshold)
        if not ends and follows:
            continue
        nll = teacher.truth_nll_nats[start : last + 1].to(logits.dtype)
        if ends and not nll.isnan().any():
            p = ((-nll.sum()).exp() * p_break) ** (1 / temperature)
            q = (torch.stack([log_q[n, labels[n]] for n in range(start, last + 1)]).sum().exp() * q_break) ** (1 / temperature)
            found = temperature * (p * (p / q).log() + torch.special.xlogy(1 - p, (1 - p) / (1 - q)))
            loss[start : last + 1] = [found / (last + 1 - start)] * (last + 1 - start)
            inside[start : last + 1] = True
        start = last + 1
    return torch.stack(loss), inside


def dense_uld(logits: Float[Tensor, "N V"], probs: Float[Tensor, "N W"]) -> Float[Tensor, "N"]:
    """Return the published distance of each row: both distributions whole, sorted, the shorter one filled up with zeros."""
    width = max(logits.shape[1], probs.shape[1])
    sides = [torch.nn.functional.pad(side, (0, width - side.shape[1])).sort(1).values for side in (logits.softmax(1), probs)]
    distance: Tensor = (sides[0] - sides[1]).abs().sum(1)
    return distance


def dense_projected_kl(logits: Float[Tensor, "N V"], teacher: TeacherRows, onto: Float[Tensor, "V W"]) -> Float[Tensor, "N"]:
    """Return KL(teacher || softmax @ onto) of each row, with one outcome for everything but the candidates that the map reaches."""
    probs, _, rest = dense_teacher(teacher, onto.shape[1], "bucket", logits.dtype)
    reached = onto.sum(0) > 0
    student, kept = logits.softmax(1) @ onto, probs * reached
    rest = rest + (probs * ~reached).sum(1)
    other = 1 - (student * (kept > 0)).sum(1)
    compared = torch.special.xlogy(kept, kept).sum(1) - (kept * torch.where(kept > 0, student, 1.0).log()).sum(1)
    found: Tensor = compared + torch.special.xlogy(rest, rest) - rest * torch.where(rest > 0, other, 1.0).log()
    return found
