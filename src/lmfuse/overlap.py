"""Evaluation text that also stands in the training text, found by long shared spans.

A span is 13 words in a row, case and punctuation aside, as in the contamination analysis of GPT-3 (arXiv:2005.14165, appendix C) and in
lm-evaluation-harness. A conversation is looked for whole, but for its system message, and once more by its answers and by its questions
alone; the largest share counts, so that a known question with another answer is found, too. Words and spans are hashed to 64 bits in numpy
(a polynomial modulo 2**64, mixed), the evaluation text's spans are looked up for every span of the training text, in batches: memory
depends on the evaluation text, not on the training text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8, UInt64

from lmfuse.errors import TextError
from lmfuse.types import Document

BATCH_BYTES = 2**21
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2**64
FILTER_BITS = 22
WORD = np.zeros(256, bool)
WORD[np.frombuffer(b"abcdefghijklmnopqrstuvwxyz0123456789", np.uint8)] = True
WORD[0x80:] = True


@dataclass(frozen=True)
class Overlap:
    """An evaluation document whose text stands in the training text.

    Attributes:
        evaluation: its origin.
        train: the origin of the training document that shares most with it.
        share: the share of its different spans that stand anywhere in the training text; 1 for an equal document.
        evaluation_id: its id.
        train_id: the id of that training document.
    """

    evaluation: str
    train: str
    share: float
    evaluation_id: str
    train_id: str


@dataclass(frozen=True)
class _Spans:
    """The spans of some documents: their hashes, and the index of the document that each stands in."""

    hashes: UInt64[np.ndarray, "N"]
    documents: Int[np.ndarray, "N"]


def find_overlap(train: Sequence[Document], evaluation: Sequence[Document], *, threshold: float = 0.5, words: int = 13) -> list[Overlap]:
    """Return the evaluation documents of which at least ``threshold`` of the spans of ``words`` words stand in the training text.

    A document of fewer words is one span: it overlaps with a training document that has the same words and no other. Equal documents
    always overlap; a share of 0 never does. The questions and the answers of a conversation count by themselves from ``words`` words on.
    """
    parts = [_parts(document, words) for document in evaluation]
    bounds = np.cumsum([0, *map(len, parts)]).tolist()
    spans = list(_batches([part for some in parts for part in some], words))
    hashes = np.concatenate([part.hashes for part in spans]) if spans else np.zeros(0, np.uint64)
    documents = np.concatenate([part.documents for part in spans]) if spans else np.zeros(0, np.int64)
    known = np.unique(hashes)
    where = _first_seen(known, train, words)[np.searchsorted(known, hashes)]  # for each span: a training document that has it, or -1
    total = np.bincount(documents, minlength=bounds[-1])
    shares = np.bincount(documents, weights=where >= 0, minlength=bounds[-1]) / np.maximum(total, 1)
    same = {document.id: number for number, document in reversed(list(enumerate(train)))}
    found = []
    for number, document in enumerate(evaluation):
        part = bounds[number] + int(shares[bounds[number] : bounds[number + 1]].argmax())
        share = 1.0 if document.id in same else float(shares[part])
        if share and share >= threshold:
            seen = where[(documents == part) & (where >= 0)]
            other = train[same[document.id] if document.id in same else int(np.bincount(seen).argmax())]
            found.append(Overlap(document.origin, other.origin, share, document.id, other.id))
    return found


def _parts(document: Document, words: int) -> list[Document]:
    """Return what is looked for of an evaluation document: all of it, and of a conversation its questions and answers, unless they are short."""
    if not document.is_conversation:
        return [document]
    sides = (" ".join(s.text for s in document.segments if s.trained == trained and s.role != "system") for trained in (True, False))
    return [document, *(Document.plain(text) for text in sides if _num_words(text) >= words)]


def _text(document: Document) -> str:
    """Return what is compared of a document: all of it that is trained, of a conversation all but the system message."""
    talks = document.is_conversation
    return " ".join(segment.text for segment in document.segments if (segment.role != "system" if talks else segment.trained))


def _first_seen(known: UInt64[np.ndarray, "N"], train: Sequence[Document], words: int) -> Int[np.ndarray, "N"]:
    """Return for each of the sorted hashes the first training document that has this span, or -1."""
    first = np.full(len(known), -1, np.int64)
    maybe = np.zeros(1 << FILTER_BITS, bool)  # rules out nearly everything before the search
    maybe[_bucket(known)] = True
    for part in _batches(train, words) if len(known) else ():
        index = np.flatnonzero(maybe[_bucket(part.hashes)])
        place = np.minimum(np.searchsorted(known, part.hashes[index]), len(known) - 1)
        hit = known[place] == part.hashes[index]
        place, seen_in = place[hit][::-1], part.documents[index][hit][::-1]  # backwards: the first one is written last
        new = first[place] < 0
        first[place[new]] = seen_in[new]
    return first


def refuse_overlap(train: Sequence[Document], evaluation: Sequence[Document], *, max_share: float = 0.5, words: int = 13) -> None:
    """Refuse evaluation text that the model is trained on.

    Raises:
        TextError: names how many evaluation documents overlap, and the worst one with the training document.
    """
    found = find_overlap(train, evaluation, threshold=max_share, words=words)
    if found:
        worst = max(found, key=lambda overlap: overlap.share)
        many = f"{len(found)} of {len(evaluation)} evaluation documents also stand in the training text"
        message = f"{many}, such as {worst.evaluation!r} in {worst.train!r} ({worst.share:.0%} of its {words}-word spans)"
        raise TextError(message, hint="take other evaluation text, or remove these documents from one side")


# -------------------------------------------------------------------------------------------------------- words and spans


def _batches(documents: Sequence[Document], words: int) -> Iterator[_Spans]:
    """Yield the spans of all documents, some megabytes of text at a time."""
    texts: list[bytes] = []
    first = size = 0
    for number, document in enumerate(documents):
        texts.append(_normalise(_text(document)))
        size += len(texts[-1]) + 1
        if size > BATCH_BYTES or number == len(documents) - 1:
            yield _spans(texts, first, words)
            texts, first, size = [], number + 1, 0


def _normalise(text: str) -> bytes:
    """Return lower-case text in which ASCII letters, digits and non-ASCII word characters are all that counts."""
    text = text.casefold()
    return text.encode() if text.isascii() else re.sub(r"[^\w]+", " ", text).encode()


def _word_bounds(data: UInt8[np.ndarray, "N"]) -> tuple[Int[np.ndarray, "W"], Int[np.ndarray, "W"]]:
    """Return where the words of a text between two spaces begin and end."""
    here, before = WORD[data[1:]], WORD[data[:-1]]
    new = (data[1:] >= 0xC0) | ((data[1:] < 0x80) & (data[:-1] >= 0x80))  # scripts without spaces: a character is a word
    return np.flatnonzero(here & (~before | new)) + 1, np.flatnonzero(before & (~here | new)) + 1


def _num_words(text: str) -> int:
    return len(_word_bounds(np.frombuffer(b" " + _normalise(text) + b" ", np.uint8))[0])


def _spans(texts: list[bytes], first: int, words: int) -> _Spans:
    data = np.frombuffer(b" " + b" ".join(texts) + b" ", np.uint8)
    start, end = _word_bounds(data)
    word = _hash_runs(data, start, end)
    bounds = np.cumsum([1, *(len(text) + 1 for text in texts)])
    document = np.searchsorted(bounds, start, "right") - 1
    counts = np.bincount(document, minlength=len(texts))
    first_word = np.cumsum(counts) - counts
    begins = {length: first_word[counts == length] for length in range(1, words)}
    begins[words] = np.flatnonzero(document[: max(0, len(word) - words + 1)] == document[words - 1 :])
    hashes = [_mix(_chain(word, begin, length)) for length, begin in begins.items()]
    return _Spans(np.concatenate(hashes), np.concatenate([document[begin] for begin in begins.values()]) + first)


def _chain(word: UInt64[np.ndarray, "N"], begin: Int[np.ndarray, "M"], length: int) -> UInt64[np.ndarray, "M"]:
    """Return a hash of ``length`` words from each beginning on."""
    value = np.full(len(begin), length, np.uint64)
    for step in range(length):
        value = value * BASE + word[begin + step]
    return value


def _hash_runs(data: np.ndarray, start: Int[np.ndarray, "N"], end: Int[np.ndarray, "N"]) -> UInt64[np.ndarray, "N"]:
    """Return a hash of each run of bytes: differences of one running polynomial, brought to the same power."""
    powers = np.cumprod(np.concatenate([[np.uint64(1)], np.full(len(data), BASE)]), dtype=np.uint64)
    inverse = np.cumprod(np.concatenate([[np.uint64(1)], np.full(len(data), np.uint64(pow(int(BASE), -1, 2**64)))]), dtype=np.uint64)
    running = np.concatenate([[np.uint64(0)], np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers[:-1], dtype=np.uint64)])
    return _mix((running[end] - running[start]) * inverse[start])


def _mix(value: UInt64[np.ndarray, "N"]) -> UInt64[np.ndarray, "N"]:
    """Spread every bit over all 64 (the finaliser of SplitMix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64[np.ndarray, "N"] = value ^ (value >> np.uint64(31))
    return mixed


def _bucket(hashes: UInt64[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    return (hashes >> np.uint64(64 - FILTER_BITS)).astype(np.int64)
