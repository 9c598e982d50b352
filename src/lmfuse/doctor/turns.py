"""Where a chat template meets what the assistant says: what a tokenizer makes of the beginnings and ends of the trained turns."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmfuse.doctor.axis import Axis, Tokens
from lmfuse.types import END_OF_TURN, Vocabulary


def boundaries(axis: Axis, target: Vocabulary, source: Vocabulary) -> dict[str, Any] | None:
    """Return how the trained turns of conversations begin and end in each tokenizer; None where there are none.

    Returns:
        ``turns``, and for ``target`` and ``source``: ``end``: the token that ends a turn, if there is one; ``prefixed``: turns whose first
        token has begun with the space before them; ``masked_first``, ``masked_last``: turns whose first or last byte belongs to a token
        that is the template's as well, and is not taught; ``masked_end``: turns behind which no single control token stands.
    """
    ends = np.flatnonzero(axis.data == END_OF_TURN[0])  # never a byte of a text
    if not len(ends):
        return None
    document = axis.base[np.searchsorted(axis.base, ends, side="right") - 1]
    begins = np.maximum(np.append(0, ends[:-1] + 1), document)

    def side(tokens: Tokens, vocabulary: Vocabulary) -> dict[str, Any]:
        covered = np.diff(tokens.covered_before(len(axis.data))) > 0
        end = vocabulary.control.get("end_of_turn")
        return {
            "end": None if end is None else vocabulary.strings[end],
            "prefixed": int(np.isin(begins, tokens.starts[tokens.prefix > 0]).sum()),
            "masked_first": int((~covered[begins]).sum()),
            "masked_last": int((~covered[ends - 1]).sum()),
            "masked_end": int((~covered[ends]).sum()),
        }

    return {"turns": len(ends), "target": side(axis.target, target), "source": side(axis.source, source)}
