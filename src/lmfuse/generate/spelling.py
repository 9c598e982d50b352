"""How a tokenizer goes on with a text that it has already cut into tokens: only a few words are encoded again, whatever the text's length."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from lmfuse.bytes import ByteTokenizer

TAIL_WORDS, TAIL_BYTES = 4, 64  # that are encoded again: so many words, but no more bytes than that (and the rest of a token)


@dataclass(frozen=True)
class Spelled:
    """The tokens of what follows: the first ``keep`` tokens of the text stay as they are, ``ids`` follow and end at the bytes ``ends``."""

    keep: int
    ids: tuple[int, ...]
    ends: tuple[int, ...]


class Spelling:
    """One tokenizer, and what stands before the text that it is to go on with.

    Attributes:
        tokenizer: the tokenizer.
        before: the end of what precedes the text where that is plain text: words that begin there are cut as they should be. A single space
            where the tokenizer writes one that is not part of the text (a dummy prefix).
        dummy: whether ``before`` is such a space: the first token then writes it.
    """

    def __init__(self, tokenizer: ByteTokenizer, before: bytes = b"", *, dummy: bool = False) -> None:
        assert not dummy or before == b" "
        self.tokenizer, self.before, self.dummy = tokenizer, before, dummy

    def go_on(self, text: bytes, ends: Sequence[int], more: Sequence[bytes]) -> list[Spelled | None]:
        """Return for each continuation its tokens behind a text; None where the tokenizer cannot write it.

        Where the tokenizer would join the end of the text and the beginning of the continuation into one token, the text's last tokens are
        replaced (``keep`` is less than all of them); never those of ``before``.

        Args:
            text: the text so far.
            ends: the byte at which each of its tokens ends.
            more: what follows it, each whole characters.
        """
        start = tail_start(text, ends)
        lead = b"" if start else self.before
        wholes = [lead + text[start:] + each for each in more]
        found = []
        for whole, ids in zip(wholes, self.tokenizer.pieces(wholes), strict=True):
            spelled = self._behind(text, ends, start, lead, ids) if self._writes(ids, whole) else None
            if spelled is None and lead:  # the tokenizer joins the text with what precedes it, or cannot write that
                bare = whole[len(lead) :]
                ids = self.tokenizer.pieces([bare])[0]
                spelled = self._behind(text, ends, start, b"", ids) if self._writes(ids, bare) else None
            found.append(spelled)
        return found

    def cuts(self, text: bytes, ends: Sequence[int], more: bytes) -> frozenset[int]:
        """Return the bytes of a continuation behind which the tokenizer would end a token; none where it cannot write it."""
        spelled = self.go_on(text, ends, [more])[0]
        return frozenset() if spelled is None else frozenset(end - len(text) for end in spelled.ends)

    def _writes(self, ids: Sequence[int], data: bytes) -> bool:
        return b"".join(map(self.tokenizer.vocabulary.bytes_of, ids)) == data

    def _behind(self, text: bytes, ends: Sequence[int], start: int, lead: bytes, ids: Sequence[int]) -> Spelled | None:
        """Keep the text's tokens up to the last place where both they and the new ones end; None where there is no such place."""
        lengths = self.tokenizer.vocabulary.lengths
        new_ends = list(accumulate((int(lengths[token_id]) for token_id in ids), initial=start - len(lead)))
        first = bisect_left(ends, start + 1) if start else 0
        old = {new_ends[0] if lead and self.dummy else start: first}
        old |= {end: place + 1 for place, end in enumerate(ends[first:], first)}
        common = [place for place, end in enumerate(new_ends) if end <= len(text) and end in old]
        if not common:
            return None
        return Spelled(old[new_ends[common[-1]]], tuple(ids[common[-1] :]), tuple(new_ends[common[-1] + 1 :]))


def tail_start(text: bytes, ends: Sequence[int]) -> int:
    """Return the byte from which a text is encoded again: where one of its tokens begins with a whole character, some words before its end.

    >>> tail_start(b"a few words of some text", [1, 5, 11, 14, 19, 24]), tail_start(b"short text", [5, 10])
    (5, 0)
    """
    words = 0
    for place in range(len(ends) - 2, -1, -1):
        start = ends[place]
        if start <= 0:
            break
        words += text[start : start + 1].isspace()
        if (words >= TAIL_WORDS or len(text) - start >= TAIL_BYTES) and text[start] & 0xC0 != 0x80:
            return start
    return 0
