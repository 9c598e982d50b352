"""The k largest of a whole tensor's values, exactly, in two looks at its pieces and bounded memory; never a sort of the tensor.

1. A look at a sample says between which two values the k-th largest very probably lies.
2. A look at everything counts what lies above, keeps the few values between, and adds up what is asked of the selected. If the
   k-th largest is not between after all (the sample was unlucky, or the tensor is arranged against it), it is found digit by digit in
   three more looks, and the second is repeated.

Of equal values at the threshold those that come first are selected: k are selected, not more. Where only some of them are, what is
asked of the selected takes one more look, at the one piece in which the last of them lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt16

from lmfuse.merge.family import About, Look
from lmfuse.merge.piece import Piece, Tensor
from lmfuse.merge.rank import Bracket, Count, Place, Values, brackets, by_digits

Asked: TypeAlias = Callable[[Piece, int], Float[Tensor, "Q M"]]  # of some elements, those that are selected by quantity r


@dataclass(frozen=True)
class Places:
    """Some elements of a piece, in few bytes: the steps between them where they are far apart, else a bit for each element.

    >>> Places.of(np.array([False, True] + [False] * 30 + [True])).restored()
    array([ 1, 32])
    """

    numbers: UInt16[np.ndarray, "M"] | UInt8[np.ndarray, "N8"]
    num_elements: int

    @classmethod
    def of(cls, mask: Bool[np.ndarray, "N"], at: Int[np.ndarray, "M"] | None = None) -> Places:
        """Keep where a mask is true; ``at`` is the same, where it is known."""
        steps = np.flatnonzero(mask) if at is None else at.copy()
        if len(steps) > len(mask) // 8:
            return cls(np.packbits(mask), len(mask))
        steps[1:] -= steps[:-1].copy()
        return cls(steps.astype(np.uint16) if steps.max(initial=0) < 2**16 else np.packbits(mask), len(mask))

    def restored(self) -> Int[np.ndarray, "M"]:
        """Return their numbers."""
        if self.numbers.dtype == np.uint16:
            return np.cumsum(self.numbers, dtype=np.int64)
        return np.flatnonzero(np.unpackbits(self.numbers, count=self.num_elements).view(np.bool_))


@dataclass(frozen=True)
class Top:
    """The selected elements of one quantity.

    Attributes:
        threshold: the smallest selected value.
        sums: over the selected, of what was asked, in float64.
        num_selected: k.
        first_ties: of the pieces in which not all values equal to the threshold are selected: how many are, the first ones.
        candidates: where in each piece all that are selected are, and a few others.
    """

    threshold: float
    sums: Float[np.ndarray, "Q"]
    num_selected: int
    first_ties: Mapping[Place, int]
    candidates: Mapping[Place, Places]

    def among(self, piece: Piece, values: Float[np.ndarray, "N"]) -> Int[np.ndarray, "M"]:
        """Return which of some elements of a piece are selected, given their values; no element before the last may be missing."""
        kept = self.first_ties.get(_place(piece))
        found = np.flatnonzero(values > np.float32(self.threshold) if kept == 0 else values >= np.float32(self.threshold))
        if not kept:
            return found
        ties = np.flatnonzero(values.take(found) == np.float32(self.threshold))
        return np.delete(found, ties[kept:])

    def mask(self, piece: Piece, values: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Return 1 for the selected elements of a piece and 0 for the others, given its values."""
        import torch

        kept = self.first_ties.get(_place(piece))
        mask = (torch.gt if kept == 0 else torch.ge)(values, self.threshold, out=torch.empty_like(values))
        if kept:
            mask.numpy()[np.flatnonzero(values.numpy() == np.float32(self.threshold))[kept:]] = 0.0
        return mask

    def of(self, piece: Piece, values: Values) -> tuple[Int[np.ndarray, "M"], Piece, Int[np.ndarray, "L"]]:
        """Return where the candidates of a piece are, they alone, and which of them are selected; zeros are never candidates."""
        at = self.candidates[_place(piece)].restored()
        few = piece.thin(at)
        return at, few, self.among(piece, values(few)[0].numpy())


@dataclass(frozen=True)
class _Found:
    """What one quantity of one piece has above two values, at the upper, at the lower (in this order), and the values between."""

    counts: Int[np.ndarray, "3"]
    sums: Float[np.ndarray, "3 Q"]
    between: Float[np.ndarray, "M"]
    asked: Float[np.ndarray, "Q M"]
    candidates: Places | None

    def against(self, threshold: float, lower: float, upper: float) -> tuple[int, Float[np.ndarray, "Q"], int, Float[np.ndarray, "Q"]]:
        """Return how many are above a threshold and what was asked of them, and the same of those that equal it."""
        greater, equal = np.array([True, upper > threshold, lower > threshold]), np.array([False, upper == threshold, lower == threshold])
        over, at = self.between > np.float32(threshold), self.between == np.float32(threshold)
        with np.errstate(over="ignore", invalid="ignore"):
            return (
                int(self.counts[greater].sum() + np.count_nonzero(over)),
                self.sums[greater].sum(0) + (self.asked * over).sum(1, dtype=np.float64),
                int(self.counts[equal].sum() + np.count_nonzero(at)),
                self.sums[equal].sum(0) + (self.asked * at).sum(1, dtype=np.float64),
            )


@dataclass
class _Seen:
    """What the second look saw, piece by piece."""

    places: list[Place] = field(default_factory=list)
    found: list[list[_Found]] = field(default_factory=list)
    not_zero: Any = 0

    def of(self, row: int) -> list[_Found]:
        """Return what was found of one quantity."""
        return [found[row] for found in self.found]

    def __add__(self, later: _Seen) -> _Seen:
        """Append; the left side is used up, so that many pieces take linear time."""
        self.places += later.places
        self.found += later.found
        self.not_zero = self.not_zero + later.not_zero
        return self


def share_of(share: float, count: int) -> int:
    """Return the share of a count, rounded down, the share taken as the decimal number that it is written as.

    >>> share_of(0.29, 100), int(0.29 * 100)
    (29, 28)
    """
    return math.floor(Fraction(repr(share)) * count)


def top_k(values: Values, counts_of: Sequence[Count], about: About, asked: Asked | None = None) -> Generator[Look, Any, list[Top]]:
    """Select the largest elements of each quantity over all tensors of a unit.

    Args:
        values: the quantities of a piece, elementwise.
        counts_of: how many to select, for each quantity.
        asked: what to add up over the selected; values that are 0 add nothing.
    """
    between = yield from brackets(values, counts_of, about)
    seen: _Seen = yield partial(_between, values, asked, between)
    counts = [count(about.num_elements, int(n)) for count, n in zip(counts_of, seen.not_zero, strict=True)]
    maybe = [_threshold(seen.of(row), k, *between[row]) for row, k in enumerate(counts)]
    thresholds = [each for each in maybe if each is not None]
    if len(thresholds) < len(maybe):
        about.counters["select_by_digits"] += 1
        thresholds = yield from by_digits(values, counts)
        between = [(value, value) for value in thresholds]
        seen = yield partial(_between, values, asked, between)
    tops = []
    for row, (threshold, k) in enumerate(zip(thresholds, counts, strict=True)):
        tops.append((yield from _top(seen, row, threshold, k, between[row], values, asked)))
    return tops


def _place(piece: Piece) -> Place:
    return piece.name, piece.start


def _between(values: Values, asked: Asked | None, between: list[Bracket], piece: Piece) -> _Seen:
    rows = values(piece).numpy()
    found = [_find(piece, row, values_of, asked, *bracket) for row, (values_of, bracket) in enumerate(zip(rows, between, strict=True))]
    not_zero = np.array([np.count_nonzero(values_of > 0) for values_of in rows])
    return _Seen([(piece.name, piece.start)], [found], not_zero)


def _find(piece: Piece, row: int, values: Float[np.ndarray, "N"], asked: Asked | None, lower: float, upper: float) -> _Found:
    """Sort out the elements of a piece; zeros are many, so that they are counted only."""
    candidates = values >= np.float32(max(lower, 1e-45))
    at = np.flatnonzero(candidates)
    kept = values.take(at)
    answers = np.zeros((0, len(at)), np.float32) if asked is None else asked(piece.thin(at), row).numpy()
    high = kept == np.float32(upper)
    groups = kept > np.float32(upper), high, (kept == np.float32(lower)) & ~high
    counts = np.array([np.count_nonzero(group) for group in groups])
    sums = np.zeros((3, len(answers)))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is the caller's to notice
        for group in np.flatnonzero(counts):
            sums[group] = (answers * groups[group].astype(np.float32)).sum(1)
    between = np.flatnonzero(~(groups[0] | groups[1] | groups[2]))
    counts[2] += len(values) - len(at) if lower == 0 else 0
    places = None if asked is None else Places.of(candidates, at)
    return _Found(counts, sums, kept.take(between), answers.take(between, axis=1), places)


def _threshold(pieces: list[_Found], k: int, lower: float, upper: float) -> float | None:
    """Return the k-th largest value, or None where it is not between."""
    above, high, low = np.sum([each.counts for each in pieces], axis=0)
    between = np.concatenate([each.between for each in pieces])
    if not above < k <= above + high + low + len(between):
        return math.inf if k == 0 else None
    if k <= above + high:
        return upper
    rank = k - above - high
    return lower if rank > len(between) else float(np.partition(between, len(between) - rank)[len(between) - rank])


def _top(
    seen: _Seen, row: int, threshold: float, k: int, bracket: Bracket, values: Values, asked: Asked | None
) -> Generator[Look, Any, Top]:
    """Add up what was asked of the k largest, and say which of the values at the threshold belong to them."""
    split = [found.against(threshold, *bracket) for found in seen.of(row)]
    candidates = {place: found.candidates for place, found in zip(seen.places, seen.of(row), strict=True) if found.candidates}
    sums = np.sum([each[1] for each in split], axis=0)
    missing = k - sum(each[0] for each in split)
    first_ties = {}
    for place, (_, _, count, sums_of_ties) in zip(seen.places, split, strict=True):
        if count <= missing:
            sums = sums + sums_of_ties
        else:
            first_ties[place] = missing
            if missing and asked is not None:
                sums = sums + (yield _FirstTies(place, missing, row, threshold, values, asked, candidates[place]))
        missing -= min(count, missing)
    return Top(threshold, sums, k, first_ties, candidates)


@dataclass(frozen=True)
class _FirstTies:
    """A look at one piece only: what is asked of the first few values that equal the threshold."""

    place: Place
    count: int
    row: int
    threshold: float
    values: Values
    asked: Asked
    candidates: Places

    def wants(self, name: str, start: int) -> bool:
        return (name, start) == self.place

    def __call__(self, piece: Piece) -> Float[np.ndarray, "Q"] | float:
        if not self.wants(piece.name, piece.start):
            return 0.0
        few = piece.thin(self.candidates.restored())
        at = np.flatnonzero(self.values(few)[self.row].numpy() == np.float32(self.threshold))[: self.count]
        return np.asarray(self.asked(few.thin(at), self.row).numpy().sum(1, dtype=np.float64))
