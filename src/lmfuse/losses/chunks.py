"""Stretches of target tokens between two places where a token of the target and one of the source end together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lmfuse.losses.teacher import TeacherRows


class Chunks(NamedTuple):
    """Positions cut into runs.

    Attributes:
        number: of each position, which run it is in; they count up from 0.
        size: of each run, its number of positions; 1 behind the last run (there are as many slots as positions, which spares a look at
            the device).
        whole: whether a run is a chunk: every token's likelihood is known and the last one ends at a boundary.
    """

    number: Int[Tensor, "N"]
    size: Float[Tensor, "N"]
    whole: Bool[Tensor, "N"]

    @classmethod
    def of(cls, nll_nats: Float[Tensor, "N"], boundary: Bool[Tensor, "N"], joined: Bool[Tensor, "N"]) -> Chunks:
        """Cut behind every boundary, and wherever a position is not joined to the one before it.

        >>> nan, yes, no = torch.nan, True, False
        >>> cut = Chunks.of(torch.tensor([1., 2, 3, nan, 5]), torch.tensor([no, yes, yes, yes, no]), torch.tensor([no, yes, yes, yes, yes]))
        >>> cut.number.tolist(), cut.size.tolist(), cut.whole.tolist()
        ([0, 0, 1, 2, 3], [2.0, 1.0, 1.0, 1.0, 1.0], [True, True, False, False, False])
        """
        begins = ~joined
        begins[1:] |= boundary[:-1]
        begins[:1] = True
        ends = torch.cat([begins[1:], torch.ones_like(begins[:1])])
        number = begins.cumsum(0) - 1
        empty = torch.zeros_like(nll_nats)
        size = empty.index_add(0, number, torch.ones_like(nll_nats))
        spoilt = empty.index_add(0, number, (nll_nats.isnan() | (ends & ~boundary)).to(nll_nats.dtype))
        return cls(number, size.clamp(min=1), (spoilt == 0) & (size > 0))

    def total(self, values: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Return the sum of each run's values. Differentiable."""
        return torch.zeros_like(values).index_add(0, self.number, values)


def next_break(rows: TeacherRows, boundary_ids: Bool[Tensor, "V"]) -> tuple[Bool[Tensor, "N"], Float[Tensor, "N"]]:
    """Return whether the teacher speaks right behind each position, and its log-probability that a boundary token stands there.

    It is the share of boundary tokens among its candidates; ``-inf`` where there is none among them or nothing is said.
    """
    targets = rows.targets("renormalise")
    share = (targets.probs * boundary_ids[targets.ids]).sum(1)
    says = rows.joined & targets.taught
    follows = torch.cat([says[1:], torch.zeros_like(says[:1])])
    return follows, share.roll(-1).where(follows, 0.0).log()
