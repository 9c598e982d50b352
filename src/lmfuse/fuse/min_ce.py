"""MinCE: the source that found the text least surprising teaches it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.fuse.blend import check, nothing, take
from lmfuse.types import Alignment, Fused


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MinCE:
    """Learn each document from the source with the lowest cross-entropy on it.  FuseLLM, arXiv:2401.10491, section 3.2

    A score is a cross-entropy, lower is better; ``nan`` (cannot be judged) never wins; of equal scores the first wins.
    The winner's rows are taken as they are: where it has none, nothing is taught.

    - ``unit``: cross-entropy per byte, or per token of each source's own tokenizer as published, which favours fine tokenizers.
    - ``per``: one winner for the document, or one per token among the sources that have a row there: the one that gave the
      token that really follows the highest probability. The latter looks at the truth; tokens where no source's probability of
      the truth is known are not taught.
    - ``judge``: the scores come from held-out text, or from the training text itself as published, which favours sources that have seen it.
    - ``reward_dtype``: ``bfloat16`` compares ``1 / exp(CE)`` rounded at each step, as published: near scores tie, the first in order wins.
    - ``no_teacher``: one more score may follow the sources': that of having no teacher. Where it is the lowest nothing is taught.

    >>> from lmfuse.types import TopK
    >>> def always(token):  # a source that is certain of one of 9 tokens, twice
    ...     return Alignment(np.arange(2), TopK.certain(np.array([token, token]), 1, 9), *np.zeros((2, 2)), *np.zeros((2, 2), bool))
    >>> MinCE()([always(3), always(5)], np.array([0.7, 0.6])).topk.ids.tolist()
    [[5], [5]]
    >>> MinCE()([always(3), always(5)], np.array([0.7, 0.6, 0.5])).winner.tolist()
    [-1, -1]
    """

    name: Literal["min_ce"] = "min_ce"
    unit: Literal["byte", "token"] = "byte"
    per: Literal["document", "token"] = "document"
    judge: Literal["training_text", "held_out"] = "held_out"
    reward_dtype: Literal["float32", "bfloat16"] = "float32"
    no_teacher: bool = True

    def __call__(self, alignments: Sequence[Alignment], scores: Float[np.ndarray, "S"]) -> Fused:
        """Return one document's teacher.

        Args:
            alignments: one per source, in the recipe's order.
            scores: one per source, and with ``no_teacher`` optionally one more.

        Raises:
            ValueError: the alignments do not fit together, or the scores do not fit them.
        """
        check(alignments, scores, extra=self.no_teacher)
        costs = np.asarray(scores, np.float32) if self.reward_dtype == "float32" else -published_reward(scores)
        costs = np.where(np.isnan(costs), np.inf, costs)
        best = int(np.argmin(costs))
        if np.isinf(costs[best]) or best == len(alignments):
            return nothing(alignments)
        if self.per == "document":
            return take(alignments, np.where(alignments[best].taught, best, -1))
        known = [each.taught & np.isfinite(cost) & ~np.isnan(each.truth_nll_nats) for each, cost in zip(alignments, costs, strict=False)]
        surprise = np.where(known, [each.truth_nll_nats for each in alignments], np.inf)
        return take(alignments, np.where(np.any(known, axis=0), surprise.argmin(0), -1))


def published_reward(scores: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
    """Return ``1 / exp(CE)`` with every step rounded to bfloat16, as the authors' trainer compares it.

    >>> bool(np.equal(*published_reward(np.array([2.501, 2.506]))))
    True
    """
    return _to_bfloat16(1 / _to_bfloat16(np.exp(_to_bfloat16(scores), dtype=np.float64)))


def _to_bfloat16(values: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
    """Round to the nearest of 8 significant bits, ties to even; ``nan`` stays ``nan``."""
    with np.errstate(over="ignore"):  # a hopeless source: exp(CE) is infinite, its reward 0
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(values), np.float32(np.nan), rounded)
