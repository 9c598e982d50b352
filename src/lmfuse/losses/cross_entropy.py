"""Cross-entropy: the student's surprise at what its teacher would say."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.losses.family import SparseLoss


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CrossEntropy(SparseLoss):
    """Cross-entropy of the student under the teacher's distribution, FuseLLM's own choice.  arXiv:2401.10491, section 3.1

    ``loss = lambda * -log q(truth) + (1 - lambda) * -sum_k p_k log q_k`` at taught positions, ``-log q(truth)`` elsewhere.
    It is ``kl`` plus the teacher's entropy: another number, the same gradient. The parameters are those of ``kl``.

    >>> import numpy as np
    >>> CrossEntropy().value(np.array([0.83699]), np.array([0.69315])).tolist()
    [0.83699]
    """

    name: Literal["cross_entropy"] = "cross_entropy"

    def value(self, cross_entropy_nats: Float[Any, N], entropy_nats: Float[Any, N]) -> Float[Any, N]:
        """Return the cross-entropy of each position as it is."""
        return cross_entropy_nats
