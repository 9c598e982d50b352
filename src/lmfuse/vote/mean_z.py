"""Mean z-score: the candidate that the judges together find best, by how much."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.vote.ballots import Ballots, Outcome
from lmfuse.vote.tally import decide, first_places, mean_ranks, mean_z_scores


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MeanZ:
    """Take the answer with the highest mean z-score over the judges.  A variant of ProFuser's vote, arXiv:2408.04998

    Each judge's scores are measured from their mean in standard deviations, so that judges of different scales count the same, and a clear
    preference counts more than a slight one. Ties are broken by first places, then mean rank, cross-entropy and index; abstentions, empty and
    identical candidates are as for ``first_places``.

    >>> import numpy as np
    >>> MeanZ()(Ballots(np.array([[5.0, 4.0, 0.0], [1.0, 3.0, 2.0]]), ["a", "b", "c"])).winner  # z: 0.926, 0.463; -1.225, 1.225
    1
    """

    name: Literal["mean_z"] = "mean_z"

    def __call__(self, ballots: Ballots) -> Outcome:
        """Return the winner among S candidates, and what decided."""
        ranks = [-rank for rank in mean_ranks(ballots)]
        return decide(ballots, [("mean_z", mean_z_scores(ballots)), ("first_places", first_places(ballots)), ("mean_rank", ranks)])
