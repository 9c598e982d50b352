"""What several models make of several candidates, as one number per candidate, and the choice among them.  arXiv:2407.19807, section 3.2"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Score = Literal["perplexity", "nats_per_token", "nats_per_byte", "rank"]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@plain_dataclass(frozen=True)
class Judged:
    """What S judges say of N candidates.

    Attributes:
        nll_nats: the judge's negative log-likelihood of the candidate; ``nan`` where it abstains, ``inf`` where it cannot write it.
        tokens: the candidate's length in the judge's own tokens, at least 1.
        num_bytes: its length in bytes; the end of a turn counts as one.
    """

    nll_nats: Float[np.ndarray, "S N"]
    tokens: Int[np.ndarray, "S N"]
    num_bytes: Int[np.ndarray, "N"]


@plain_dataclass(frozen=True)
class Choice:
    """The index of the candidate that was chosen, and the score of each; lower is better."""

    index: int
    scores: Float[np.ndarray, "N"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Judging:
    """How candidates are judged; what ``Cool``, ``Rerank`` and ``CoolRerank`` have in common."""

    score: Score = "perplexity"
    weights: tuple[Weight, ...] = ()

    def __post_init__(self) -> None:
        check_weights(self.weights)

    def __call__(self, judged: Judged, authors: Sequence[Sequence[int]], leader: int | None = None) -> Choice:
        """Choose a candidate.

        Args:
            judged: what the judges say.
            authors: for each candidate the models that proposed it.
            leader: the author of the last segment; where candidates are equally good the leader's is taken, else that of the lowest index.

        Raises:
            ValueError: not as many weights as judges, or no candidate that every judge can write.
        """
        return choose(scores(judged, self.score, self.weights), authors, leader)


def check_weights(weights: Sequence[float]) -> None:
    """Refuse weights that leave nobody anything to say.

    Raises:
        ValueError: there are some, and all are 0.
    """
    if weights and not sum(weights) > 0:
        raise ValueError(f"weights: all {len(weights)} are 0, expected at least one that is not")


def shares(weights: Sequence[float], count: int) -> Float[np.ndarray, "S"]:
    """Return the weights of ``count`` models; equal ones where none are given.

    >>> shares((), 2).tolist(), shares((3.0, 1.0), 2).tolist()
    ([1.0, 1.0], [3.0, 1.0])

    Raises:
        ValueError: not as many weights as models.
    """
    if weights and len(weights) != count:
        raise ValueError(f"weights: {len(weights)} numbers for {count} models")
    return np.asarray(weights or [1.0] * count, np.float64)


def scores(judged: Judged, score: Score, weights: Sequence[float] = ()) -> Float[np.ndarray, "N"]:
    """Return one number for each candidate, lower is better: the judges' weighted mean; ``inf`` where a judge cannot write it.

    ``perplexity``: of ``exp(nll / tokens)``, as published. ``nats_per_token`` and ``nats_per_byte``: of ``nll / length``.
    ``rank``: of the place (0 is best, ties share the mean) that the candidate has in the judge's order by nats per token.

    >>> two = Judged(np.log([[2.0, 16.0], [8.0, 4.0]]), np.array([[1, 2], [1, 2]]), np.array([4, 8]))
    >>> scores(two, "perplexity").round(6).tolist(), scores(two, "rank").tolist()
    ([5.0, 3.0], [0.5, 0.5])

    Raises:
        ValueError: not as many weights as judges.
    """
    nll = np.asarray(judged.nll_nats, np.float64)
    share = shares(weights, len(nll))
    per_token = nll / judged.tokens
    values = per_token
    if score == "nats_per_byte":
        values = nll / judged.num_bytes
    elif score == "perplexity":
        with np.errstate(over="ignore"):
            values = np.exp(per_token)
    elif score == "rank":
        order = np.where(np.isnan(per_token), np.inf, per_token)
        below, same = (order[:, None, :] < order[:, :, None]).sum(2), (order[:, None, :] == order[:, :, None]).sum(2)
        values = below + (same - 1) / 2
    known = ~np.isnan(nll) & (share[:, None] > 0)
    total = np.where(known, share[:, None], 0.0).sum(0)
    summed = np.where(known, np.where(known, values, 0.0) * share[:, None], 0.0).sum(0)
    mean = np.divide(summed, total, out=np.full(len(total), np.inf), where=total > 0)
    return np.where(np.isinf(nll).any(0), np.inf, mean)


def choose(scores: Float[np.ndarray, "N"], authors: Sequence[Sequence[int]], leader: int | None) -> Choice:
    """Return the lowest score's candidate; among equals the leader's, then the one whose first author has the lowest index.

    >>> choose(np.array([2.0, 1.0, 1.0]), [[0], [1], [2]], leader=2).index
    2

    Raises:
        ValueError: every score is infinite.
    """
    best = scores.min()
    if not np.isfinite(best):
        raise ValueError("no candidate that every model can write")
    equal = [index for index in range(len(scores)) if scores[index] == best]
    return Choice(min(equal, key=lambda index: (leader not in authors[index], min(authors[index]))), scores)
