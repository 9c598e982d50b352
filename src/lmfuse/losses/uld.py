"""ULD: student and teacher agree on the shape of their distributions, whatever the names of the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxtyping import Bool, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.losses.family import SeenLoss

if TYPE_CHECKING:  # settings load without torch
    from lmfuse.losses.aids import Aids
    from lmfuse.losses.teacher import TeacherRows


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Uld(SeenLoss):
    """Universal logit distillation: the L1 distance between both distributions, each sorted by size.  arXiv:2402.12030, section 3

    ``loss = lambda * -log q(truth) + (1 - lambda) * (sum_i |p_i - q_i| + |p_tail - q_tail|)``, ranks i = 1 .. K from the largest down.
    No token has to mean anything to the other model, so rows stay in the source's vocabulary: ``align: {name: join, map: none}``.

    The published sum runs over all ranks; rows keep K candidates, so the ranks behind are one bucket here. Where the candidates are the
    teacher's K largest the sum over all ranks is never smaller, and larger by ``2 * min(p_tail, q_tail)`` at most. Both
    vocabularies count as long as the longer one, as published: missing ranks have probability 0. (``CE + 1.5 * ULD``, as in
    published runs, has the direction of ``clm_weight: 0.4``.)

    The teacher keeps .5, .25 and a tail of .25; the student says .125, .75, .125, sorted .75, .125 and the rest .125: .25 + .125 + .125.

    >>> import torch
    >>> p, q = torch.tensor([[0.25, 0.5]]), torch.tensor([[0.125, 0.75, 0.125]])
    >>> Uld().distance(p, torch.tensor([0.25]), q).tolist()
    [0.5]
    """

    row_ids: ClassVar[Literal["target", "source", "any"]] = "any"
    name: Literal["uld"] = "uld"

    def distance(self, kept: Float[Any, "N K"], tail: Float[Any, "N"], probs: Float[Any, "N V"]) -> Float[Any, "N"]:
        """Return the distance of each row from a teacher that keeps some probabilities, in any order (0: an empty slot), and a tail."""
        import torch

        k = min(kept.shape[1], probs.shape[1])
        kept = kept.sort(1, descending=True).values
        largest = torch.nn.functional.pad(probs.topk(k).values, (0, kept.shape[1] - k)).where(kept > 0, 0.0)
        rest = probs.sum(1) - largest.sum(1)
        return (kept - largest).abs().sum(1) + (tail - rest).abs()

    def see(self, logits: Float[Any, "N V"], rows: TeacherRows, aids: Aids) -> Float[Any, "N F"]:
        """Return each position's distance."""
        targets = rows.targets("bucket")
        kept, tail = targets.probs.to(logits.dtype), targets.tail.to(logits.dtype)
        return self.distance(kept, tail, logits.softmax(1))[:, None]

    def judge(
        self, surprise_nats: Float[Any, "N"], seen: Float[Any, "N F"], rows: TeacherRows, aids: Aids
    ) -> tuple[Float[Any, "N"], Bool[Any, "N"]]:
        """Return the distances, and which rows teach."""
        return seen[:, 0], rows.targets("bucket").taught
