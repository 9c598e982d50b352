"""Spans between the boundaries that two tokenizations share: the smallest stretches of text of which both know the probability.

ALM (arXiv:2503.20083) compares likelihoods of such chunks, so that positions without a common boundary teach as well. Only bytes are looked
at: no vocabulary, no strings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from lmfuse.types import Encoding, Rows


@dataclass(frozen=True)
class Chunks:
    """Chunks of one document, in order: each begins and ends where tokens of both sides do, and nowhere in between do both.

    Inside a chunk both sides cover every byte. A span that one side masks, and a token without text between two of the target's
    tokens, end what can be a chunk: text that no chunk covers whole has none. A dummy prefix that stands alone belongs to the chunk
    that begins at its byte, so that no log-probability is lost. What lies on both sides is symmetric.

    Attributes:
        target_first, target_stop: the target's tokens of each chunk, indices into the encoding: ``target_first <= i < target_stop``.
        source_first, source_stop: likewise the source's rows.
        byte_start, byte_end: the bytes of the text that it covers.

    >>> target = Encoding(np.array([9, 4, 5, 6]), np.array([-1, 0, 3, 5]), np.array([-1, 3, 5, 11]))            # hel|lo| world
    >>> chunks = Chunks.between(np.array([0, 5, 9]), np.array([5, 9, 11]), target.starts, target.ends)          # hello| wor|ld
    >>> chunks.byte_start.tolist(), chunks.byte_end.tolist()
    ([0, 5], [5, 11])
    >>> chunks.target_first.tolist(), chunks.target_stop.tolist(), chunks.source_first.tolist(), chunks.source_stop.tolist()
    ([1, 3], [3, 4], [0, 1], [1, 3])
    >>> chunks.sum_over_rows(np.array([-1.0, -2.0, -4.0])).tolist(), chunks.sum_over_tokens(np.array([0.0, 1.0, 2.0, 4.0])).tolist()
    ([-1.0, -6.0], [3.0, 4.0])
    """

    target_first: Int[np.ndarray, "N"]
    target_stop: Int[np.ndarray, "N"]
    source_first: Int[np.ndarray, "N"]
    source_stop: Int[np.ndarray, "N"]
    byte_start: Int[np.ndarray, "N"]
    byte_end: Int[np.ndarray, "N"]

    def __len__(self) -> int:
        return len(self.byte_start)

    @classmethod
    def of(cls, rows: Rows, target: Encoding) -> Chunks:
        """Return the chunks of a source's rows and a target's encoding of the same document, or of many concatenated ones.

        Raises:
            ValueError: tokens that do not stand in the order of the text.
        """
        return cls.between(rows.starts, rows.ends, target.starts, target.ends)

    @classmethod
    def between(
        cls,
        source_starts: Integer[np.ndarray, "U"],
        source_ends: Integer[np.ndarray, "U"],
        target_starts: Integer[np.ndarray, "T"],
        target_ends: Integer[np.ndarray, "T"],
    ) -> Chunks:
        """Return the chunks of two tokenizations, each given as bytes: -1 for a token without text.

        Raises:
            ValueError: tokens that do not stand in the order of the text.
        """
        source, target = _Side.of(source_starts, source_ends, "source"), _Side.of(target_starts, target_ends, "target")
        begin = np.intersect1d(source.starts, target.starts, assume_unique=True)
        end = np.intersect1d(source.ends, target.ends, assume_unique=True)
        next_end = np.searchsorted(end, begin, side="right")
        begin = begin[next_end < len(end)]
        end = end[next_end[next_end < len(end)]]
        (source_first, source_stop, source_whole), (target_first, target_stop, target_whole) = (
            side.cover(begin, end) for side in (source, target)
        )
        whole = source_whole & target_whole
        tokens = target_first[whole], target_stop[whole], source_first[whole], source_stop[whole]
        return cls(*tokens, begin[whole], end[whole])

    def sum_over_tokens(self, values: Float[np.ndarray, "T"]) -> Float[np.ndarray, "N"]:
        """Return the sum of a value of each target token over each chunk, such as the student's log-probabilities in nats."""
        return _sums(values, self.target_first, self.target_stop)

    def sum_over_rows(self, values: Float[np.ndarray, "U"]) -> Float[np.ndarray, "N"]:
        """Return the sum of a value of each source row over each chunk."""
        return _sums(values, self.source_first, self.source_stop)

    def source_log_probs(self, rows: Rows) -> Float[np.ndarray, "N"]:
        """Return the source's log-probability of each chunk in nats, along its own tokens."""
        return -self.sum_over_rows(rows.nll_nats)


@dataclass(frozen=True)
class _Side:
    """One tokenization: the bytes of its tokens that cover any, and what it takes to find its tokens between two bytes."""

    starts: Int[np.ndarray, "N"]
    ends: Int[np.ndarray, "N"]
    text: Int[np.ndarray, "M"]
    text_starts: Int[np.ndarray, "M"]
    index: Int[np.ndarray, "N"]
    covered: Int[np.ndarray, "N1"]

    @classmethod
    def of(cls, starts: Integer[np.ndarray, "T"], ends: Integer[np.ndarray, "T"], who: str) -> _Side:
        text = np.flatnonzero(starts >= 0)
        begin, end = starts[text].astype(np.int64), ends[text].astype(np.int64)
        if (begin[1:] < end[:-1]).any() or (begin > end).any():
            raise ValueError(f"chunks: the {who}'s tokens overlap or do not stand in the order of the text: mend its starts and ends")
        wide = end > begin
        covered = np.append(0, np.cumsum((end - begin)[wide]))
        return cls(begin[wide], end[wide], text, begin, text[wide], covered)

    def cover(
        self, begin: Int[np.ndarray, "C"], end: Int[np.ndarray, "C"]
    ) -> tuple[Int[np.ndarray, "C"], Int[np.ndarray, "C"], Bool[np.ndarray, "C"]]:
        """Return the first token of each span, the one after its last, and whether they cover it without a gap and without others."""
        first, last = np.searchsorted(self.starts, begin), np.searchsorted(self.ends, end)
        whole = self.covered[np.minimum(last + 1, len(self.ends))] - self.covered[first] == end - begin
        prefix = np.searchsorted(self.text_starts, begin)  # the dummy prefix at the same byte, if there is one
        token_first, token_stop = self.text[prefix], self.index[last] + 1
        last_text = np.searchsorted(self.text, token_stop)
        return token_first, token_stop, whole & (last_text - prefix == token_stop - token_first)


def _sums(values: Float[np.ndarray, "M"], first: Int[np.ndarray, "N"], stop: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Return the sums of ``values[first:stop]``, in float64."""
    bounds = np.stack([first, stop], axis=1).ravel()
    return np.add.reduceat(np.append(values.astype(np.float64), 0.0), bounds)[::2] if len(first) else np.zeros(0)
