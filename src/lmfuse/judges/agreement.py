"""How far judges agree with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lmfuse.vote.ballots import Ballots


@dataclass(frozen=True)
class Agreement:
    """How often each two of J judges agree; ``nan`` where there is nothing to compare.

    Attributes:
        equal_winners: the share of questions on which one of the answers that either places first is the same; over those that both judge.
        kendall_tau: of pairs of answers that both tell apart, the share that they order alike less the share that they do not.
        questions: on how many questions both tell answers apart.
        all_differ: on how many questions two judges or more speak and no two of them share a first place.
    """

    equal_winners: Float[np.ndarray, "J J"]
    kendall_tau: Float[np.ndarray, "J J"]
    questions: Int[np.ndarray, "J J"]
    all_differ: int


def agreement(votes: Sequence[Ballots]) -> Agreement:
    """Return how far the judges of some votes agree.

    >>> found = agreement([Ballots(np.array([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0]]), ["a", "b", "c"])])
    >>> found.equal_winners[0, 1].item(), round(found.kendall_tau[0, 1].item(), 4)
    (1.0, 0.3333)
    """
    size = len(votes[0].scores) if votes else 0
    equal, questions, alike, unlike = np.zeros((4, size, size), np.int64)
    all_differ = 0
    for ballots in votes:
        firsts = {judge: _firsts(ballots, judge) for judge in ballots.speaking}
        clashes = 0
        for a in ballots.speaking:
            for b in ballots.speaking:
                same = bool(firsts[a] & firsts[b])
                clashes += not same
                questions[a, b] += 1
                equal[a, b] += same
                orders = _signs(ballots.shared[a]) * _signs(ballots.shared[b])
                alike[a, b] += int((orders > 0).sum()) // 2
                unlike[a, b] += int((orders < 0).sum()) // 2
        speaking = len(ballots.speaking)
        all_differ += speaking > 1 and clashes == speaking * (speaking - 1)
    return Agreement(_share(equal, questions), _share(alike - unlike, alike + unlike), questions, all_differ)


def _firsts(ballots: Ballots, judge: int) -> set[int]:
    row = ballots.shared[judge]
    return set(np.flatnonzero(row == np.nanmax(row)).tolist())


def _signs(row: Float[np.ndarray, "G"]) -> Float[np.ndarray, "G G"]:
    """Return for each two answers which is better by a judge; 0 where it does not tell them apart."""
    return np.nan_to_num(np.sign(row[:, None] - row[None, :]))


def _share(part: Int[np.ndarray, "J J"], whole: Int[np.ndarray, "J J"]) -> Float[np.ndarray, "J J"]:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
