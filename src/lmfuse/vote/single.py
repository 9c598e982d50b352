"""Single: one judge decides, the others are only recorded."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.vote.ballots import Ballots, Outcome
from lmfuse.vote.tally import decide


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Single:
    """Take the answer that one judge scores highest.  A variant of ProFuser's vote, arXiv:2408.04998

    - ``judge``: the judge that decides, by the name that it has in reports; by default the first one.

    Ties are broken by cross-entropy and index. Where this judge abstains on every candidate nobody wins, whatever the others say.

    >>> import numpy as np
    >>> ballots = Ballots(np.array([[1.0, 2.0], [4.0, 3.0]]), ["a", "b"], judges=("reward", "tests"))
    >>> Single()(ballots).winner, Single(judge="tests")(ballots).winner
    (1, 0)
    """

    name: Literal["single"] = "single"
    judge: str = ""

    def __call__(self, ballots: Ballots) -> Outcome:
        """Return the winner among S candidates, and what decided.

        Raises:
            ValueError: the ballots do not name the judge, or name it twice.
        """
        places = [place for place, name in enumerate(ballots.judges) if name == self.judge] if self.judge else [0]
        if len(places) != 1:
            raise ValueError(f"single: {len(places)} judges are called {self.judge!r} (known: {', '.join(ballots.judges)}), expected one")
        given = ballots.shared[places[0]]
        scores = np.where(np.isnan(given), -np.inf, given).tolist()
        return decide(ballots, [("score", scores)], places)
