"""Maps and published rules on the ids that a text uses: the whole maps of large vocabularies take minutes, a text needs a part of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from lmfuse.align.dtw import Dtw
from lmfuse.align.exact import exact_map
from lmfuse.align.first_piece import first_piece_map
from lmfuse.align.join import MapName
from lmfuse.align.min_ed import min_ed_map
from lmfuse.align.pair import Pair, build_pair
from lmfuse.align.pieces import pieces_map
from lmfuse.bytes import ByteTokenizer
from lmfuse.types import Alignment, Document, Encoding, Rows, TopK, Vocabulary, VocabularyMap

STRETCHES, STRETCH_BYTES = 24, 1000  # what dynamic time warping is tried on: its time grows with the square of the length

Maker = Callable[[Vocabulary, ByteTokenizer], VocabularyMap]
MAPS: dict[MapName, Maker] = {
    "exact": lambda source, target: exact_map(source, target.vocabulary),
    "first_piece": lambda source, target: first_piece_map(source, target.vocabulary, target.first_pieces),
    "pieces": lambda source, target: pieces_map(source, target.vocabulary, target.pieces),
    "min_ed": lambda source, target: min_ed_map(source, target.vocabulary, on="bytes"),
}


def restricted(vocabulary: Vocabulary, ids: Int[np.ndarray, "N"]) -> Vocabulary:
    """Return a vocabulary of some ids only: token ``i`` is the old token ``ids[i]``. Every map treats it as before.

    >>> few = restricted(Vocabulary.from_tokens([b"", b"a", b"b"], control={"eos": 0}), np.array([0, 2]))
    >>> few.bytes_of(1), few.control
    (b'b', {'eos': 0})
    """
    place = {int(token_id): n for n, token_id in enumerate(ids.tolist())}
    control = {name: place[token_id] for name, token_id in vocabulary.control.items() if token_id in place}
    written = [vocabulary.bytes_of(token_id) for token_id in place]
    return Vocabulary.from_tokens(written, strings=[vocabulary.strings[token_id] for token_id in place], control=control)


def restricted_rows(rows: Rows, ids: Int[np.ndarray, "N"]) -> Rows:
    """Return rows over the vocabulary of ``ids``, ascending, which must be all that they hold."""
    topk = replace(rows.topk, ids=_places(rows.topk.ids, ids), vocab_size=len(ids))
    return replace(rows, next_ids=_places(rows.next_ids, ids), topk=topk)


def _places(found: Integer[np.ndarray, "*N"], ids: Int[np.ndarray, "N"]) -> Int[np.ndarray, "*N"]:
    return np.searchsorted(ids, found).astype(np.int64)


def certain_rows(encoding: Encoding, vocab_size: int) -> Rows:
    """Return the rows of a source that is certain of what followed: for rules that look at positions only."""
    text = encoding.starts >= 0
    ids = encoding.ids[text]
    starts, ends = encoding.starts[text], encoding.ends[text]
    return Rows(starts, ends, ids, np.zeros(len(ids), np.float32), TopK.certain(ids, 1, vocab_size))


def maps_by_use(target: ByteTokenizer, source: ByteTokenizer, ids: Int[np.ndarray, "N"]) -> list[dict[str, Any]]:
    """Return for each map the share of some source tokens, as often as they occur, that it sends to a target token."""
    if not len(ids):
        return [{"name": name, "tokens": 0.0, "ids": 0.0} for name in MAPS]
    used, count = np.unique(ids, return_counts=True)
    few = restricted(source.vocabulary, used)
    found = [(name, make(few, target).single() >= 0) for name, make in MAPS.items()]
    return [
        {"name": name, "tokens": _share(int(count[mapped].sum()), len(ids)), "ids": _share(int(mapped.sum()), len(used))}
        for name, mapped in found
    ]


def _share(part: int, whole: int) -> float:
    return part / max(whole, 1)


def stretches(documents: Sequence[Document], count: int = STRETCHES, num_bytes: int = STRETCH_BYTES) -> list[Document]:
    """Return short pieces spread evenly over documents, each from the beginning of a word to the end of one.

    >>> [piece.segments[0].text for piece in stretches([Document.plain("one two three four")], count=2, num_bytes=8)]
    ['one two', 'four']
    """
    sizes = np.array([len(document.trained_bytes) for document in documents])
    bounds = np.cumsum(sizes)
    found: dict[str, Document] = {}
    for at in np.linspace(0, int(bounds[-1]), count, endpoint=False).astype(np.int64).tolist():
        index = int(np.searchsorted(bounds, at, side="right"))
        data, first = documents[index].trained_bytes, at - int(bounds[index] - sizes[index])
        space = data.find(b" ", first - 1, first + num_bytes) if first else -1
        first = space + 1 if space >= 0 else first
        while first < len(data) and data[first] & 0xC0 == 0x80:  # never inside a character
            first += 1
        piece = data[first : first + num_bytes]
        last = piece.rfind(b" ") if first + num_bytes < len(data) else -1
        text = (piece[:last] if last > 0 else piece).decode(errors="ignore").strip()
        if text:
            document = Document.plain(text)
            found[document.id] = document
    return list(found.values())


def aligned_stretches(
    method: Callable[[Rows, Encoding, Pair], Alignment], documents: Sequence[Document], target: ByteTokenizer, source: ByteTokenizer
) -> dict[str, Any]:
    """Run an alignment on some stretches of documents, with a source that is certain of what followed.

    Returns:
        ``coverage`` (tokens with a row of the source), ``one_hot`` (tokens with a published fallback instead), ``tokens``, ``bytes`` and
        ``stretches``.
    """
    pieces = stretches(documents)
    ours, theirs = target.encode_many(pieces), source.encode_many(pieces)
    rows = [certain_rows(encoding, source.vocabulary.size) for encoding in theirs]
    used = np.unique(np.concatenate([part.next_ids for part in rows] or [np.zeros(0, np.int64)]))
    few = restricted(source.vocabulary, used)
    pair = build_pair(few, target.vocabulary, target.first_pieces, _map_for(method, few, target))
    found = [method(restricted_rows(part, used), encoding, pair) for part, encoding in zip(rows, ours, strict=True)]
    tokens = sum(int((encoding.starts >= 0).sum()) for encoding in ours)
    return {
        "coverage": _share(sum(int((part.source_row >= 0).sum()) for part in found), tokens),
        "one_hot": _share(sum(int(part.one_hot.sum()) for part in found), tokens),
        "tokens": tokens, "bytes": sum(len(piece.trained_bytes) for piece in pieces), "stretches": len(pieces),
    }  # fmt: skip


def _map_for(method: object, few: Vocabulary, target: ByteTokenizer) -> VocabularyMap:
    """Return the map that a published rule asks for."""
    if getattr(method, "accept", "") == "suffix":  # positions do not depend on its counts over a corpus: any map may stand in for them
        return replace(MAPS["first_piece"](few, target), method="co_occurrence")
    return min_ed_map(few, target.vocabulary, on="strings")


def published(documents: Sequence[Document], target: ByteTokenizer, source: ByteTokenizer) -> dict[str, Any]:
    """Return what FuseLLM's own rules (dynamic time warping, MinED) accept, on a sample."""
    return aligned_stretches(Dtw(), documents, target, source)
