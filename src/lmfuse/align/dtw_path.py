"""Dynamic time warping over token strings: the shortest path, and the strings that FuseChat compares.

The step that FuseLLM (arXiv:2401.10491, section 3.2) and FuseChat (arXiv:2408.07990) share: it looks at strings alone. Memory
and time grow with the product of the two lengths: for parity, not for use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from lmfuse.align.exact import token_bytes, turn_end
from lmfuse.align.strings import METASPACE_MARKER, space_marker
from lmfuse.types import Vocabulary

END = "\uffff"  # the end of a turn as a string: no text holds this character, and all vocabularies spell it alike
FAR = 1 << 30  # farther than any path, and no overflow when two path lengths are added


def decoded_strings(vocabulary: Vocabulary) -> list[str]:
    """Return what FuseChat compares: each token decoded by itself, in which SentencePiece loses a leading space and byte-level keeps it.

    A cut character becomes U+FFFD. A token that decodes to nothing is a suffix of every other: as published it accepts any row. Decoders
    that keep the space of a Metaspace vocabulary (Gemma), or tidy spaces before punctuation, are not told apart here. The end of a turn is
    ``END`` in every vocabulary.

    >>> decoded_strings(Vocabulary.from_tokens([b" a", b" "], strings=["▁a", "▁"])), decoded_strings(Vocabulary.from_tokens([b" a"], strings=["Ġa"]))
    (['a', ''], [' a'])
    """
    dropped = " " if space_marker(vocabulary) == METASPACE_MARKER else ""
    return spell_end([written.decode("utf-8", "replace").removeprefix(dropped) for written in token_bytes(vocabulary)], vocabulary)


def spell_end(strings: list[str], vocabulary: Vocabulary) -> list[str]:
    """Return the strings of a vocabulary with the token that ends a turn, if one does, spelled ``END``."""
    end = turn_end(vocabulary)
    return strings if end < 0 else [*strings[:end], END, *strings[end + 1 :]]


def dtw_path(source_strings: Sequence[str], target_strings: Sequence[str], ties: Literal["source", "target"] = "source") -> list[list[int]]:
    """Return for each target string the places of the source strings that dynamic time warping matches with it, ascending.

    The cost of a match is the Levenshtein distance. Of equally short paths the published choice is made, from the end of the text
    backwards: both sides step back, else only one, the one that ``ties`` names first (FuseLLM: the source, FuseChat: the target).

    >>> dtw_path(["hello", "wor", "ld"], ["hel", "lo", "world"])         # `lo` meets `wor`: strings do not know where they stand
    [[0], [1], [2]]
    """
    matches: list[list[int]] = [[] for _ in target_strings]
    if not source_strings or not target_strings:
        return matches
    total = path_lengths(source_strings, target_strings)
    i, j = total.shape[0] - 1, total.shape[1] - 1
    while i > 0:
        matches[j - 1].append(i - 1)
        both, source_only, target_only = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        if both <= source_only and both <= target_only:
            i, j = i - 1, j - 1
        elif source_only < target_only or (source_only == target_only and ties == "source"):
            i -= 1
        else:
            j -= 1
    return [places[::-1] for places in matches]


def path_lengths(source_strings: Sequence[str], target_strings: Sequence[str]) -> Int[np.ndarray, "U1 T1"]:
    """Return the cost of the shortest path to each cell, with a border of ``FAR`` around it; the last cell is the whole cost.

    A row at a time: a path enters row ``i`` in some column from above or diagonally and then goes right, which costs a difference of two
    running sums. So the best way in is a running minimum, and integers keep it exact.
    """
    cost = _costs(source_strings, target_strings)
    total = np.full((cost.shape[0] + 1, cost.shape[1] + 1), FAR, np.int32)
    total[0, 0] = 0
    along = np.cumsum(cost, axis=1, dtype=np.int32)
    for i in range(len(cost)):
        enter = np.minimum(total[i, :-1], total[i, 1:])
        enter[1:] -= along[i, :-1]
        np.minimum.accumulate(enter, out=enter)
        np.add(enter, along[i], out=total[i + 1, 1:])
    return total


def _costs(source_strings: Sequence[str], target_strings: Sequence[str]) -> Int[np.ndarray, "U T"]:
    """Return the edit distances of all pairs, computed once per pair of different strings."""
    rows, columns = ({string: n for n, string in enumerate(dict.fromkeys(strings))} for strings in (source_strings, target_strings))
    distinct = cdist(list(rows), list(columns), scorer=Levenshtein.distance, dtype=np.int32)
    return distinct[np.ix_([rows[string] for string in source_strings], [columns[string] for string in target_strings])]
