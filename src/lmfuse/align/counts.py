"""How often each target token meets each source token over a corpus, in memory that grows with the pairs that occur.

The statistics of FuseChat's token alignment, arXiv:2408.07990 (FusionChat, arXiv:2402.16107). The released code holds a dense matrix of both
vocabularies; here a pair of ids is one number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int, Integer

from lmfuse.align.dtw_path import decoded_strings, dtw_path
from lmfuse.types import Encoding, Vocabulary

Positions = Literal["bytes", "dtw"]
IdPairs = tuple[Integer[np.ndarray, "N"], Integer[np.ndarray, "N"]]


@dataclass(frozen=True)
class Counts:
    """Pairs of ids and how often they met.

    Attributes:
        codes: ``source id * target_size + target id``, ascending, each once: the pairs of one source token stand together.
        counts: how often each of them was seen, at least once.
        source_size, target_size: of the vocabularies.

    >>> once = Counts.nothing(source_size=3, target_size=10).plus(np.array([2, 0, 2]), np.array([7, 1, 7]))
    >>> twice = once.plus(np.array([2]), np.array([4]))
    >>> twice.codes.tolist(), twice.counts.tolist()
    ([1, 24, 27], [1, 1, 2])
    """

    codes: Int[np.ndarray, "N"]
    counts: Int[np.ndarray, "N"]
    source_size: int
    target_size: int

    @classmethod
    def nothing(cls, source_size: int, target_size: int) -> Counts:
        """Return counts of no pair at all."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), source_size, target_size)

    def plus(self, source_ids: Integer[np.ndarray, "N"], target_ids: Integer[np.ndarray, "N"]) -> Counts:
        """Return counts with more pairs.

        Raises:
            ValueError: an id outside its vocabulary.
        """
        for who, ids, size in (("source", source_ids, self.source_size), ("target", target_ids, self.target_size)):
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
                raise ValueError(f"counts: {who} ids {ids.min()} to {ids.max()}, expected 0 to {size - 1}: ids of another vocabulary")
        new, times = np.unique(source_ids.astype(np.int64) * self.target_size + target_ids, return_counts=True)
        codes = np.concatenate([self.codes, new])
        order = np.argsort(codes, kind="stable")
        codes, counts = codes[order], np.concatenate([self.counts, times])[order]
        first = np.flatnonzero(np.append(True, codes[1:] != codes[:-1])[: len(codes)])
        totals = np.add.reduceat(counts, first) if len(first) else counts
        return Counts(codes[first], totals, self.source_size, self.target_size)


def count_pairs(
    documents: Iterable[tuple[Encoding, Encoding]],
    source: Vocabulary,
    target: Vocabulary,
    positions: Positions = "bytes",
    *,
    pairs_at_once: int = 1 << 20,
) -> Counts:
    """Count which tokens meet in documents that both tokenizers have encoded.

    Args:
        documents: the source's and the target's encoding of each.
        source: the source's vocabulary.
        target: the target's vocabulary.
        positions: tokens that begin at the same byte, or (``"dtw"``, as released) that dynamic time warping matches.
        pairs_at_once: pairs collected before they are sorted into the counts; they bound the memory.

    Raises:
        ValueError: an id outside its vocabulary.
    """
    counts = Counts.nothing(source.size, target.size)
    waiting: list[IdPairs] = []
    size = 0
    for pairs in _pairs(documents, source, target, positions):
        waiting.append(pairs)
        size += len(pairs[0])
        if size >= pairs_at_once:
            counts, waiting, size = counts.plus(*map(np.concatenate, zip(*waiting, strict=True))), [], 0
    return counts.plus(*map(np.concatenate, zip(*waiting, strict=True))) if waiting else counts


def _pairs(
    documents: Iterable[tuple[Encoding, Encoding]], source: Vocabulary, target: Vocabulary, positions: Positions
) -> Iterator[IdPairs]:
    if positions == "bytes":
        yield from (pairs_on_bytes(theirs, ours) for theirs, ours in documents)
        return
    source_strings, target_strings = decoded_strings(source), decoded_strings(target)
    for theirs, ours in documents:
        yield pairs_by_dtw(theirs.ids[theirs.starts >= 0], ours.ids[ours.starts >= 0], source_strings, target_strings)


def pairs_on_bytes(source: Encoding, target: Encoding) -> IdPairs:
    """Return the source and target ids of the tokens that begin at the same byte; a dummy prefix alone meets only another one.

    >>> ours = Encoding(np.array([9, 4, 5]), np.array([-1, 0, 3]), np.array([-1, 3, 5]))
    >>> theirs = Encoding(np.array([1, 2, 3]), np.array([0, 1, 3]), np.array([1, 3, 5]))
    >>> [ids.tolist() for ids in pairs_on_bytes(theirs, ours)]
    [[1, 3], [4, 5]]
    """
    (theirs, source_ids), (ours, target_ids) = (_begins(encoding) for encoding in (source, target))
    _, at_source, at_target = np.intersect1d(theirs, ours, return_indices=True)
    return source_ids[at_source], target_ids[at_target]


def _begins(encoding: Encoding) -> tuple[Int[np.ndarray, "N"], Integer[np.ndarray, "N"]]:
    """Return where the tokens of text begin, told apart from the dummy prefix that stands alone at the same byte, and their ids."""
    text = encoding.starts >= 0
    starts, ends = encoding.starts[text].astype(np.int64), encoding.ends[text]
    return 2 * starts + (ends > starts), encoding.ids[text]


def pairs_by_dtw(
    source_ids: Integer[np.ndarray, "U"], target_ids: Integer[np.ndarray, "T"], source_strings: list[str], target_strings: list[str]
) -> IdPairs:
    """Return the source and target ids that dynamic time warping over decoded strings matches.

    As released, a source id that stands several times among the matches of one target token counts once.
    """
    path = dtw_path([source_strings[n] for n in source_ids.tolist()], [target_strings[n] for n in target_ids.tolist()], ties="target")
    pairs = [(n, target_id) for places, target_id in zip(path, target_ids.tolist(), strict=True) for n in {*source_ids[places].tolist()}]
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]
