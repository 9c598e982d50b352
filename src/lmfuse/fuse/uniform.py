"""Uniform: every source teaches with the same weight."""

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
class Uniform:
    """Blend the sources' distributions with equal weights: the baseline that any judging of sources has to beat.

    At each token the weights are shared out among the sources that have a row there. Scores are not looked at.

    - ``k``: candidates kept per token; by default the union of all sources', so that nothing is lost.

    >>> from lmfuse.types import TopK
    >>> def always(token):  # a source that is certain of one of 9 tokens
    ...     return Alignment(np.arange(1), TopK.certain(np.array([token]), 1, 9), *np.zeros((2, 1)), *np.zeros((2, 1), bool))
    >>> rows = Uniform()([always(3), always(5)], np.zeros(2)).topk
    >>> rows.ids.tolist(), np.exp(rows.log_probs).tolist()
    ([[3, 5]], [[0.5, 0.5]])
    """

    name: Literal["uniform"] = "uniform"
    k: Annotated[int, Field(ge=1)] | None = None

    def __call__(self, alignments: Sequence[Alignment], scores: Float[np.ndarray, "S"]) -> Fused:
        """Return one document's teacher; ``winner`` is -2 (a blend) at every taught token.

        Raises:
            ValueError: the alignments do not fit together, or the scores do not fit them.
        """
        check(alignments, scores)
        return blend(alignments, np.ones(len(alignments)), self.k)
