"""SAFE: one model writes, the others check, and all write together only where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.decode.judging import Judging, shares


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Safe(Judging):
    """Fuse where boundaries agree and models differ, and nowhere else.  After SAFE, arXiv:2510.15346

    The reference model drafts ``words`` words. The others read the draft in one pass. Up to the first word that they together doubt it is
    taken as it is; there all models propose a word each, which ``score`` and ``weights`` decide as for ``cool``. A word ends where every
    tokenizer ends a token.

    - ``words``: that are drafted at once.
    - ``threshold``: the others doubt a word if the mean over them of its probability per token (the geometric mean over its tokens, at most
      1) is below it. A word that a model would write itself, each of its tokens the likeliest, counts as certain to that model.
    - ``weights``: of the models, in this mean (there without the reference model's) and where they write together.

    The paper checks tokens and fuses distributions over tokens; here both are done with words. Its sharpening of fused distributions is left
    out: words are chosen, not mixed, so there is no probability spread over pieces to gather.

    >>> Safe(threshold=0.5).first_doubt(np.log([[1.25, 4.0], [1.0, 8.0]]), np.array([[1.0, 1.0], [1.0, 2.0]]), np.zeros((2, 2), bool))
    1
    """

    name: Literal["safe"] = "safe"
    words: Annotated[int, Field(ge=1)] = 8
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5

    def first_doubt(self, nll_nats: Float[np.ndarray, "S N"], tokens: Float[np.ndarray, "S N"], own_choice: Bool[np.ndarray, "S N"]) -> int:
        """Return the index of the first of N words that the checking models doubt; N where they doubt none.

        Args:
            nll_nats: each checking model's negative log-likelihood of each word.
            tokens: the words' lengths in its own tokens.
            own_choice: whether every token of the word is the one that it finds likeliest.
        """
        share = shares(self.weights[1:], len(nll_nats))
        if not share.sum():
            return nll_nats.shape[1]
        probability = np.where(own_choice, 1.0, np.minimum(1.0, np.exp(-nll_nats / tokens)))  # above 1: a token in place of a likelier one
        return int(np.argmax([*(np.average(probability, axis=0, weights=share) < self.threshold), True]))


def words_of(
    ends: Sequence[int], nll_nats: Sequence[float], likeliest: Sequence[bool], words: Sequence[int]
) -> tuple[list[float], list[float], list[bool]]:
    """Return each word's negative log-likelihood and number of tokens, and whether all of them are the likeliest, from those of the tokens.

    Args:
        ends: the byte at which each token ends, in order.
        nll_nats: what each token costs.
        likeliest: whether it is the token that was expected most.
        words: the byte at which each word ends, in order; a token that reaches over one counts for the word in which it ends.

    >>> words_of([2, 5, 9], [0.5, 1.0, 2.0], [True, False, True], [5, 9])
    ([1.5, 2.0], [2.0, 1.0], [False, True])
    """
    place = np.searchsorted(np.asarray(words), np.asarray(ends), side="left")
    inside = place < len(words)
    costs = np.bincount(place[inside], np.asarray(nll_nats, np.float64)[inside], len(words))
    counts = np.bincount(place[inside], minlength=len(words)).astype(np.float64)
    others = np.bincount(place[inside], ~np.asarray(likeliest, bool)[inside], len(words))
    return costs.tolist(), np.maximum(counts, 1.0).tolist(), ((others == 0) & (counts > 0)).tolist()
