"""The mixture of several models' distributions over the next byte: what every other joint decoder approximates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.decode.judging import Weight, check_weights, shares

NUM_SYMBOLS = 257  # the bytes, and the end of the text
END_SYMBOL = 256


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ByteMixture:
    """Write byte by byte what the models' mean distribution over the next byte says.  Probabilities of bytes: arXiv:2410.09303

    All tokenizers agree on bytes, so nothing has to be aligned and nothing is judged after the fact. Slow, one model call for each byte and
    model: the reference. Greedy decoding takes the likeliest byte, which is not always the first of the likeliest token.

    - ``weights``: of the models; by default all equal.

    >>> models = np.full((2, 257), -np.inf); models[0, [97, 98]] = np.log([0.75, 0.25]); models[1, [98, 256]] = np.log([0.5, 0.5])
    >>> np.exp(ByteMixture()(models)[[97, 98, 256]]).round(3).tolist()
    [0.375, 0.375, 0.25]
    """

    name: Literal["byte_mixture"] = "byte_mixture"
    weights: tuple[Weight, ...] = ()

    def __post_init__(self) -> None:
        check_weights(self.weights)

    def __call__(self, log_probs: Float[np.ndarray, "S 257"]) -> Float[np.ndarray, "257"]:
        """Return the log-probabilities of the mixture.

        Raises:
            ValueError: not as many weights as models.
        """
        return mix(log_probs, self.weights)


def mix(log_probs: Float[np.ndarray, "S 257"], weights: Sequence[float] = ()) -> Float[np.ndarray, "257"]:
    """Return the logarithm of the weighted mean of distributions; a model that expects nothing at all has no part in it.

    Raises:
        ValueError: not as many weights as models.
    """
    share = np.where(np.isneginf(log_probs).all(1), 0.0, shares(weights, len(log_probs)))
    if not share.sum():
        return np.full(log_probs.shape[1], -np.inf)
    with np.errstate(divide="ignore"):
        mixed: Float[np.ndarray, "257"] = np.logaddexp.reduce(log_probs + np.log(share / share.sum())[:, None], axis=0)
    return mixed
