"""SAFE: one model writes, the others check, and all write together only where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.decode.judging import Judging


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Safe(Judging):
    """Fuse where boundaries agree and models differ, and nowhere else.  After SAFE, arXiv:2510.15346

    The reference model drafts ``words`` words. The others read the draft in one pass. Up to the first word that they together doubt it is
    taken as it is; there all models propose a word each, which ``score`` and ``weights`` decide as for ``cool``. A word ends where every
    tokenizer ends a token. The others doubt a word if the mean over them of its probability per token (the geometric mean over its tokens)
    is below ``threshold``.

    The paper checks tokens and fuses distributions over tokens; here both are done with words.

    >>> Safe(threshold=0.5).first_doubt(np.log([[1.25, 4.0], [1.0, 8.0]]), np.array([[1.0, 1.0], [1.0, 2.0]]))
    1
    """

    name: Literal["safe"] = "safe"
    words: Annotated[int, Field(ge=1)] = 8
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5

    def first_doubt(self, nll_nats: Float[np.ndarray, "S N"], tokens: Float[np.ndarray, "S N"]) -> int:
        """Return the index of the first of N words that the checking models doubt; N where they doubt none.

        Args:
            nll_nats: each checking model's negative log-likelihood of each word.
            tokens: the words' lengths in its own tokens.
        """
        probability = np.exp(-nll_nats / tokens).mean(0)
        return int(np.argmax([*(probability < self.threshold), True]))


def words_of(ends: Sequence[int], nll_nats: Sequence[float], words: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return the negative log-likelihood and the number of tokens of each word, from those of the tokens.

    Args:
        ends: the byte at which each token ends, in order.
        nll_nats: what each token costs.
        words: the byte at which each word ends, in order; a token that reaches over one counts for the word in which it ends.

    >>> words_of([2, 5, 9], [0.5, 1.0, 2.0], [5, 9])
    ([1.5, 2.0], [2.0, 1.0])
    """
    place = np.searchsorted(np.asarray(words), np.asarray(ends), side="left")
    inside = place < len(words)
    costs = np.bincount(place[inside], np.asarray(nll_nats, np.float64)[inside], len(words))
    counts = np.bincount(place[inside], minlength=len(words)).astype(np.float64)
    return costs.tolist(), np.maximum(counts, 1.0).tolist()
