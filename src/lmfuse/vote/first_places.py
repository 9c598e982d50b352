"""First places: the candidate that most judges place first."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.vote.ballots import Ballots, Outcome
from lmfuse.vote.tally import decide, first_places, mean_ranks, mean_z_scores


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FirstPlaces:
    """Take the answer that most judges place first.  ProFuser's inference mode, arXiv:2408.04998

    Of equally many first places the lower mean rank wins, then the higher mean z-score, then the lower cross-entropy of the producer where it
    is given, then the lower index. The paper has reward models vote; how, and what breaks a tie, is not published. A judge that places several
    first gives each its share of one vote.

    A judge that abstains on every candidate or gives all the same says nothing. Without a judge, or where every candidate is empty, nobody
    wins. Identical candidates are one and share their votes.

    >>> import numpy as np
    >>> FirstPlaces()(Ballots(np.array([[0.9, 0.1, 0.5], [3.0, 5.0, 4.0], [2.0, 7.0, 1.0]]), ["a", "b", "c"])).winner  # 1, 2 and 0 first places
    1
    """

    name: Literal["first_places"] = "first_places"

    def __call__(self, ballots: Ballots) -> Outcome:
        """Return the winner among S candidates, and what decided."""
        ranks = [-rank for rank in mean_ranks(ballots)]
        return decide(ballots, [("first_places", first_places(ballots)), ("mean_rank", ranks), ("mean_z", mean_z_scores(ballots))])
