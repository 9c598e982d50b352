"""Which stretches of a text a reader should see: the worst spans, and some ordinary lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from lmfuse.doctor.axis import KINDS, Axis, Tokens
from lmfuse.types import END_OF_TURN, Document, Vocabulary

LINE_BYTES = 160  # of an excerpt; a chunk is never cut for it
CHUNK_BYTES = 640  # of a chunk that is shown; the rest of a longer one is left out
SPANS = 20
LINE_ENDS = [ord("\n"), END_OF_TURN[0]]


@dataclass(frozen=True)
class Finder:
    """Looks for spans and lines on an axis."""

    axis: Axis
    documents: Sequence[Document]
    target: Vocabulary
    source: Vocabulary

    def spans(self) -> dict[str, list[dict[str, Any]]]:
        """Return spans of more than one token on a side, equal ones together: ``worst`` first, ``commonest`` first, and the ``masked``."""
        worst, masked = self._grouped(self.worst()), self._grouped(self.masked())
        common = sorted((found for found in worst if found[1] > 1), key=lambda found: -found[1])
        parts = {"worst": worst, "commonest": common, "masked": sorted(masked, key=lambda found: -found[1])}
        return {name: [self.chunk(index) | {"times": times} for index, times in part[:SPANS]] for name, part in parts.items()}

    def _grouped(self, order: Int[np.ndarray, "N"]) -> list[tuple[int, int]]:
        """Return the first of all chunks with the same bytes, and how many these are."""
        chunks, data = self.axis.spans, self.axis.data.tobytes()
        first: dict[bytes, int] = {}
        times: dict[bytes, int] = {}
        for chunk, start, end in zip(order.tolist(), chunks.start[order].tolist(), chunks.end[order].tolist(), strict=True):
            written = data[start:end]
            first.setdefault(written, chunk)
            times[written] = times.get(written, 0) + 1
        return [(first[written], count) for written, count in times.items()]

    def worst(self) -> Int[np.ndarray, "N"]:
        """Return all chunks of more than one token on a side, those with most tokens first, then those with most bytes."""
        chunks = self.axis.spans
        some = np.flatnonzero((chunks.kind > 0) & ~chunks.masked)
        return some[np.lexsort((some, -(chunks.end - chunks.start)[some], -chunks.num_tokens[some]))]

    def masked(self) -> Int[np.ndarray, "N"]:
        """Return the chunks that a tokenizer cannot represent, in their order."""
        return np.flatnonzero(self.axis.spans.masked)

    def chunk(self, index: int) -> dict[str, Any]:
        """Return a chunk with the tokens of both sides; bytes as hex digits, places counted from the document's beginning."""
        chunks = self.axis.spans
        start, end = int(chunks.start[index]), int(chunks.end[index])
        last = min(end, start + CHUNK_BYTES)
        base = int(self.axis.base[self._document(start)])
        return {
            "kind": KINDS[chunks.kind[index]], "start": start - base, "end": end - base, "shown_end": last - base,
            "bytes": self.axis.data[start:last].tobytes().hex(),
            "num_target": int(chunks.num_target[index]), "num_source": int(chunks.num_source[index]),
            "target": list(self._tokens(self.axis.target, self.target, start, last, base)),
            "source": list(self._tokens(self.axis.source, self.source, start, last, base)),
        }  # fmt: skip

    def _tokens(self, side: Tokens, vocabulary: Vocabulary, start: int, end: int, base: int) -> Iterator[dict[str, Any]]:
        first, last = np.searchsorted(side.starts, [start, end])
        for n in range(int(first), int(last)):
            token_id = int(side.ids[n])
            yield {
                "id": token_id, "string": vocabulary.strings[token_id], "start": int(side.starts[n]) - base, "end": int(side.ends[n]) - base,
                "prefix": int(side.prefix[n]),
            }  # fmt: skip

    def _document(self, byte: int) -> int:
        return int(np.searchsorted(self.axis.base, byte, side="right")) - 1

    def lines(self, count: int) -> list[dict[str, Any]]:
        """Return up to ``count`` excerpts: half of them around the worst spans, then ordinary lines spread over the text; none twice."""
        found: list[dict[str, Any]] = []
        seen: set[bytes] = set()
        shown: list[tuple[int, int]] = []
        for why, most, order in (("worst", (count + 1) // 2, self._notable()), ("typical", count, self._ordinary(4 * count))):
            for index in order:
                start, end = int(self.axis.spans.start[index]), int(self.axis.spans.end[index])
                written = self.axis.data[start:end].tobytes()
                known = any(first <= start < last for first, last in shown) or (why == "worst" and written in seen)
                if len(found) >= most or known:
                    continue
                seen.add(written)
                found.append(self._excerpt(index, why))
                base = int(self.axis.base[found[-1]["document"]])
                shown.append((base + found[-1]["chunks"][0]["start"], base + found[-1]["chunks"][-1]["end"]))
        return found

    def _notable(self) -> list[int]:
        """Return chunks worth showing: the worst in turn with the masked."""
        worst, masked = self.worst()[:2000].tolist(), self.masked()[:200].tolist()
        return [index for pair in zip(worst, masked, strict=False) for index in pair] + worst[len(masked) :] + masked[len(worst) :]

    def _ordinary(self, count: int) -> list[int]:
        """Return the first chunks of lines that are neither short nor long, evenly spaced; of whatever lines there are if none is so."""
        breaks = np.append(-1, np.union1d(np.flatnonzero(np.isin(self.axis.data, LINE_ENDS)), (self.axis.base - 1)[1:]))
        ends = np.append(breaks[1:], len(self.axis.data))
        width = ends - breaks - 1
        usable = np.flatnonzero((width >= 20) & (width <= LINE_BYTES))
        usable = usable if len(usable) else np.arange(len(width))
        at = breaks[usable[np.linspace(0, len(usable) - 1, min(count, len(usable))).astype(np.int64)]] + 1
        order = np.argsort(np.arange(len(at)) * 0.6180339887 % 1, kind="stable")  # so that the first few are spread, too
        place = np.searchsorted(self.axis.spans.start, at[order], side="right") - 1
        return place[place >= 0].tolist()

    def _excerpt(self, index: int, why: str) -> dict[str, Any]:
        """Return the chunks of the line that a chunk lies in, as many around it as fit."""
        chunks, at = self.axis.spans, int(self.axis.spans.start[index])
        document = self._document(at)
        low, high = line = self._line(index, document)
        first, last = index, index + 1
        room = LINE_BYTES - int(chunks.end[index] - chunks.start[index])
        while room > 0 and (first > low or last < high):
            back = first > low and (last >= high or index - first <= last - 1 - index)
            new = first - 1 if back else last
            size = int(chunks.end[new] - chunks.start[new])
            if size > room:  # no further on this side
                low, high = (first, high) if back else (low, last)
                continue
            room -= size
            first, last = (new, last) if back else (first, new + 1)
        return {
            "why": why, "origin": self.documents[document].origin, "document": document,
            "before": first > line[0], "after": last < line[1], "chunks": [self.chunk(n) for n in range(first, last)],
        }  # fmt: skip

    def _line(self, index: int, document: int) -> tuple[int, int]:
        """Return the range of chunks of the line that a chunk begins in; a chunk that ends with a newline, or ends a turn, ends the line."""
        chunks, data = self.axis.spans, self.axis.data
        base = int(self.axis.base[document])
        top = base + int(self.axis.lengths[document])
        start, end = int(chunks.start[index]), int(chunks.end[index])
        window = data[max(base, start - LINE_BYTES) : start].tobytes()
        before = start - len(window) + max(window.rfind(sign) for sign in LINE_ENDS) + 1
        ahead = data[end : min(top, end + LINE_BYTES)].tobytes()
        found = min((place for sign in LINE_ENDS if (place := ahead.find(sign) + 1)), default=0)
        after = end + (found or len(ahead)) if data[end - 1] not in LINE_ENDS else end
        low = int(np.searchsorted(chunks.start, before, side="right")) - 1
        return min(low, index), max(int(np.searchsorted(chunks.start, after)), index + 1)
