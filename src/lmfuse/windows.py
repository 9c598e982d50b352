"""Documents cut into windows that every model can read whole.

A window ends at a blank line, else at a line's end, else before a space, else between two characters, never inside one: the first of
these that leaves it reasonably long. Text is tokenised once to see how far each model reaches, and every window once more to prove that
it fits, because a tokenizer may cut the same bytes differently at the beginning of a text.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from jaxtyping import Int

from lmfuse.bytes import ByteTokenizer
from lmfuse.conversation_windows import ConversationFitter
from lmfuse.errors import TextError
from lmfuse.types import Document, Encoding, Segment, UnfitRule

BLOCK_BYTES = 2**18  # longer documents are cut here first
GROUP_BYTES = 2**23  # of documents that are tokenised together: feeds all cores, bounds memory
SLACK_TOKENS = 2  # what a window may have more on its own than inside its text, usually: a dummy prefix, a word cut off from its space
MAX_CLUSTER = 32  # characters that are taken for one at most, such as a letter and its accents
JOINER = "\u200d"
MARKS = (("paragraph", b"\n\n", 2), ("line", b"\n", 1), ("space", b" ", 0), ("space", b"\t", 0))  # a cut is so many bytes after its mark


@dataclass(frozen=True)
class Windows:
    """Windows in the order of their documents, and what cutting them cost.

    Counters: ``documents_cut``, ``cuts_at_paragraph``, ``cuts_at_line``, ``cuts_at_space``, ``cuts_at_character`` (inside a word), and
    ``windows_halved``: a window had more tokens on its own than seen from its document. Where there are conversations, those of
    ``ConversationFitter``, too; ``left_out`` says of each that is left out why.
    """

    documents: list[Document]
    counters: dict[str, int]
    left_out: tuple[str, ...] = ()


def fit_windows(
    documents: Sequence[Document],
    tokenizers: Sequence[ByteTokenizer],
    max_tokens: Sequence[int],
    *,
    max_bytes: int | None = None,
    min_bytes: int = 64,
    unfit: UnfitRule = "stop",
) -> Windows:
    """Cut documents into windows of at most ``max_tokens[i]`` tokens of ``tokenizers[i]``, start token included.

    The windows of a document, joined, are the document, byte for byte. A cut that would leave a rest of less than ``min_bytes`` is
    moved forward where that is possible. Documents that fit stay as they are, short or not. A window keeps its document's domain; its
    origin is the document's with ``#first-end``, the bytes it covers.

    A conversation is never cut: it keeps its longest beginning that ends with a trained segment and fits, or is left out.

    Raises:
        TextError: a single character needs more tokens than a model can read.
        InputError: a chat template cannot express a conversation (unless ``unfit`` is ``leave_out``), or is itself at fault.
        TokenizerError: there are conversations, and a tokenizer has no chat template.
    """
    if not tokenizers or len(tokenizers) != len(max_tokens):
        raise ValueError(f"{len(tokenizers)} tokenizers, {len(max_tokens)} limits")
    cutter, fitter = _Cutter(tokenizers, max_tokens, max_bytes, min_bytes), ConversationFitter(tokenizers, max_tokens, unfit)
    windows: list[Document] = []
    for talks, run in groupby(documents, key=lambda document: document.is_conversation):
        for group in _groups(list(run)):
            windows += fitter.fit(group) if talks else cutter.windows(group)
    return Windows(windows, dict(cutter.counters) | fitter.counters, tuple(fitter.left_out))


def origin_of(window: Document) -> str:
    """Return the origin of the document that a window was cut from; a document that has none is its own.

    >>> origin_of(Document.plain("of a town.", origin="wiki.txt:17#120-130"))
    'wiki.txt:17'
    """
    return re.sub(r"#\d+-\d+$", "", window.origin) or window.id


def _groups(documents: Sequence[Document]) -> Iterator[list[Document]]:
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += len(document.trained_bytes)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    yield group


@dataclass(frozen=True, order=True)
class _Range:
    """A stretch of a document of the group: a window, once it is known to fit."""

    document: int
    start: int
    end: int


class _Cutter:
    def __init__(self, tokenizers: Sequence[ByteTokenizer], max_tokens: Sequence[int], max_bytes: int | None, min_bytes: int) -> None:
        self.tokenizers, self.min_bytes = tokenizers, min_bytes
        self.max_tokens = np.array(max_tokens, np.int64)
        self.max_bytes = min(max_bytes or BLOCK_BYTES, BLOCK_BYTES)
        self.overhead = np.array([len(tokenizer.encode(Document.plain("")).ids) for tokenizer in tokenizers], np.int64)
        if np.any(self.max_tokens <= self.overhead):
            raise TextError(f"windows of {min(max_tokens)} tokens leave no room for text after the start token", hint="allow more tokens")
        self.counters = Counter(dict.fromkeys(["documents_cut", *(f"cuts_at_{kind}" for kind, _, _ in MARKS), "cuts_at_character"], 0))
        self.counters["windows_halved"] = 0

    def windows(self, documents: Sequence[Document]) -> Iterator[Document]:
        for document in documents:
            if len(document.segments) != 1 or not document.segments[0].trained:
                raise TextError(
                    f"{document.origin or document.id}: {len(document.segments)} segments, expected one",
                    hint="join them, or name their roles",
                )
        data = [document.trained_bytes for document in documents]
        blocks = [block for number in range(len(documents)) for block in self.blocks(data[number], number)]
        done: list[_Range] = []
        waiting: list[_Range] = []
        for block, encodings in zip(blocks, self.encode(data, blocks), strict=True):
            if block.end - block.start <= self.max_bytes and self.excess(encodings) <= 0:
                done.append(block)
            else:
                waiting += self.cut_block(data[block.document], block, encodings)
        while waiting:
            found = list(zip(waiting, self.encode(data, waiting), strict=True))
            done += [window for window, encodings in found if self.excess(encodings) <= 0]
            waiting = [
                half for window, encodings in found if self.excess(encodings) > 0 for half in self.halves(data[window.document], window)
            ]
        for window in sorted(done):
            document = documents[window.document]
            if window.end - window.start == len(data[window.document]):
                yield document
                continue
            self.counters["documents_cut"] += window.start == 0
            segment = Segment(data[window.document][window.start : window.end].decode(), document.segments[0].role)
            yield replace(document, segments=(segment,), origin=f"{document.origin}#{window.start}-{window.end}")

    def encode(self, data: Sequence[bytes], ranges: Sequence[_Range]) -> list[tuple[Encoding, ...]]:
        """Return every tokenizer's encoding of every range."""
        texts = [Document.plain(data[part.document][part.start : part.end].decode()) for part in ranges]
        return list(zip(*(tokenizer.encode_many(texts) for tokenizer in self.tokenizers), strict=True))

    def excess(self, encodings: tuple[Encoding, ...]) -> int:
        """Return by how many tokens a text is too long for the model that it is longest for."""
        return int(np.max([len(encoding.ids) for encoding in encodings] - self.max_tokens))

    def blocks(self, data: bytes, number: int) -> Iterator[_Range]:
        start = 0
        while len(data) - start > BLOCK_BYTES:
            end = self.cut(data, start, start + BLOCK_BYTES)
            yield _Range(number, start, end)
            start = end
        yield _Range(number, start, len(data))

    def cut_block(self, data: bytes, block: _Range, encodings: tuple[Encoding, ...]) -> Iterator[_Range]:
        """Yield windows that look as if they fit, seen from the block's own tokens."""
        places = [_places(encoding)[skip:] + block.start for encoding, skip in zip(encodings, self.overhead, strict=True)]
        budget = np.maximum(1, self.max_tokens - self.overhead - SLACK_TOKENS)
        start = block.start
        while start < block.end:
            beyond = [np.searchsorted(place, start) + tokens for place, tokens in zip(places, budget, strict=True)]
            limits = [int(place[token]) for place, token in zip(places, beyond, strict=True) if token < len(place)]
            limit = min([*limits, start + self.max_bytes, block.end])
            end = block.end
            if limit < block.end:
                moved = block.end - self.min_bytes  # where a rest of min_bytes would begin
                end = self.cut(data, start, min(limit, moved) if moved >= start + self.min_bytes else limit)
            yield _Range(block.document, start, end)
            start = end

    def halves(self, data: bytes, window: _Range) -> tuple[_Range, _Range]:
        if character_end(data, window.start) >= window.end:
            raise TextError("one character takes more tokens than a model can read", hint="allow more tokens")
        self.counters["windows_halved"] += 1
        middle = self.cut(data, window.start, (window.start + window.end + 1) // 2)
        return _Range(window.document, window.start, middle), _Range(window.document, middle, window.end)

    def cut(self, data: bytes, start: int, limit: int) -> int:
        end, kind = best_cut(data, start, limit)
        self.counters[f"cuts_at_{kind}"] += 1
        return end


def _places(encoding: Encoding) -> Int[np.ndarray, "T"]:
    """Return for each token the byte at which it stands; one without text of its own stands where the one before it ended."""
    ends = np.maximum.accumulate(np.concatenate([[0], encoding.ends[:-1]]))
    return np.maximum.accumulate(np.where(encoding.starts >= 0, encoding.starts, ends)).astype(np.int64)


# ------------------------------------------------------------------------------------------------------------ where to cut


def best_cut(data: bytes, start: int, limit: int) -> tuple[int, str]:
    """Return the best place for a window's end after ``start`` and up to ``limit``, and what stands there.

    >>> best_cut(b"one two\\n\\nthree four five", 0, 14), best_cut(b"one two\\n\\nthree four five", 4, 22)
    ((9, 'paragraph'), (19, 'space'))
    """
    limit = max(character_start(data, limit), character_end(data, start))
    for kind, mark, skip in MARKS:
        least = start + (limit - start) // (2 if skip else 4)  # rather a word's end far back than the middle of a word
        end = data.rfind(mark, least, limit + (not skip)) + skip
        while end - skip > start and joins(data, end):
            end = data.rfind(mark, least, end - 1) + skip
        if end - skip > start:
            return end, kind
    end = limit
    for _ in range(MAX_CLUSTER):
        if not joins(data, end):
            return end, "character"
        end = character_start(data, end - 1)
        if end <= start:
            break
    return limit, "character"


def character_start(data: bytes, place: int) -> int:
    """Return the byte at which the UTF-8 character around ``place`` begins; the end of the data beyond it."""
    if place >= len(data):
        return len(data)
    while data[place] & 0xC0 == 0x80:
        place -= 1
    return place


def character_end(data: bytes, place: int) -> int:
    """Return the byte after the UTF-8 character that begins at ``place``."""
    place += 1
    while place < len(data) and data[place] & 0xC0 == 0x80:
        place += 1
    return place


def joins(data: bytes, place: int) -> bool:
    """Return whether the characters on both sides of a byte are seen as one: accents, emoji sequences, flags, CR LF.

    >>> joins("e\\u0301".encode(), 1), joins(b"ab", 1)
    (True, False)
    """
    if not 0 < place < len(data):
        return False
    if data[place] < 0x80:
        return data[place - 1 : place + 1] == b"\r\n"
    before = data[character_start(data, place - 1) : place].decode()
    after = data[place : character_end(data, place)].decode()
    is_flag = all("\U0001f1e6" <= character <= "\U0001f1ff" for character in (before, after))
    is_modifier = "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f"
    return is_flag or is_modifier or JOINER in (before, after) or unicodedata.category(after).startswith("M")
