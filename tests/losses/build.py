"""Students, teachers and the dense objective that the fused one must equal."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lmfuse.losses.aids import Aids
from lmfuse.losses.dense import dense_cross_entropy, dense_kl
from lmfuse.losses.family import Loss
from lmfuse.losses.head import Head
from lmfuse.losses.objective import Objective, objective
from lmfuse.losses.teacher import TeacherRows

DENSE = {"kl": dense_kl, "cross_entropy": dense_cross_entropy}


def teacher_rows(*rows: dict[int, float] | None, k: int = 3, dtype: torch.dtype = torch.float32) -> TeacherRows:
    """Return rows written as mappings from id to probability; what is missing from 1 is the tail, None is a row that does not teach."""
    ids, log_probs = torch.zeros(len(rows), k, dtype=torch.int64), torch.full((len(rows), k), -torch.inf, dtype=dtype)
    tail = torch.zeros(len(rows), dtype=dtype)
    for number, row in enumerate(rows):
        for slot, (name, prob) in enumerate((row or {}).items()):
            ids[number, slot], log_probs[number, slot] = name, torch.tensor(prob, dtype=dtype).log()
        tail[number] = torch.tensor(left if (left := 1 - sum((row or {}).values())) > 1e-12 else 0.0, dtype=dtype).log()
    return TeacherRows.of(ids, log_probs, tail, torch.tensor([row is not None for row in rows]))


@dataclass
class Case:
    """A student with its head, true tokens, a teacher and lambda for each position."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    teacher: TeacherRows | None
    clm_weight: Tensor
    vocab_size: int
    logit_scale: float = 1.0
    softcap: float | None = None
    full: bool = False
    aids: Aids | None = None

    def head(self) -> Head:
        full = (lambda states: torch.nn.functional.linear(states, self.weight, self.bias)) if self.full else None
        return Head(self.weight, self.vocab_size, self.bias, self.logit_scale, self.softcap, full)

    @property
    def leaves(self) -> list[Tensor]:
        return [each for each in (self.hidden, self.weight, self.bias) if each is not None and each.requires_grad]

    def fused(self, loss: Loss, **options: object) -> Objective:
        return objective(self.hidden, self.head(), self.labels, self.teacher, self.clm_weight, loss, aids=self.aids, **options)

    def logits(self) -> Tensor:
        raw = (self.hidden @ self.weight.T + (0 if self.bias is None else self.bias))[:, : self.vocab_size] * self.logit_scale
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)

    def weighed(self, fusion: Tensor, taught: Tensor) -> Tensor:
        """Return the mean loss, given the teacher's at every position and where it counts."""
        clm = torch.nn.functional.cross_entropy(self.logits(), self.labels, reduction="none")
        share = torch.where(taught, self.clm_weight, 1.0)
        return (share * clm + (1 - share) * torch.where(taught, fusion, 0.0)).mean()

    def dense(self, loss: Loss) -> Tensor:
        """Return the mean loss with all logits, a dense teacher and autograd."""
        logits = self.logits()
        if self.teacher is None:
            return torch.nn.functional.cross_entropy(logits, self.labels)
        taught = self.teacher.taught & (self.teacher.log_probs > -torch.inf).any(1)
        which = torch.nonzero(taught)[:, 0]
        fusion = DENSE[loss.name](logits[which], self.teacher[which], loss.tail)
        return self.weighed(torch.zeros_like(logits[:, 0]).index_copy(0, which, fusion), taught)

    def gradients(self, value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, self.leaves))


def random_case(
    seed: int = 0, dtype: torch.dtype = torch.float64, bias: bool = True, size: tuple[int, int, int, int] = (23, 8, 40, 5), **options
) -> Case:
    """Return positions of every kind: taught and not, rows with empty slots, rows without any candidate, padded vocabulary rows."""
    positions, width, vocab_size, k = size
    draw = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(positions, k + 1, generator=draw, dtype=dtype).mul_(2).log_softmax(1)
    log_probs[1, 1:k] = log_probs[2, :k] = -torch.inf
    ids = torch.rand(positions, vocab_size, generator=draw).argsort(1)[:, :k]
    ids[log_probs[:, :k] == -torch.inf] = 0
    taught = torch.rand(positions, generator=draw) > 0.2
    taught[1:3] = True
    states, weight = (torch.randn(n, width, generator=draw, dtype=dtype, requires_grad=True) for n in (positions, vocab_size + 3))
    offsets = torch.randn(vocab_size + 3, generator=draw, dtype=dtype, requires_grad=True) if bias else None
    labels = torch.randint(0, vocab_size, (positions,), generator=draw)
    labels[3] = ids[3, 0]  # the truth is a kept id
    share = torch.rand(positions, generator=draw, dtype=dtype)
    return Case(
        states, weight, offsets, labels, TeacherRows.of(ids, log_probs[:, :k], log_probs[:, k], taught), share, vocab_size, **options
    )
