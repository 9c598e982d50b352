"""Which of the target tokens that a source token met over a corpus get its probability, and how much of it.

=================  ========================================================================================================
``choose``         a source token that was counted goes to
=================  ========================================================================================================
``most_frequent``  the target token that it met most often; of equals the nearest by edit distance of bytes, then the lowest id
``share``          all that it met, by their counts; what has less than ``min_share`` is left out and the rest scaled to one
``released``       the least ``edit distance * sigmoid(count)``, a tenth of it where one string holds the other: rarer is better
=================  ========================================================================================================

``released`` is what the code of FuseChat (arXiv:2408.07990) does: larger counts raise the cost, by a factor from 0.73 to 1, and tokens of
equal spelling cost nothing however rare they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from lmfuse.align.counts import Counts
from lmfuse.align.exact import token_bytes
from lmfuse.align.strings import respell, space_marker
from lmfuse.types import Vocabulary

Choice = Literal["most_frequent", "share", "released"]


def most_frequent(counts: Counts, source: Vocabulary, target: Vocabulary, min_share: float) -> Float[np.ndarray, "N"]:
    """Return weight 1 for the pair that each source id was counted in most often, 0 for the others."""
    ids, onto = np.divmod(counts.codes, counts.target_size)
    most = np.zeros(source.size, np.int64)
    np.maximum.at(most, ids, counts.counts)
    tied = np.flatnonzero(counts.counts == most[ids])
    theirs, ours = ([written.decode("latin-1") for written in token_bytes(vocabulary)] for vocabulary in (source, target))
    distance = np.full(len(ids), np.inf)
    distance[tied] = _distances(theirs, ours, ids[tied], onto[tied])
    return _least(ids, distance)


def shares(counts: Counts, source: Vocabulary, target: Vocabulary, min_share: float) -> Float[np.ndarray, "N"]:
    """Return for each pair its share of the source id's counts, without the small ones and scaled to one again; the largest stays."""
    ids = counts.codes // counts.target_size
    share = counts.counts / np.bincount(ids, counts.counts, minlength=source.size)[ids]
    largest = np.zeros(source.size)
    np.maximum.at(largest, ids, share)
    share[(share < min_share) & (share < largest[ids])] = 0.0
    return share / np.bincount(ids, share, minlength=source.size)[ids]


def released(counts: Counts, source: Vocabulary, target: Vocabulary, min_share: float) -> Float[np.ndarray, "N"]:
    """Return weight 1 for the pair of each source id with the least weighted distance, 0 for the others."""
    ids, onto = np.divmod(counts.codes, counts.target_size)
    theirs, ours = (respell(vocabulary.strings, space_marker(vocabulary), "") for vocabulary in (source, target))
    holds = np.fromiter(
        (theirs[a] in ours[b] or ours[b] in theirs[a] for a, b in zip(ids.tolist(), onto.tolist(), strict=True)), bool, len(ids)
    )
    distance = _distances(theirs, ours, ids, onto) * np.where(holds, 0.1, 1.0)
    return _least(ids, distance / (1 + np.exp(-counts.counts)))


def _distances(theirs: Sequence[str], ours: Sequence[str], ids: Int[np.ndarray, "N"], onto: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Return the edit distance of each pair."""
    texts = [theirs[n] for n in ids.tolist()], [ours[n] for n in onto.tolist()]
    return np.asarray(cpdist(*texts, scorer=Levenshtein.distance, dtype=np.int32), np.float64)


def _least(ids: Int[np.ndarray, "N"], cost: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Return 1 for the first pair of each source id with the least cost, 0 for the others; pairs are in ascending order."""
    order = np.lexsort((cost, ids))
    first = order[np.append(True, ids[order][1:] != ids[order][:-1])[: len(ids)]]
    chosen = np.zeros(len(ids))
    chosen[first] = 1.0
    return chosen


Rule = Callable[[Counts, Vocabulary, Vocabulary, float], Float[np.ndarray, "N"]]
RULES: dict[Choice, Rule] = {"most_frequent": most_frequent, "share": shares, "released": released}
METHOD_NAMES: dict[Choice, str] = {
    "most_frequent": "co_occurrence",
    "share": "co_occurrence_share",
    "released": "co_occurrence_released",
}
