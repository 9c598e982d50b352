"""Source tokens that the target would often write as the beginning of a longer token, and what it writes instead.

A source that thinks of ``1`` may mean ``1``, ``12`` or ``185``. Of a token that followed, the next tokens tell which. Of one that did not,
nothing tells: the best guess is what the target's tokenizer wrote wherever the source's wrote this token, counted over a corpus.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from lmfuse.align.counts import Counts
from lmfuse.align.exact import exact_map
from lmfuse.types import Vocabulary, VocabularyMap

OFTEN = 0.02  # share of a token's occurrences that longer target tokens must have


def longer_map(counts: Counts, source: Vocabulary, target: Vocabulary, min_share: float = 0.01) -> VocabularyMap:
    """Map source tokens to the target tokens that begin with their bytes, by how often they stood in their place.

    Only tokens whose bytes the target has as a token, too, and often enough continues; all others are unmapped. One more
    occurrence of the token alone is assumed, so that rare tokens are believed to be what they are.

    Args:
        counts: which ids began at the same byte, how often.
        source: where probability comes from.
        target: where it goes.
        min_share: target tokens with less of a token's occurrences are left out, and the rest is scaled to one.

    Raises:
        ValueError: counts of other vocabularies.

    >>> ours, theirs = Vocabulary.from_tokens([b"1", b"12", b"2"]), Vocabulary.from_tokens([b"1", b"2"])
    >>> counts = Counts.nothing(2, 3).plus(np.array([0, 0, 0, 1]), np.array([1, 0, 1, 2]))        # `1` stood where `12`, `1`, `12` stood
    >>> found = longer_map(counts, theirs, ours)
    >>> found.indptr.tolist(), found.target_ids.tolist(), found.weights.tolist()
    ([0, 2, 2], [0, 1], [0.5, 0.5])
    """
    if (counts.source_size, counts.target_size) != (source.size, target.size):
        found = f"counts between {counts.source_size} and {counts.target_size} ids"
        raise ValueError(f"longer: {found}, expected {source.size} and {target.size}: count with the same tokenizers")
    exact = exact_map(source, target).single()
    written = np.flatnonzero((exact >= 0) & (source.lengths > 0))
    counts = counts.plus(written, exact[written])
    ids, onto = np.divmod(counts.codes, target.size)
    times = counts.counts.astype(np.float64)
    alike = (exact[ids] >= 0) & _begins_with(source, target, ids, onto)
    ids, onto, times = ids[alike], onto[alike], times[alike]
    goes_on = np.bincount(ids, times * (target.lengths[onto] > source.lengths[ids]), minlength=source.size)
    total = np.bincount(ids, times, minlength=source.size)
    kept = (goes_on > OFTEN * total)[ids] & (times > min_share * total[ids])
    ids, onto, times = ids[kept], onto[kept], times[kept]
    weights = times / np.bincount(ids, times, minlength=source.size)[ids]
    indptr = np.append(0, np.cumsum(np.bincount(ids, minlength=source.size))).astype(np.int64)
    return VocabularyMap(indptr, onto, weights.astype(np.float32), target.size, "longer")


def _begins_with(source: Vocabulary, target: Vocabulary, ids: Int[np.ndarray, "N"], onto: Int[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
    """Return for which pairs the target token begins with the bytes of the source token."""
    fits = np.flatnonzero((source.lengths[ids] > 0) & (target.lengths[onto] >= source.lengths[ids]))
    differ = np.zeros(len(fits), bool)
    for depth in range(int(source.lengths[ids[fits]].max(initial=0))):
        at = np.flatnonzero(source.lengths[ids[fits]] > depth)
        theirs, ours = source.offsets[ids[fits[at]]] + depth, target.offsets[onto[fits[at]]] + depth
        differ[at] |= source.flat[theirs] != target.flat[ours]
    alike = np.zeros(len(ids), bool)
    alike[fits[~differ]] = True
    return alike
