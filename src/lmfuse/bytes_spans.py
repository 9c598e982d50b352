"""Which bytes of a text each token stands for: the bytes that the tokens write are walked against the bytes of the text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int, Integer, UInt8

from lmfuse.types import Vocabulary

SPACE = 0x20

Spans = tuple[Int[np.ndarray, "T"], Int[np.ndarray, "T"]]  # starts and ends, -1 for a token without text


def written_bytes(vocabulary: Vocabulary, ids: Integer[np.ndarray, "T"]) -> UInt8[np.ndarray, "N"]:
    """Return the bytes of the tokens, one after the other.

    >>> words = Vocabulary.from_tokens([b"", b"ab", b"c"])
    >>> written_bytes(words, np.array([2, 0, 1])).tobytes()
    b'cab'
    """
    lengths = vocabulary.lengths[ids]
    shift = vocabulary.offsets[ids] - (np.cumsum(lengths) - lengths)  # from a byte's place in the text to its place in `flat`
    written: UInt8[np.ndarray, "N"] = vocabulary.flat[np.arange(lengths.sum()) + np.repeat(shift, lengths)]
    return written


def find_spans(
    vocabulary: Vocabulary,
    ids: Int[np.ndarray, "T"],
    data: UInt8[np.ndarray, "N"],
    absent: Bool[np.ndarray, "256"],
    offsets: Callable[[], Integer[np.ndarray, "T 2"]],
) -> Spans:
    """Return starts and ends in the quickest way that is right; ``offsets`` is asked only where the tokens do not write the text."""
    spans = exact_spans(vocabulary, ids, data)
    if spans is None and absent.any():
        spans = spans_around(vocabulary, ids, data, absent)
    return checked_spans(vocabulary, ids, data, offsets()) if spans is None else spans


def exact_spans(vocabulary: Vocabulary, ids: Int[np.ndarray, "T"], data: UInt8[np.ndarray, "N"]) -> Spans | None:
    """Return starts and ends where the tokens write exactly the text, with or without a space before it (dummy prefix); else None.

    >>> llama = Vocabulary.from_tokens([b" a", b"b"])
    >>> [part.tolist() for part in exact_spans(llama, np.array([0, 1]), np.frombuffer(b"ab", np.uint8))]
    [[0, 1], [1, 2]]
    """
    lengths = vocabulary.lengths[ids]
    ends = np.cumsum(lengths)
    surplus = (int(ends[-1]) if len(ends) else 0) - len(data)
    if surplus not in (0, 1):
        return None
    written = written_bytes(vocabulary, ids)
    if not np.array_equal(written[surplus:], data) or (surplus and written[0] != SPACE):
        return None
    starts = np.maximum(ends - lengths - surplus, 0)
    return _silenced(starts, np.maximum(ends - surplus, 0), lengths > 0)


def spans_around(
    vocabulary: Vocabulary, ids: Int[np.ndarray, "T"], data: UInt8[np.ndarray, "N"], absent: Bool[np.ndarray, 256]
) -> Spans | None:
    """Return starts and ends where the tokens write exactly the text without its absent bytes (byte values that have no token); else None.

    A token that goes on behind such a hole is silent.

    >>> small, text = Vocabulary.from_tokens([b"a", b"bb"]), np.frombuffer(b"a?abb", np.uint8)
    >>> [part.tolist() for part in spans_around(small, np.array([0, 0, 1]), text, np.arange(256) == ord("?"))]
    [[0, 2, 3], [1, 3, 5]]
    """
    place = np.flatnonzero(~absent[data])
    spans = exact_spans(vocabulary, ids, data[place])
    if spans is None:
        return None
    starts, ends = spans
    held, speaks = ends > starts, ends >= 0
    first, last = place[starts[held]], place[ends[held] - 1]
    speaks[held] = last + 1 - first == (ends - starts)[held]
    starts[held], ends[held] = first, last + 1
    return _silenced(starts, ends, speaks)


def checked_spans(
    vocabulary: Vocabulary,
    ids: Int[np.ndarray, "T"],
    data: UInt8[np.ndarray, "N"],
    offsets: Integer[np.ndarray, "T 2"],
) -> Spans:
    """Return starts and ends of the tokens that write what the text has where they stand, -1 for all others.

    Tokens that share a character (its bytes, or a merge of it) are judged together. A token may also own bytes of the gap before it:
    Metaspace after a whitespace split and WordPiece write the space that their offsets leave out.

    Args:
        vocabulary: what the ids write.
        ids: the tokens.
        data: the bytes of the text.
        offsets: for each token its first character and the one after its last, as the tokenizer counts them.
    """
    if not len(ids):
        return ids, ids
    char_starts = np.append(np.flatnonzero((data & 0xC0) != 0x80), len(data))
    lo, hi = char_starts[np.minimum(offsets, len(char_starts) - 1)].T
    reached = np.maximum.accumulate(hi)
    first = np.flatnonzero(np.append(True, lo[1:] >= reached[:-1]))  # the first token of each group
    group = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(ids))))
    start, end = lo[first], np.maximum.reduceat(hi, first)
    gap = start - np.append(0, end[:-1])
    lengths = vocabulary.lengths[ids]
    group_length = np.add.reduceat(lengths, first)
    extra = group_length - (end - start)  # bytes written beyond the span: from the gap, or a dummy prefix
    dummy = (np.arange(len(first)) == 0) & (start == 0) & (extra == 1)
    exact = ((extra >= 0) & (extra <= gap)) | dummy
    exact &= _equal_bytes(vocabulary, ids, data, group_length, end, dummy)
    token_end = np.cumsum(lengths) - (np.cumsum(group_length) - end)[group]  # the group's last byte is written at `end`
    starts = np.maximum(token_end - lengths, 0)
    return _silenced(starts, np.maximum(token_end, 0), exact[group] & (lengths > 0))


def _equal_bytes(
    vocabulary: Vocabulary,
    ids: Int[np.ndarray, "T"],
    data: UInt8[np.ndarray, "N"],
    group_length: Int[np.ndarray, "G"],
    end: Int[np.ndarray, "G"],
    dummy: Bool[np.ndarray, "G"],
) -> Bool[np.ndarray, "G"]:
    """Return for each of G groups whether the bytes it writes are those that end at ``end``; a dummy prefix must be a space."""
    written = written_bytes(vocabulary, ids)
    group = np.repeat(np.arange(len(end)), group_length)
    place = np.arange(len(written)) + (end - np.cumsum(group_length))[group]
    inside = (place >= 0) & (place < len(data))
    same = np.zeros(len(written), bool)
    same[inside] = written[inside] == data[place[inside]]
    same |= ~inside & dummy[group] & (written == SPACE)
    right: Bool[np.ndarray, "G"] = np.bincount(group, ~same, minlength=len(end)) == 0
    return right


def _silenced(starts: Int[np.ndarray, "T"], ends: Int[np.ndarray, "T"], speaks: Bool[np.ndarray, "T"]) -> Spans:
    return np.where(speaks, starts, -1), np.where(speaks, ends, -1)
