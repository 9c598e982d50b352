"""What a source says beyond one row: longer target tokens, other ways to the same place, and the tokens that come next.

Each finds candidates for the few target tokens that need them. What is worth less than ``WORTH`` is left where it is, or in the tail: it
would cost more than it says.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer

from lmfuse.align.condition import Begun
from lmfuse.align.pair import Pair
from lmfuse.align.project import Gathered, spread
from lmfuse.align.spans import Cuts, Support
from lmfuse.types import Encoding, Rows

WORTH = 1e-3


class More(NamedTuple):
    """Candidates beside those of a token's row: the token, the target id or -1, the probability."""

    token: Int[np.ndarray, "N"]
    ids: Integer[np.ndarray, "N"]
    mass: Float[np.ndarray, "N"]

    @classmethod
    def none(cls) -> More:
        """Return no candidates."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

    @classmethod
    def together(cls, parts: list[More]) -> More:
        """Return all of them."""
        return cls(*(np.concatenate(each) for each in zip(*parts, strict=True))) if parts else cls.none()


def longer_tokens(begun: Begun, support: Support, row: Int[np.ndarray, "T"], cuts: Cuts, pair: Pair) -> More:
    """Take out the candidates that did not follow and that the target would often write as part of a longer token; share them as a corpus does."""
    if pair.longer is None:
        return More.none()
    whole = np.flatnonzero(cuts.consumed[: len(row)] == 0)
    ids = support.ids.take(row[whole], axis=1)
    short = pair.is_short.take(ids) & (ids != support.next_ids[row[whole]]) & (begun.mass.take(whole, axis=1) > WORTH)
    slot, place = np.nonzero(short)
    token = whole[place]
    onto, mass = spread(ids[None, slot, place], begun.mass[None, slot, token], pair.longer)
    begun.mass[slot, token] = 0.0
    given = np.flatnonzero(mass.ravel() > 0)
    return More(np.tile(token, len(onto))[given], onto.ravel()[given], mass.ravel()[given])


def earlier_paths(
    kept: Gathered, rows: Rows, support: Support, cuts: Cuts, row: Int[np.ndarray, "T"], pair: Pair
) -> tuple[More, Float[np.ndarray, "T"]]:
    """Return the rests of longer candidates of the row before, where the target cuts them at the place where a token of the source ends.

    Returns:
        These candidates; and for each token the probability that the source's path is the one through the row that begins there, by
        which the token's own candidates have been multiplied.
    """
    through = np.ones(len(row), kept.mass.dtype)
    before = np.maximum(row - 1, 0)
    meets = (cuts.consumed[: len(row)] == 0) & (row > 0) & (rows.ends[before] == rows.starts[row])
    meets &= cuts.known & cuts.joined[before]  # where a target token began there, too: else it was cut with what stands before
    slot, source = pair.longer_candidates(support.ids, rows.next_ids)
    mass = support.mass[slot, source]
    total = np.bincount(source, mass, len(rows))
    reached = support.next_mass + total
    token = np.flatnonzero(meets & (total > WORTH * reached).take(before))
    if not len(token):
        return More.none(), through
    through[token] = support.next_mass[before[token]] / reached[before[token]]
    kept.scale(token, through[token])
    token_of = np.full(len(rows), -1)
    token_of[before[token]] = token
    here = token_of[source] >= 0
    slot, source, mass = slot[here], source[here], mass[here]
    onto = pair.target_of_rest(support.ids[slot, source], pair.source.lengths[rows.next_ids[source]])
    return More(token_of[source], onto, mass / reached[source]), through


def continuations(
    pending: Float[np.ndarray, "T"],
    tail: Float[np.ndarray, "T"],
    rows: Rows,
    target: Encoding,
    row: Int[np.ndarray, "T"],
    support: Support,
    pair: Pair,
) -> More:
    """Write the next source tokens behind one that ends inside a target token: their candidates say how the target's token goes on.

    Args:
        pending: the probability of what is already written, 0 where the target's token is done.
        tail: gets what the next rows do not say, in place.
        rows: of the source.
        target: the encoding.
        row: the row that speaks for each target token.
        support: of the rows.
        pair: of the vocabularies.
    """
    found = []
    token = np.flatnonzero(pending > 0)
    row, mass_before = row[token] + 1, pending[token]
    while len(token):
        true_ids, slot = target.ids[token], support.slot[row]
        ids, mass = support.ids.take(row, axis=1), support.mass.take(row, axis=1) * mass_before
        kept = np.flatnonzero(slot < len(ids))
        mass[slot[kept], kept] = 0.0
        goes_on = mass_before * support.next_mass[row]
        written = pair.target.lengths[true_ids] - (target.ends[token] - rows.starts[row])
        done = rows.ends[row] >= target.ends[token]

        column, which = np.nonzero(mass > WORTH)
        onto = pair.first_of_both(true_ids[which], written[which], ids[column, which])
        found += [More(token[which], onto, mass[column, which]), More(token[done], true_ids[done], goes_on[done])]
        mass[column, which] = 0.0
        tail[token] += mass_before * support.tail[row] + mass.sum(axis=0)
        token, row, mass_before = token[~done], row[~done] + 1, goes_on[~done]
    return More.together(found)
