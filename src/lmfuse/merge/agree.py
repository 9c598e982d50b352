"""Where sources agree and where they do not, number by number.

``agreed`` is what TIES calls electing signs and disjoint merging, and SCE erasing and merging: each number goes the way that most
change goes, and sources that go the other way have no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from itertools import combinations, islice
from typing import Any

import numpy as np
from jaxtyping import Float

from lmfuse.merge.family import Look
from lmfuse.merge.piece import Piece, Tensor
from lmfuse.merge.rank import Chunks

SIGN_BIT = -(2**31)
BLOCK = 2**16  # elements that stay in a core's cache from one step to the next


def agreed(
    changes: Float[Tensor, "S N"], weights: Sequence[float], divide_by: Sequence[float] | None, least: float = 1e-37
) -> Float[Tensor, "N"]:
    """Return ``sum_i w_i keep_i c_i / sum_i v_i keep_i``, where ``keep_i`` says whether the change ``c_i`` has the winning sign.

    The sign of the sum of all changes wins, + where they cancel; a change of 0 is never kept. The changes are used up.

    Args:
        weights: w.
        divide_by: v; None does not divide.
        least: the smallest divisor, where v has no negative number; a divisor of 0 divides by 1.
    """
    import torch

    votes = changes[0].clone()
    for row in changes[1:]:
        votes.add_(row)
    sign = votes.view(torch.int32).bitwise_and_(SIGN_BIT)
    changes.view(torch.int32).bitwise_xor_(sign)
    changes.clamp_(min=0)  # what goes the other way is now 0
    result = _weighed(changes, weights)
    if divide_by is not None:
        divisor = _weighed(changes.sign_(), divide_by)
        result.div_(divisor.clamp_(min=least) if min(divide_by) >= 0 else divisor.masked_fill_(divisor == 0, 1.0))
    result.view(torch.int32).bitwise_xor_(sign)
    return result


def _weighed(rows: Iterable[Tensor], weights: Sequence[float]) -> Float[Tensor, "N"]:
    first, *others = zip(rows, weights, strict=True)
    result = first[0] * first[1]
    for row, weight in others:
        result.add_(row, alpha=weight)
    return result


def keep_unanimous(merged: Float[Tensor, "N"], sources: Float[Tensor, "S N"]) -> Float[Tensor, "N"]:
    """Where all sources have the same number, write that over what rounding has made of it; in place."""
    rows = sources.numpy()
    same = np.ones(rows.shape[1], bool)
    for row in rows[1:]:
        same &= rows[0] == row
    at = np.flatnonzero(same)
    merged.numpy()[at] = rows[0].take(at)
    return merged


def unit_scale() -> Generator[Look, Any, float]:
    """Look at a unit whose squares leave the range of float32; return the power of 2 that makes its numbers about 2^40 at most.

    Squares of what is up to 1e30 times smaller are then still told from 0. Where all sources are the same it is 1.
    """
    largest = max((yield _largest))
    return math.ldexp(1.0, min(120, 40 - math.frexp(largest)[1])) if largest else 1.0


def _largest(piece: Piece) -> Chunks:
    """Return the largest magnitude, 0 where all sources are the same."""
    import torch

    first, *others = piece.sources
    return Chunks([0.0 if all(torch.equal(first, other) for other in others) else float(piece.sources.abs().max())])


def disagreement(piece: Piece, scale: float = 1.0) -> Float[Tensor, "1 N"]:
    """Return the sum of squared differences over all pairs of sources: their variance, times the square of their number.

    There must be two sources at least. It needs no base, is 0 exactly where all agree, and loses no digits: nothing is subtracted from a sum.
    ``scale`` multiplies the sources, for numbers whose squares float32 cannot hold.
    """
    import torch

    result, difference = torch.empty(1, len(piece)), torch.empty(min(BLOCK, len(piece)))
    for start in range(0, len(piece), BLOCK):
        block = piece.sources[:, start : start + BLOCK]
        squares, rows = result[0, start : start + BLOCK], (block if scale == 1 else block * scale).unbind()
        term = difference[: len(squares)]
        torch.sub(rows[0], rows[1], out=term)
        torch.mul(term, term, out=squares)
        for first, second in islice(combinations(rows, 2), 1, None):
            torch.sub(first, second, out=term)
            squares.addcmul_(term, term)
    return result
