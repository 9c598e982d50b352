"""Mean rank: the candidate that the judges together place highest."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.vote.ballots import Ballots, Outcome
from lmfuse.vote.tally import decide, first_places, mean_ranks, mean_z_scores


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MeanRank:
    """Take the answer with the best mean rank over the judges (Borda's count).  A variant of ProFuser's vote, arXiv:2408.04998

    An answer that all find good beats one that some find best and others worst. Equals share the mean of their ranks. Ties are broken by
    first places, then mean z-score, cross-entropy and index; abstentions, empty and identical candidates are as for ``first_places``.

    >>> import numpy as np
    >>> MeanRank()(Ballots(np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0]]), ["a", "b", "c"])).why  # mean ranks 5/3, 5/3 and 8/3
    'first_places'
    """

    name: Literal["mean_rank"] = "mean_rank"

    def __call__(self, ballots: Ballots) -> Outcome:
        """Return the winner among S candidates, and what decided."""
        ranks = [-rank for rank in mean_ranks(ballots)]
        return decide(ballots, [("mean_rank", ranks), ("first_places", first_places(ballots)), ("mean_z", mean_z_scores(ballots))])
