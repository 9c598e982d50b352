"""What is voted on: the scores of J judges for S candidates, and which candidates stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float

Why = Literal["first_places", "mean_rank", "mean_z", "score", "cross_entropy", "index", "only_candidate", "all_empty", "no_judge"]


@dataclass(frozen=True)
class Outcome:
    """Who won one vote, and why.

    Attributes:
        winner: the index of the candidate; -1 where there is none: the sample is dropped.
        why: the first criterion that set the winner apart from all others; ``only_candidate`` where there was no other; without a winner
            ``all_empty`` or ``no_judge`` (every judge abstains).
        counters: ``candidates_empty``, ``candidates_identical`` (those whose text another candidate has, too), ``abstentions`` (of a judge
            on a text), ``judges_silent``.
    """

    winner: int
    why: Why
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ballots:
    """What J judges say of S candidates.

    Candidates with the same text, but for whitespace around it, are one: each judge's mean score is theirs together, and it belongs to the one
    with the lowest cross-entropy, else the lowest index. A candidate without text does not stand.

    Attributes:
        scores: higher is better; ``nan`` where the judge abstains.
        texts: the candidates.
        cross_entropy: of the candidates' producers, in any one unit, lower is better; ``nan`` or None where it is not known.
        judges: the judges' names; needed by ``single`` alone.

    >>> ballots = Ballots(np.array([[1.0, 3.0, 5.0, 9.0]]), ["a", "b", " a\\n", ""])
    >>> ballots.groups, ballots.shared.tolist()
    ([[0, 2], [1]], [[3.0, 3.0]])
    """

    scores: Float[np.ndarray, "J S"]
    texts: Sequence[str]
    cross_entropy: Float[np.ndarray, "S"] | None = None
    judges: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.texts) != self.scores.shape[1]:
            raise ValueError(f"ballots: {len(self.texts)} texts for {self.scores.shape[1]} candidates")
        if np.isinf(self.scores).any():
            raise ValueError("ballots: an infinite score; a judge gives a number, or nan where it abstains")
        if self.cross_entropy is not None and len(self.cross_entropy) != len(self.texts):  # the shapes say so, where they are checked
            raise ValueError(f"ballots: {len(self.cross_entropy)} cross-entropies for {len(self.texts)} candidates")
        if self.judges and len(self.judges) != len(self.scores):
            raise ValueError(f"ballots: {len(self.judges)} names for {len(self.scores)} judges")

    @cached_property
    def costs(self) -> tuple[float, ...]:
        """Return each candidate's cross-entropy, ``inf`` where it is not known."""
        given = np.full(len(self.texts), np.nan) if self.cross_entropy is None else self.cross_entropy
        return tuple(np.where(np.isnan(given), np.inf, given).tolist())

    @cached_property
    def groups(self) -> list[list[int]]:
        """Return the candidates that stand: lists of those with the same text, in each the owner first."""
        found: dict[str, list[int]] = {}
        for index, text in enumerate(self.texts):
            if text.strip():
                found.setdefault(text.strip(), []).append(index)
        return [sorted(group, key=lambda index: (self.costs[index], index)) for group in found.values()]

    @cached_property
    def shared(self) -> Float[np.ndarray, "J G"]:
        """Return the judges' scores of the groups: the mean over those members that the judge scored."""
        shared = np.full((len(self.scores), len(self.groups)), np.nan)
        for place, group in enumerate(self.groups):
            for judge, row in enumerate(self.scores):
                given = sorted(float(row[index]) for index in group if not np.isnan(row[index]))  # a sum that no order changes
                if given:
                    shared[judge, place] = given[0] if given[0] == given[-1] else sum(given) / len(given)
        return shared

    @cached_property
    def speaking(self) -> list[int]:
        """Return the judges that tell candidates apart; whoever abstains on all, or gives the same to all, says nothing."""
        return [judge for judge, row in enumerate(self.shared) if len(set(row[~np.isnan(row)].tolist())) > 1]

    @cached_property
    def counters(self) -> dict[str, int]:
        """Return what was met on the way to a decision."""
        standing = sum(map(len, self.groups))
        return {
            "candidates_empty": len(self.texts) - standing,
            "candidates_identical": standing - len(self.groups),
            "abstentions": int(np.isnan(self.shared).sum()),
            "judges_silent": len(self.scores) - len(self.speaking),
        }
