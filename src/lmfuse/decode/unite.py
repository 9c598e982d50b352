"""UniTE: the models' likeliest next tokens as strings, averaged over the union."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.decode.judging import Choice, Weight, check_weights, shares


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Unite:
    """Append the string that is the best next token on average over the models.  UniTE, arXiv:2410.03777, section 4

    Each model names its ``top_k`` likeliest tokens. Every model then says how likely each string of the union is as its next token: that
    of the same bytes, else the first token that it would write for the string. Each model's numbers are divided by their sum; the mean
    decides. The end is a string of the union like any other. A model that can write none of them has no part in the mean.

    - ``weights``: of the models; by default all equal.

    >>> Unite()(np.log(np.array([[0.4, 0.4, 0.1], [0.1, 0.3, 0.1]])), authors=[[0], [0, 1], [1]]).index
    1
    """

    name: Literal["unite"] = "unite"
    top_k: Annotated[int, Field(ge=1)] = 10
    weights: tuple[Weight, ...] = ()

    def __post_init__(self) -> None:
        check_weights(self.weights)

    def __call__(self, log_probs: Float[np.ndarray, "S N"], authors: list[list[int]], leader: int | None = None) -> Choice:
        """Choose one of N strings; scores are negative logarithms of the mean, all infinite where no model can write any of them.

        Args:
            log_probs: each model's log-probability of each string as its next token; ``-inf`` where it cannot write it.
            authors: for each string the models that named it; of equally good strings the leader's is taken, then the first.
            leader: the author of the last string.

        Raises:
            ValueError: not as many weights as models.
        """
        mute = np.asarray(np.isneginf(log_probs).all(1))
        share = np.where(mute, 0.0, shares(self.weights, len(log_probs)))
        rows = np.where(mute[:, None], 0.0, log_probs)
        own = np.exp(rows - np.logaddexp.reduce(rows, axis=1, keepdims=True))
        with np.errstate(divide="ignore"):
            scores = -np.log((share[:, None] * own).sum(0) / (share.sum() or 1.0))
        best = [index for index in range(len(scores)) if scores[index] == scores.min()]
        return Choice(min(best, key=lambda index: (leader not in authors[index], index)), scores)
