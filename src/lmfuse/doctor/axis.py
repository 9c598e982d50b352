"""Two tokenizations of the same documents on one byte axis: which tokens lie together, and which of them a source can teach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from lmfuse.align.chunks import Chunks
from lmfuse.bytes import ByteTokenizer
from lmfuse.types import Document, Encoding, Vocabulary

KINDS = ("1:1", "1:n", "n:1", "n:m", "masked")  # target tokens : source tokens of a span


@dataclass(frozen=True)
class Tokens:
    """One tokenizer's tokens of many documents, behind each other; tokens without text are left out.

    Attributes:
        ids: of the tokens.
        starts, ends: bytes on the joint axis.
        prefix: how many bytes of its vocabulary each token writes before its start (a dummy prefix).
        masked_bytes: how many bytes of the documents the tokenizer cannot represent.
    """

    ids: Int[np.ndarray, "T"]
    starts: Int[np.ndarray, "T"]
    ends: Int[np.ndarray, "T"]
    prefix: Int[np.ndarray, "T"]
    masked_bytes: int

    @classmethod
    def of(cls, encodings: Sequence[Encoding], base: Int[np.ndarray, "B"], vocabulary: Vocabulary) -> Tokens:
        """Put each document's tokens at its place on the axis."""
        texts = [np.flatnonzero(encoding.starts >= 0) for encoding in encodings]
        by = np.repeat(base, [len(text) for text in texts])
        ids, starts, ends = (
            np.concatenate([getattr(e, name)[text] for e, text in zip(encodings, texts, strict=True)] or [np.zeros(0)]).astype(np.int64)
            for name in ("ids", "starts", "ends")
        )
        prefix = vocabulary.lengths[ids] - (ends - starts)
        return cls(ids, starts + by, ends + by, prefix, sum(encoding.masked_bytes for encoding in encodings))

    def covered_before(self, size: int) -> Int[np.ndarray, "N"]:
        """Return for each byte of the axis (and its end) how many bytes before it belong to tokens."""
        edges = np.bincount(self.starts, minlength=size + 1) - np.bincount(self.ends, minlength=size + 1)
        return np.append(0, np.cumsum(np.cumsum(edges[:size])))


@dataclass(frozen=True)
class Axis:
    """The documents' bytes, one unused byte between any two, and the tokens of a target and of a source on them.

    Attributes:
        data: the bytes.
        base: where each document begins.
        lengths: how many bytes each document has.
        target, source: their tokens.
    """

    data: UInt8[np.ndarray, "N"]
    base: Int[np.ndarray, "B"]
    lengths: Int[np.ndarray, "B"]
    target: Tokens
    source: Tokens

    @classmethod
    def of(cls, documents: Sequence[Document], target: ByteTokenizer, source: ByteTokenizer) -> Axis:
        """Tokenise documents with both tokenizers."""
        data = np.frombuffer(b"\0".join(document.trained_bytes for document in documents), np.uint8)
        lengths = np.array([len(document.trained_bytes) for document in documents], np.int64)
        base = np.cumsum(lengths + 1) - lengths - 1
        sides = (Tokens.of(side.encode_many(documents), base, side.vocabulary) for side in (target, source))
        return cls(data, base, lengths, *sides)

    @property
    def num_bytes(self) -> int:
        """Return the number of bytes of all documents."""
        return int(self.lengths.sum())

    @cached_property
    def joined(self) -> Bool[np.ndarray, "T"]:
        """Return which target tokens start where a source token starts: what the plain join teaches."""
        return np.isin(self.target.starts, self.source.starts)

    @cached_property
    def lawful(self) -> Bool[np.ndarray, "T"]:
        """Return which target tokens lie wholly on source tokens: what the byte law teaches.

        A token that is nothing but a dummy prefix counts where a source token there has a dummy prefix, too.
        """
        before, width = self.source.covered_before(len(self.data)), self.target.ends - self.target.starts
        whole = before[self.target.ends] - before[self.target.starts] == width
        return whole & ((width > 0) | np.isin(self.target.starts, self.source.starts[self.source.prefix > 0]))

    @cached_property
    def same(self) -> Bool[np.ndarray, "T"]:
        """Return which target tokens cover the very bytes of one source token."""
        wide = len(self.data) + 1
        spans = (side.starts * wide + side.ends for side in (self.target, self.source))
        return np.isin(*spans)

    @cached_property
    def spans(self) -> Spans:
        """Return the chunks that both tokenizations cut out, and what lies between them: text that one of them cannot represent."""
        sides = (self.target, self.source)
        chunks = Chunks.between(self.source.starts, self.source.ends, self.target.starts, self.target.ends)
        left, right = np.append(self.base, chunks.byte_end), np.append(chunks.byte_start, self.base + self.lengths)
        left.sort()
        right.sort()
        gap = left < right
        start, end = np.append(chunks.byte_start, left[gap]), np.append(chunks.byte_end, right[gap])
        masked = np.arange(len(start)) >= len(chunks)
        order = np.argsort(start, kind="stable")
        start, end = start[order], end[order]
        inside = (np.searchsorted(start, side.starts, side="right") - 1 for side in sides)
        num_target, num_source = (np.bincount(place, minlength=len(start)) for place in inside)
        return Spans(start, end, num_target, num_source, masked[order])

    @property
    def lost_bytes(self) -> int:
        """Return the number of bytes that the target or the source cannot represent."""
        both = np.minimum(*(np.diff(side.covered_before(len(self.data))) for side in (self.target, self.source)))
        return self.num_bytes - int(both.sum())


@dataclass(frozen=True)
class Spans:
    """Spans of bytes that cover all documents, in order: chunks, and masked text between them.

    Attributes:
        start, end: of each span, on the axis.
        num_target, num_source: tokens that begin in it.
        masked: True where a tokenizer cannot represent some of its bytes.
    """

    start: Int[np.ndarray, "N"]
    end: Int[np.ndarray, "N"]
    num_target: Int[np.ndarray, "N"]
    num_source: Int[np.ndarray, "N"]
    masked: Bool[np.ndarray, "N"]

    @cached_property
    def kind(self) -> Int[np.ndarray, "N"]:
        """Return the place of each span's kind in ``KINDS``."""
        return np.where(self.masked, 4, 2 * (self.num_target > 1) + (self.num_source > 1))

    @cached_property
    def num_tokens(self) -> Int[np.ndarray, "N"]:
        """Return the tokens of both sides: how bad a span is."""
        return self.num_target + self.num_source

    def by_kind(self) -> list[dict[str, Any]]:
        """Return the spans, tokens and bytes of each kind."""
        columns = {"spans": np.ones(len(self.start)), "target_tokens": self.num_target, "source_tokens": self.num_source,
                   "bytes": self.end - self.start}  # fmt: skip
        sums = {name: np.bincount(self.kind, column, len(KINDS)).astype(np.int64).tolist() for name, column in columns.items()}
        return [{"kind": kind} | {name: values[n] for name, values in sums.items()} for n, kind in enumerate(KINDS)]
