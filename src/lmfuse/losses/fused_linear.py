"""Output layer, true-token loss and teacher loss in one go, a few positions at a time.

With logits z, student q = softmax(z), true token y, teacher p over kept ids and a tail bucket, the loss of a position is

    lambda * -log q_y + (1 - lambda) * (-sum_k p_k log q_k - p_tail log q_tail),     q_tail = sum of q_v over v not kept

and its gradient in z_v is, where o = 1 for the true token and else 0,

    q_v - lambda o_v - (1 - lambda) p_v               for a kept id
    q_v (1 - (1 - lambda) p_tail / q_tail) - lambda o_v   for any other

so one softmax, one factor per row and K + 1 corrections per row give the exact gradient: neither a dense teacher nor a second
tensor of positions x vocabulary is needed, and because the gradient in the hidden states and in the weight is computed with the
loss, no logits are kept for the backward pass. That is the whole idea; heads that are no plain linear map are recomputed instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmfuse.losses.family import SparseLoss
from lmfuse.losses.head import Head
from lmfuse.losses.recomputed import by_chunks
from lmfuse.losses.teacher import Targets, TeacherRows


def fused_losses(
    hidden: Float[Tensor, "N D"],
    head: Head,
    labels: Int[Tensor, "N"],
    rows: TeacherRows,
    clm_weight: Float[Tensor, "N"],
    loss: SparseLoss,
    chunk: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, "N"], Float[Tensor, "N"], int]:
    """Return the mean loss, and detached of each position the true token's loss and the teacher's, and how many are taught.

    Raises:
        ValueError: a label or a teacher's id outside the vocabulary.
    """
    targets = rows.targets(loss.tail)
    num_taught = _check(labels, targets, head.vocab_size)
    clm_share = torch.where(targets.taught, clm_weight, 1.0).detach()
    if head.full is None:
        mean, clm_nats, cross_entropy = _linear(hidden, head, labels, targets, clm_share, chunk)
    else:
        mean, clm_nats, cross_entropy = _recomputed(hidden, head, labels, targets, clm_share, chunk)
    fusion_nats = torch.where(targets.taught, loss.value(cross_entropy, targets.entropy_nats.to(cross_entropy.dtype)), 0.0)
    constant = ((1 - clm_share) * (fusion_nats - cross_entropy)).mean()  # the member's own; without a gradient
    return mean + constant, clm_nats, fusion_nats, num_taught


def _check(labels: Tensor, targets: Targets, vocab_size: int) -> int:
    """Return the number of taught positions, or raise; reads from the device once."""
    seen = torch.stack([labels.min(), labels.max(), targets.ids.min(), targets.ids.max(), targets.taught.sum()]).tolist()
    for name, low, high in (("labels", *seen[:2]), ("teacher ids", *seen[2:4])):
        if low < 0 or high >= vocab_size:
            raise ValueError(f"objective: {name} from {low} to {high}, expected 0 to {vocab_size - 1}")
    return int(seen[4])


class _Position(NamedTuple):
    """What is known of a few positions before their logits are."""

    labels: Tensor
    targets: Targets
    clm_share: Tensor

    def part(self, start: int, stop: int) -> _Position:
        return _Position(self.labels[start:stop], Targets(*(each[start:stop] for each in self.targets)), self.clm_share[start:stop])

    def to(self, dtype: torch.dtype) -> _Position:
        floats = {name: getattr(self.targets, name).to(dtype) for name in ("probs", "tail")}
        return _Position(self.labels, self.targets._replace(**floats), self.clm_share.to(dtype))


def _recomputed(
    hidden: Tensor, head: Head, labels: Tensor, targets: Targets, clm_share: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply any head chunk by chunk through autograd, and again in the backward pass instead of keeping logits."""
    known = _Position(labels, targets, clm_share)
    clm_nats, cross_entropy = by_chunks(
        hidden, head, chunk, lambda logits, which: _from_logits(logits, known.part(which.start, which.stop))
    )
    mean = (clm_share * clm_nats + (1 - clm_share) * cross_entropy).mean()
    return mean, clm_nats.detach(), cross_entropy.detach()


def _from_logits(logits: Tensor, known: _Position) -> tuple[Tensor, Tensor]:
    """Return the true-token loss and the cross-entropy against the teacher of each position, in nats. Differentiable."""
    targets, low = known.targets, torch.finfo(logits.dtype)
    log_sum = logits.logsumexp(1)
    others = logits.scatter(1, targets.ids, low.min / 4)  # finite, so that a vocabulary that is kept whole has a gradient
    log_q_tail = (others.logsumexp(1) - log_sum).clamp(min=float(torch.log(torch.tensor(low.tiny, dtype=torch.float64))))
    log_q = logits.gather(1, targets.ids) - log_sum[:, None]
    cross_entropy = -(targets.probs * log_q).sum(1) - targets.tail * log_q_tail
    return log_sum - logits.gather(1, known.labels[:, None])[:, 0], cross_entropy


def _linear(hidden: Tensor, head: Head, labels: Tensor, targets: Targets, clm_share: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a linear head chunk by chunk, gradient included."""
    known = _Position(labels, targets, clm_share)
    wanted = tuple(torch.is_grad_enabled() and each is not None and each.requires_grad for each in (hidden, head.weight, head.bias))
    result: tuple[Tensor, Tensor, Tensor] = _FusedLinear.apply(hidden, head.weight, head.bias, head, known, chunk, wanted)
    return result


class _FusedLinear(torch.autograd.Function):
    """Forward computes losses and gradients; backward only scales the gradients."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, known: _Position, chunk: int, wanted: tuple[bool, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            work = _Work.allocate(hidden, weight, bias, head, dtype, chunk, wanted)
            known = known.to(work.probs.dtype)
            parts = [work.run(start, min(start + chunk, len(hidden)), head, known) for start in range(0, len(hidden), chunk)]
        clm_nats, cross_entropy = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        ctx.save_for_backward(*work.gradients(hidden, weight, bias))
        ctx.mark_non_differentiable(clm_nats, cross_entropy)
        ctx.set_materialize_grads(False)
        return (known.clm_share * clm_nats + (1 - known.clm_share) * cross_entropy).mean(), clm_nats, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        plain = grad.device.type == "cpu" and float(grad) == 1.0  # elsewhere a look at the number would stall the device
        scaled = [each if each is None or plain else each * grad.to(each.dtype) for each in ctx.saved_tensors]
        return (*scaled, None, None, None, None)


@dataclass
class _Work:
    """Buffers of the forward pass: one chunk of logits, one of probabilities, and the gradients that are wanted."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    logits: Tensor
    probs: Tensor
    grad_hidden: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None

    @classmethod
    def allocate(
        cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, dtype: torch.dtype, chunk: int, wanted: tuple[bool, ...]
    ) -> _Work:
        wide = torch.promote_types(dtype, torch.float32)
        size = (min(chunk, len(hidden)), head.vocab_size)
        logits, probs = (torch.empty(size, dtype=wide, device=hidden.device) for _ in range(2))
        grad_hidden = torch.empty_like(hidden, dtype=wide) if wanted[0] else None
        grad_weight = torch.empty_like(weight, dtype=wide) if wanted[1] else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if wanted[2] and bias is not None else None
        if grad_weight is not None:
            grad_weight[head.vocab_size :].zero_()
        real_bias = None if bias is None else bias[: head.vocab_size].to(wide)
        return cls(hidden.to(dtype), weight[: head.vocab_size].to(dtype), real_bias, logits, probs, grad_hidden, grad_weight, grad_bias)

    def gradients(self, *inputs: Tensor | None) -> list[Tensor | None]:
        """Return the gradients in the dtypes of the inputs."""
        grads = (self.grad_hidden, self.grad_weight, self.grad_bias)
        return [None if grad is None or each is None else grad.to(each.dtype) for grad, each in zip(grads, inputs, strict=True)]

    def run(self, start: int, stop: int, head: Head, known: _Position) -> tuple[Tensor, Tensor]:
        """Return both losses of some positions, and add what they contribute to the gradients."""
        hidden, logits, probs = self.hidden[start:stop], self.logits[: stop - start], self.probs[: stop - start]
        if hidden.dtype == logits.dtype:
            torch.mm(hidden, self.weight.t(), out=logits)
        else:
            logits.copy_(hidden @ self.weight.t())
        slope = _shape(logits, self.bias, head)
        known = known.part(start, stop)
        clm_nats, cross_entropy, kept, tail = _losses(logits, probs, known)
        if any(each is not None for each in (self.grad_hidden, self.grad_weight, self.grad_bias)):
            _to_gradient(probs, kept, tail, known)
            if slope is not None:
                probs.mul_(slope)
            self._add(start, stop, probs.to(hidden.dtype), hidden, head.logit_scale / len(self.hidden))
        return clm_nats, cross_entropy

    def _add(self, start: int, stop: int, grad_logits: Tensor, hidden: Tensor, scale: float) -> None:
        if self.grad_hidden is not None:
            self.grad_hidden[start:stop] = (grad_logits @ self.weight).mul_(scale)
        if self.grad_weight is not None:
            total, before = self.grad_weight[: len(self.weight)], min(start, 1)  # the first chunk overwrites what the memory held
            if total.dtype == hidden.dtype:
                total.addmm_(grad_logits.t(), hidden, alpha=scale, beta=before)
            elif before:
                total.add_(grad_logits.t() @ hidden, alpha=scale)
            else:
                total.copy_(grad_logits.t() @ hidden).mul_(scale)
        if self.grad_bias is not None:
            self.grad_bias[: len(self.weight)].add_(grad_logits.sum(0, dtype=self.grad_bias.dtype), alpha=scale)


def _shape(logits: Tensor, bias: Tensor | None, head: Head) -> Tensor | None:
    """Add bias, scale and cap in place; return the cap's derivative in each logit, where there is a cap."""
    if bias is not None:
        logits.add_(bias)
    if head.logit_scale != 1.0:
        logits.mul_(head.logit_scale)
    if head.softcap is None:
        return None
    logits.div_(head.softcap).tanh_()
    slope = logits.square().neg_().add_(1.0)
    logits.mul_(head.softcap)
    return slope


def _losses(logits: Tensor, probs: Tensor, known: _Position) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return both losses of each position in nats, q of its kept ids, and q_tail; leave q in ``probs``, zero at kept ids."""
    targets = known.targets
    true_logit, kept_logits = logits.gather(1, known.labels[:, None])[:, 0], logits.gather(1, targets.ids)
    torch.softmax(logits, 1, out=probs)
    log_sum = logits.amax(1) - probs.amax(1).log()
    kept = probs.gather(1, targets.ids)
    probs.scatter_(1, targets.ids, 0.0)  # the rest is then summed, not subtracted from 1: a tiny tail keeps its digits
    tail = probs.sum(1).clamp_(min=torch.finfo(probs.dtype).tiny)
    cross_entropy = -(targets.probs * (kept_logits - log_sum[:, None])).sum(1) - targets.tail * tail.log()
    return log_sum - true_logit, cross_entropy, kept, tail


def _to_gradient(probs: Tensor, kept: Tensor, tail: Tensor, known: _Position) -> None:
    """Turn what ``_losses`` left in ``probs`` into the gradient in the logits."""
    targets, fusion_share = known.targets, 1 - known.clm_share
    probs.mul_((1 - fusion_share * targets.tail / tail)[:, None])
    probs.scatter_add_(1, targets.ids, torch.where(targets.owns, kept - fusion_share[:, None] * targets.probs, 0.0))
    probs.scatter_add_(1, known.labels[:, None], -known.clm_share[:, None])
