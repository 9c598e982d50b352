"""The nearest strings of a vocabulary by edit distance, exactly and without comparing everything with everything.

Strings one edit apart are found through a sorted list of deletions, which settles half of a real vocabulary. The others are compared with
candidates of the same length, then one longer or shorter, and so on: two strings are never closer than their lengths, so the search
ends where the difference of the lengths alone is worse than the best found. Equal distances are compared too, so the tie rule is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from rapidfuzz.distance import Levenshtein, Prefix
from rapidfuzz.process import cdist, cpdist

ROWS, COLUMNS = 512, 4096  # of the distance matrix in memory at once
PAIRS = 1 << 18  # compared at once
PAD = "\U0010ffff"  # a noncharacter: no token holds it


def nearest(missing: list[str], known: list[str], *, prefix_first: bool) -> Int[np.ndarray, " N"]:
    """Return for each string the place of its nearest in ``known``; both lists hold something, and no empty string.

    Of several at the smallest Levenshtein distance the first is taken, with ``prefix_first`` the first of those that share the longest
    prefix.

    >>> nearest(["books"], ["cook", "cooks", "book"], prefix_first=True), nearest(["books"], ["cook", "cooks", "book"], prefix_first=False)
    (array([2]), array([1]))
    """
    return Search(missing, known, prefix_first).run()


@dataclass(frozen=True)
class Bucket:
    """Candidates of one length: where they stand, what they are, and the same as codes for comparing prefixes."""

    places: Int[np.ndarray, " C"]
    texts: list[str]
    codes: Int[np.ndarray, "C L"]

    @property
    def length(self) -> int:
        """Return the length of the candidates."""
        return int(self.codes.shape[1])


class Search:
    """The nearest of ``known`` for each of ``missing``, exact: every pair that could win or tie is compared.

    The state is one number per missing string, smallest for the best candidate so far: distance, then (with ``prefix_first``) how much
    of the longest string the shared prefix lacks, then the candidate's place. So any order of comparing gives the same answer.
    """

    def __init__(self, missing: list[str], known: list[str], prefix_first: bool) -> None:
        self.missing, self.known, self.prefix_first = missing, known, prefix_first
        self.longest = max(map(len, missing + known))
        self.rank = np.full(len(missing), np.iinfo(np.int64).max)

    def run(self) -> Int[np.ndarray, " N"]:
        """Return the place in ``known`` of each missing string's nearest."""
        self._compare_neighbours()
        self._compare_by_length()
        return self.rank % len(self.known)

    @property
    def distance(self) -> Int[np.ndarray, " N"]:
        """Return the distance of the best candidate so far."""
        return self.rank // ((self.longest + 1) * len(self.known))

    def _offer(
        self, rows: Int[np.ndarray, " N"], places: Int[np.ndarray, " N"], distance: Int[np.ndarray, " N"], prefix: Int[np.ndarray, " N"]
    ) -> None:
        """Take each pair that is better than what its row has."""
        lacking = self.longest - prefix if self.prefix_first else 0
        np.minimum.at(self.rank, rows, (distance * (self.longest + 1) + lacking) * len(self.known) + places)

    def _compare_neighbours(self) -> None:
        """Compare all strings one edit apart: they are equal after at most one deletion on each side, which a sorted list finds."""
        theirs, row = _deletions(self.missing)
        ours, place = _deletions(self.known)
        order = np.argsort(ours, kind="stable")
        ours, place = ours[order], place[order]
        first, last = np.searchsorted(ours, theirs), np.searchsorted(ours, theirs, side="right")
        rows = np.repeat(row, last - first)
        places = place[np.arange(len(rows)) + np.repeat(first - np.append(0, np.cumsum(last - first)[:-1]), last - first)]
        for at in range(0, len(rows), PAIRS):
            row, place = rows[at : at + PAIRS], places[at : at + PAIRS]
            texts = [self.missing[n] for n in row.tolist()], [self.known[n] for n in place.tolist()]
            distance, prefix = (cpdist(*texts, scorer=scorer, dtype=np.int32) for scorer in (Levenshtein.distance, Prefix.similarity))
            self._offer(row, place, distance.astype(np.int64), prefix)

    def _compare_by_length(self) -> None:
        """Compare the others with candidates of the same length, then ever further off, until the difference alone is worse."""
        lengths = np.array([len(string) for string in self.missing])
        far = np.flatnonzero(self.distance > 1)
        far = far[np.argsort(lengths[far], kind="stable")]
        buckets = list(_by_length(self.known))
        for at in range(0, len(far), ROWS):
            rows = far[at : at + ROWS]
            middle = lengths[rows[len(rows) // 2]]
            for bucket in sorted(buckets, key=lambda bucket: abs(bucket.length - middle)):
                rows_near = rows[self.distance[rows] >= np.abs(lengths[rows] - bucket.length)]
                if len(rows_near):
                    self._compare(rows_near, bucket)

    def _compare(self, rows: Int[np.ndarray, " R"], bucket: Bucket) -> None:
        """Compare some missing strings with all candidates of one length."""
        texts = [self.missing[n] for n in rows.tolist()]
        short = max(bucket.length, *map(len, texts)) < 256
        distance = cdist(texts, bucket.texts, scorer=Levenshtein.distance, dtype=np.uint8 if short else np.int32)
        if self.prefix_first:
            tied = distance == distance.min(axis=1, keepdims=True)
            column, prefix = _longest_prefix(tied, _codes(texts, bucket.length, pad=PAD), bucket.codes)
        else:
            column = prefix = distance.argmin(axis=1)
        self._offer(rows, bucket.places[column], distance[np.arange(len(rows)), column].astype(np.int64), prefix)


def _longest_prefix(
    tied: Bool[np.ndarray, "R C"], codes: Int[np.ndarray, "R L"], candidates: Int[np.ndarray, "C L"]
) -> tuple[Int[np.ndarray, " R"], Int[np.ndarray, " R"]]:
    """Return for each row the first of its tied candidates (overwritten) with the longest shared prefix, and how long that is."""
    prefix = np.zeros(len(tied), np.int64)
    rows = np.arange(len(tied))
    for level in range(codes.shape[1]):
        longer = tied[rows] & (codes[rows, level, None] == candidates[None, :, level])
        goes_on = longer.any(axis=1)
        rows = rows[goes_on]
        if not len(rows):
            break
        tied[rows] = longer[goes_on]
        prefix[rows] += 1
    return tied.argmax(axis=1), prefix


def _codes(strings: list[str], width: int, pad: str = "") -> Int[np.ndarray, "N L"]:
    """Return the first ``width`` characters of each string as numbers."""
    padded = "".join([string[:width].ljust(width, pad) for string in strings] if pad else strings)
    return np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), np.int32).reshape(len(strings), width)


def _deletions(strings: list[str]) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Return hashes of each string and of what is left after any one deletion, and whose they are; two may collide by chance."""
    counts = np.array([len(string) + 1 for string in strings])
    hashes = (hash(string[:n] + string[n + 1 :]) for string in strings for n in range(len(string) + 1))
    return np.fromiter(hashes, np.int64, counts.sum()), np.repeat(np.arange(len(strings)), counts)


def _by_length(strings: list[str]) -> Iterator[Bucket]:
    """Yield all strings, those of one length together, at most ``COLUMNS`` at once, in order."""
    lengths = np.array([len(string) for string in strings])
    for length in np.unique(lengths).tolist():
        places = np.flatnonzero(lengths == length)
        for at in range(0, len(places), COLUMNS):
            texts = [strings[n] for n in places[at : at + COLUMNS].tolist()]
            yield Bucket(places[at : at + COLUMNS], texts, _codes(texts, length))
