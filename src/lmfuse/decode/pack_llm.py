"""PackLLM: the models that understand the prompt best have the most to say."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PackLLM:
    """Mix the models' distributions over the next byte, weighted by how likely each finds the prompt.  PackLLM-sim, arXiv:2404.11531

    The weight of a model is the softmax of its mean log-likelihood of the prompt, divided by ``temperature``: at 0 the best model
    speaks alone. The paper counts the mean per token and maps tokens onto a reference vocabulary; here both are bytes, because neither tells
    models with different tokenizers apart fairly. A conversation's prompt is what its messages say, read as plain text.

    >>> PackLLM(temperature=0.5)(np.array([0.5, 0.5 + 0.5 * np.log(3)])).round(3).tolist()
    [0.75, 0.25]
    """

    name: Literal["pack_llm"] = "pack_llm"
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1

    def __call__(self, nats_per_byte: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
        """Return the models' weights, which sum to 1; ``nan`` (a prompt that says nothing) for all means equal weights.

        Args:
            nats_per_byte: each model's cross-entropy of the prompt.
        """
        cost = np.where(np.isnan(nats_per_byte), np.inf, nats_per_byte)
        if np.isinf(cost).all():
            return np.full(len(cost), 1 / len(cost))
        if self.temperature == 0:
            best = cost == cost.min()
            return best / best.sum()
        power = np.exp(-(cost - cost.min()) / self.temperature)
        weights: Float[np.ndarray, "S"] = power / power.sum()
        return weights
