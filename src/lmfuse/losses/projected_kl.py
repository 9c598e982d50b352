"""Projected KL: the student's distribution is moved into the source's vocabulary and compared with the source's own rows there."""

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
class ProjectedKL(SeenLoss):
    """KL(teacher || W student): a sparse row-stochastic W sends each target token to the source's tokens.  X-Token's P-KL, arXiv:2605.21699

    ``loss = lambda * -log q(truth) + (1 - lambda) * (sum_k p_k log(p_k / (qW)_k) + p_tail log(p_tail / (qW)_tail))`` at the
    positions where a token of the source begins with the target's. W is the ``pieces`` map from target ids to source ids, so a
    target's ``201`` shares in what a digit-splitting source says of ``2``. Rows stay in the source's vocabulary
    (``align: {name: join, map: none}``), and a source's map fits no other: one source only.

    Not as published: the distributions are not averaged over aligned spans; what lies outside the kept candidates is one more
    outcome instead of being renormalised away; a candidate that no target token leads to belongs to that outcome, because no
    student could ever agree with it. The authors' hybrid H-KL is not offered: it sorts full distributions, which rows do not keep.

    Target ids 0 and 1 both go to source id 5, half of 1 to source id 6; a student of .5, .5 becomes .75, .25.

    >>> import torch
    >>> from lmfuse.losses.aids import Projection
    >>> onto = Projection(torch.tensor([[5, 5], [0, 6]]), torch.tensor([[1.0, 0.5], [0.0, 0.5]]), 7)
    >>> ids, kept, tail = torch.tensor([[5, 6]]), torch.tensor([[0.75, 0.25]]), torch.zeros(1)
    >>> ProjectedKL().divergence(ids, kept, tail, torch.tensor([[0.5, 0.5]]), onto).tolist()
    [0.0]
    """

    row_ids: ClassVar[Literal["target", "source", "any"]] = "source"
    name: Literal["projected_kl"] = "projected_kl"

    @property
    def wants(self) -> tuple[str, ...]:
        """Return ``projection``."""
        return ("projection",)

    def check(self, rows: TeacherRows, aids: Aids) -> None:
        """Raise ValueError unless the rows are over the vocabulary that the map leads to."""
        assert aids.projection is not None
        size, ids = aids.projection.source_size, rows.targets("bucket").ids
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= size:
            raise ValueError(
                f"projected_kl: teacher ids from {low} to {high}, expected 0 to {size - 1} as the source's vocabulary has them"
            )

    def divergence(self, ids: Any, kept: Float[Any, "N K"], tail: Float[Any, "N"], probs: Float[Any, "N V"], onto: Any) -> Float[Any, "N"]:
        """Return the divergence of each row; an id that stands twice must have its probability once and 0 elsewhere."""
        from torch.special import xlogy

        tail = tail + (kept * ~onto.reached[ids]).sum(1)
        kept = kept * onto.reached[ids]
        projected, nowhere = onto(probs)
        tiny = 1e-37
        student, rest = projected.gather(1, ids).clamp(min=tiny), (projected.scatter(1, ids, 0.0).sum(1) + nowhere).clamp(min=tiny)
        return (xlogy(kept, kept) - kept * student.log()).sum(1) + xlogy(tail, tail) - tail * rest.log()

    def see(self, logits: Float[Any, "N V"], rows: TeacherRows, aids: Aids) -> Float[Any, "N F"]:
        """Return each position's divergence."""
        targets = rows.targets("bucket")
        kept, tail = targets.probs.to(logits.dtype), targets.tail.to(logits.dtype)
        return self.divergence(targets.ids, kept, tail, logits.softmax(1), aids.projection)[:, None]

    def judge(
        self, surprise_nats: Float[Any, "N"], seen: Float[Any, "N F"], rows: TeacherRows, aids: Aids
    ) -> tuple[Float[Any, "N"], Bool[Any, "N"]]:
        """Return the divergences, and which rows teach."""
        return seen[:, 0], rows.targets("bucket").taught
