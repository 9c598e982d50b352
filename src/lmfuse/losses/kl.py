"""KL: the divergence of the student from its teacher."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.losses.family import SparseLoss


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class KL(SparseLoss):
    """Forward divergence KL(teacher || student), beside the loss on the true token.  FuseLLM, arXiv:2401.10491, section 3.1

    ``loss = lambda * -log q(truth) + (1 - lambda) * sum_k p_k (log p_k - log q_k)`` at taught positions, ``-log q(truth)`` elsewhere.

    - ``clm_weight``: lambda, the share of the true token. ProFuser's form, ``-log q(truth) + beta * KL`` (arXiv:2408.04998), is the same up to a factor
      with ``lambda = 1 / (1 + beta)``; a recipe may say ``beta`` instead, for any loss.
    - ``clm_weight_end``: lambda at the end of the training, in a straight line; none: it stays. 1.0 is FuseLLM's ``hard_and_decay``.
    - ``tail``: ``bucket`` sets the teacher's mass outside its candidates against the student's mass outside them, as one more outcome;
      ``renormalise`` drops it and stretches the candidates to 1, as published.

    A teacher (.5, .5) with entropy log 2 = .69315 and a student (.25, .75): cross-entropy .83699, divergence .14384.

    >>> import numpy as np
    >>> KL().value(np.array([0.83699]), np.array([0.69315])).round(5).tolist()
    [0.14384]
    >>> KL(clm_weight=0.8, clm_weight_end=1.0).clm_weight_at(0.5)
    0.9
    """

    name: Literal["kl"] = "kl"

    def value(self, cross_entropy_nats: Float[Any, N], entropy_nats: Float[Any, N]) -> Float[Any, N]:
        """Return the divergence of each position: 0 where the student equals the teacher."""
        return cross_entropy_nats - entropy_nats
