"""What votes are counted by: first places, mean ranks, mean z-scores, and the order of criteria that decides.

Ranks and first places are counted in fractions and sums of z-scores are rounded once, so that no order of judges or candidates changes a result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lmfuse.vote.ballots import Ballots, Outcome, Why

DECIMALS = 10  # of a mean z-score


def first_places(ballots: Ballots) -> list[Fraction]:
    """Return how many judges place each group first; judges that see several equally good in front share their vote among them.

    >>> [str(each) for each in first_places(Ballots(np.array([[2.0, 1.0, 2.0], [0.0, 5.0, 1.0]]), ["a", "b", "c"]))]
    ['1/2', '1', '1/2']
    """
    votes = [Fraction(0)] * len(ballots.groups)
    for judge in ballots.speaking:
        row = ballots.shared[judge]
        best = np.flatnonzero(row == np.nanmax(row)).tolist()
        for group in best:
            votes[group] += Fraction(1, len(best))
    return votes


def mean_ranks(ballots: Ballots) -> list[Fraction | float]:
    """Return the mean over the judges that score a group of its rank, 1 is best; equals share the mean of their ranks.

    Where a judge abstains on some groups its ranks are stretched to the number of all, so that fewer rivals are no advantage; a group
    that no judge ranks has rank ``inf``.

    >>> [float(each) for each in mean_ranks(Ballots(np.array([[3.0, 1.0, 2.0], [5.0, np.nan, 7.0]]), ["a", "b", "c"]))]
    [2.0, 3.0, 1.5]
    """
    ranks: list[list[Fraction]] = [[] for _ in ballots.groups]
    for judge in ballots.speaking:
        row = ballots.shared[judge]
        known = np.flatnonzero(~np.isnan(row)).tolist()
        for group in known:
            above, same = int((row > row[group]).sum()), int((row == row[group]).sum())
            place = above + Fraction(same - 1, 2)
            ranks[group].append(1 + place * Fraction(len(row) - 1, len(known) - 1))
    return [sum(each, Fraction(0)) / len(each) if each else math.inf for each in ranks]


def mean_z_scores(ballots: Ballots) -> list[float]:
    """Return the mean over the judges that score a group of its z-score: the distance from the judge's mean in standard deviations.

    Both are taken over the groups that the judge scores. A group that no judge scores has ``-inf``. Rounded, so that what is equal but for the
    rounding of numbers is equal.

    >>> [round(each, 4) for each in mean_z_scores(Ballots(np.array([[1.0, 2.0, 3.0], [10.0, np.nan, 20.0]]), ["a", "b", "c"]))]
    [-1.1124, 0.0, 1.1124]
    """
    scores: list[list[float]] = [[] for _ in ballots.groups]
    for judge in ballots.speaking:
        row = ballots.shared[judge].astype(np.float64)
        known = np.flatnonzero(~np.isnan(row)).tolist()
        largest = float(np.nanmax(np.abs(row)))  # scaled first: squares of huge or tiny scores would leave the range of numbers
        values = [float(row[group]) / largest for group in known]
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        for group, value in zip(known, values, strict=True):
            scores[group].append((value - mean) / deviation if deviation else 0.0)
    return [round(math.fsum(each) / len(each), DECIMALS) if each else -math.inf for each in scores]


def decide(ballots: Ballots, criteria: Sequence[tuple[Why, Sequence[Any]]], judges: Sequence[int] | None = None) -> Outcome:
    """Return the group that is best by the first criterion that tells it apart, then by the producer's cross-entropy, then by index.

    Args:
        ballots: what is voted on.
        criteria: their names and a number for each group, higher is better.
        judges: those whose abstention on every group leaves nothing to decide; by default all.
    """
    heard = ballots.shared if judges is None else ballots.shared[list(judges)]
    if not ballots.groups:
        return Outcome(-1, "all_empty", ballots.counters)
    if np.isnan(heard).all():
        return Outcome(-1, "no_judge", ballots.counters)
    owners = [group[0] for group in ballots.groups]
    if len(owners) == 1:
        return Outcome(owners[0], "only_candidate", ballots.counters)
    last: list[tuple[Why, Sequence[Any]]] = [
        ("cross_entropy", [-ballots.costs[owner] for owner in owners]),
        ("index", [-o for o in owners]),
    ]
    left = list(range(len(owners)))
    for why, values in [*criteria, *last]:
        best = max(values[group] for group in left)
        left = [group for group in left if values[group] == best]
        if len(left) == 1:
            return Outcome(owners[left[0]], why, ballots.counters)
    raise AssertionError("no two candidates have the same index")
