"""Where the k-th largest of a tensor's values lies: very probably, from a sample; exactly, digit by digit."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from lmfuse.merge.family import About, Look
from lmfuse.merge.piece import Piece, Tensor, cuts

SAMPLE = 2**17  # values that are looked at of a tensor that has more
SAMPLED_PIECES = 16  # at least, where not all are
UNEVEN = 0.02  # of all values: a sample of some pieces that is less sure of the rank is taken again, of all
DIGITS = ((20, 11), (10, 10), (0, 10))  # shift and width in bits: a float32 that is not negative, from the highest digit down

Place: TypeAlias = tuple[str, int]  # a tensor's name, where a piece of it starts
Values: TypeAlias = Callable[[Piece], Float[Tensor, "R N"]]  # R quantities to select by, none negative
Count: TypeAlias = Callable[[int, int], int]  # how many to select, of how many values, so many of which are not 0
Bracket: TypeAlias = tuple[float, float]  # lower, upper


class Chunks(list[Any]):
    """A list to which another is appended in place by ``+``."""

    def __add__(self, later: list[Any]) -> Chunks:
        self.extend(later)
        return self


def brackets(values: Values, counts_of: Sequence[Count], about: About) -> Generator[Look, Any, list[Bracket]]:
    """Look at a sample; return for each quantity two values between which the k-th largest almost certainly lies.

    Of a tensor with many pieces some are looked at. Where these differ so much that they say little, all are.
    """
    places = [(name, start) for name, shape in zip(about.names, about.shapes, strict=True) for start, _ in cuts(shape)]
    for every in sorted({1, max(1, len(places) // SAMPLED_PIECES)}, reverse=True):
        look = _Sampling(values, frozenset(places[::every]), _stride(about, every))
        sample: list[Float[np.ndarray, "R M"]] = yield look
        rows = [[part[row] for part in sample] for row in range(len(counts_of))]
        if every == look.stride == 1:
            return [_exact(np.concatenate(row), count) for row, count in zip(rows, counts_of, strict=True)]
        if every > 1 and sum(map(len, rows[0])) < SAMPLE // 2:  # small tensors only
            continue
        found = [_bracket(row, count, about.num_elements, every == 1) for row, count in zip(rows, counts_of, strict=True)]
        if max(doubt for _, doubt in found) <= UNEVEN:
            break
    return [bracket for bracket, _ in found]


def _stride(about: About, every: int) -> int:
    """Return the distance between sampled elements, one that visits all columns alike."""
    stride = max(1, about.num_elements // every // SAMPLE)
    period = math.lcm(*(shape[-1] if shape else 1 for shape in about.shapes))
    while stride > 1 and math.gcd(stride, period) > 1:
        stride += 1
    return stride


@dataclass(frozen=True)
class _Sampling:
    """A look at some elements of some pieces."""

    values: Values
    places: frozenset[Place]
    stride: int

    def wants(self, name: str, start: int) -> bool:
        return (name, start) in self.places

    def __call__(self, piece: Piece) -> Chunks:
        if not self.wants(piece.name, piece.start):
            return Chunks()
        thin = piece if self.stride == 1 else piece.thin(slice(-piece.start % self.stride, None, self.stride))
        return Chunks([self.values(thin).numpy()])


def _exact(values: Float[np.ndarray, "N"], count: Count) -> Bracket:
    """Return the k-th largest of all values, twice."""
    k = count(len(values), int(np.count_nonzero(values)))
    value = float(np.partition(values, len(values) - k)[len(values) - k]) if k else math.inf
    return value, value


def _bracket(parts: Sequence[Float[np.ndarray, "_"]], count: Count, num_elements: int, from_all_pieces: bool) -> tuple[Bracket, float]:
    """Return values between which the k-th largest lies, and by which share of all values the sample may be wrong.

    That is 8 standard errors, and for some pieces 6 of what they differ by.
    """
    sample = np.concatenate(parts)
    size = len(sample)
    rank = count(num_elements, round(np.count_nonzero(sample) / size * num_elements)) * size / num_elements
    doubt = 8 * math.sqrt(rank / size * max(0.0, 1 - rank / size) / size)
    if not from_all_pieces:
        guess = np.partition(sample, size - max(1, round(rank)))[size - max(1, round(rank))]
        above = [np.count_nonzero(part > guess) / len(part) for part in parts if len(part)]
        doubt = max(doubt, 6 * float(np.std(above)) / math.sqrt(len(above)))
    upper, lower = math.floor(rank - doubt * size) - 8, math.ceil(rank + doubt * size) + 8
    places = [size - each for each in (lower, upper) if 1 <= each <= size]
    ordered = np.partition(sample, places) if places else sample
    return (float(ordered[size - lower]) if lower <= size else 0.0, float(ordered[size - upper]) if upper >= 1 else math.inf), doubt


def by_digits(values: Values, counts: list[int]) -> Generator[Look, Any, list[float]]:
    """Find the k-th largest of each quantity exactly: its digits, from the highest down, each from how often every digit occurs."""
    found, ranks = np.zeros(len(counts), np.int64), np.array(counts)  # the bits so far; the rank among values that begin with them
    for shift, width in DIGITS:
        histogram = yield partial(_histogram, values, found >> (shift + width), shift, width)
        from_top = histogram[:, ::-1].cumsum(1)
        digits = [int(np.searchsorted(row, max(1, rank))) for row, rank in zip(from_top, ranks, strict=True)]
        ranks = ranks - [row[digit - 1] if digit else 0 for row, digit in zip(from_top, digits, strict=True)]
        found |= (2**width - 1 - np.array(digits)) << shift
    return [float(value) for value in found.astype(np.int32).view(np.float32)]


def _histogram(values: Values, prefixes: Int[np.ndarray, "R"], shift: int, width: int, piece: Piece) -> Int[np.ndarray, "R D"]:
    bits = values(piece).numpy().view(np.int32)
    begins = [row[row >> (shift + width) == prefix] for row, prefix in zip(bits, prefixes, strict=True)]
    return np.stack([np.bincount(row >> shift & 2**width - 1, minlength=2**width) for row in begins])
