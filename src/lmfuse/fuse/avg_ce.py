"""AvgCE: every source teaches, the less surprised ones a little more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.fuse.blend import blend, check
from lmfuse.types import Alignment, Fused


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AvgCE:
    """Blend the sources' distributions, weighted by their cross-entropy on the document.  FuseLLM, arXiv:2401.10491, section 3.2

    At each token the weights are shared out among the sources that have a row there. A source that cannot be judged (``nan``)
    has weight 0.

    - ``weights``: ``published`` is ``softmax(exp(-CE))``, a softmax of numbers between 0 and 1 and so nearly uniform (rewards of 1, 0, 0
      become .576, .212, .212); ``softmax_neg_ce`` is ``softmax(-CE)``, in proportion to ``exp(-CE)``.
    - ``unit``, ``judge``: what the cross-entropy is counted over and measured on, as in ``min_ce``.
    - ``k``: candidates kept per token; by default the union of all sources', so that nothing is lost.

    >>> AvgCE().shares(np.array([0.0, 700.0, 700.0])).round(3).tolist()
    [0.576, 0.212, 0.212]
    """

    name: Literal["avg_ce"] = "avg_ce"
    weights: Literal["published", "softmax_neg_ce"] = "published"
    unit: Literal["byte", "token"] = "byte"
    judge: Literal["training_text", "held_out"] = "held_out"
    k: Annotated[int, Field(ge=1)] | None = None

    def shares(self, scores: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
        """Return the sources' weights; they sum to 1, or are all 0 where nobody can be judged."""
        judged = ~np.isnan(scores)
        rewards = -np.where(judged, scores, np.inf).astype(np.float64)
        if self.weights == "published":
            rewards = np.exp(rewards)
        powers = np.where(judged, np.exp(rewards - rewards.max(initial=-np.inf, where=judged)), 0.0)
        return powers / max(float(powers.sum()), 1e-300)

    def __call__(self, alignments: Sequence[Alignment], scores: Float[np.ndarray, "S"]) -> Fused:
        """Return one document's teacher; ``winner`` is -2 (a blend) at every taught token.

        Raises:
            ValueError: the alignments do not fit together, or the scores do not fit them.
        """
        check(alignments, scores)
        return blend(alignments, self.shares(scores), self.k)
