"""What a source says beyond one row: longer target tokens, other ways to the same place, and the tokens that come next.

All three add candidates to the few target tokens that need them. Contributions below ``WORTH`` are left in the tail, or where they
are: they would cost more than they say.
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


class Held(NamedTuple):
    """Candidates that are the beginning of longer target tokens: whose they are, which, and their probability."""

    token: Int[np.ndarray, "N"]
    ids: Integer[np.ndarray, "N"]
    mass: Float[np.ndarray, "N"]


def hold_back_short_tokens(begun: Begun, support: Support, row: Int[np.ndarray, "T"], cuts: Cuts, pair: Pair) -> Held:
    """Take out the candidates that did not follow and that the target would often write as part of a longer token; in place."""
    if pair.longer is None:
        none = np.zeros(0, np.int64)
        return Held(none, none, np.zeros(0, np.float32))
    whole = np.flatnonzero(cuts.consumed[: len(row)] == 0)
    ids = support.ids.take(row[whole], axis=1)
    short = pair.is_short.take(ids) & (ids != support.next_ids[row[whole]]) & (begun.mass[:, whole] > WORTH)
    slot, place = np.nonzero(short)
    token = whole[place]
    held = Held(token, ids[slot, place], begun.mass[slot, token])
    begun.mass[slot, token] = 0.0
    return held


def add_longer_tokens(kept: Gathered, held: Held, pair: Pair) -> None:
    """Share what was held back among the target tokens that a corpus has in its place."""
    if pair.longer is not None:
        onto, mass = spread(held.ids[None], held.mass[None], pair.longer)
        _put_all(kept, np.tile(held.token, len(onto)), onto.ravel(), mass.ravel())


def add_earlier_paths(
    kept: Gathered, rows: Rows, support: Support, cuts: Cuts, row: Int[np.ndarray, "T"], pair: Pair
) -> Float[np.ndarray, "T"]:
    """Add the rests of longer candidates of the row before, where the target cuts them at the place where a token of the source ends.

    Returns:
        For each token the probability that the source's path is the one through the row that begins there.
    """
    through = np.ones(len(row), kept.mass.dtype)
    before = np.maximum(row - 1, 0)
    meets = (cuts.consumed[: len(row)] == 0) & (row > 0) & (rows.ends[before] == rows.starts[row]) & cuts.known
    slot, source = pair.longer_candidates(support.ids, rows.next_ids)
    mass = support.mass[slot, source]
    total = np.bincount(source, mass, len(rows))
    reached = support.next_mass + total
    token = np.flatnonzero(meets & (total > WORTH * reached).take(before))
    if not len(token):
        return through
    before = before[token]
    through[token] = support.next_mass[before] / reached[before]
    kept.scale(token, through[token])
    token_of = np.full(len(rows), -1)
    token_of[before] = token
    here = token_of[source] >= 0
    slot, source = slot[here], source[here]
    ids = support.ids[slot, source]
    onto = pair.target_of_rest(ids, pair.source.lengths[rows.next_ids[source]])
    _put_all(kept, token_of[source], onto, support.mass[slot, source] / reached[source])
    return through


def _put_all(kept: Gathered, token: Int[np.ndarray, "N"], ids: Integer[np.ndarray, "N"], mass: Float[np.ndarray, "N"]) -> None:
    """Add candidates with their tokens, which may have several: one of each token at a time."""
    order = np.argsort(token, kind="stable")
    token, ids, mass = token[order], ids[order], mass[order].astype(kept.mass.dtype, copy=False)
    nowhere = ids < 0
    kept.lose(token, np.where(nowhere, mass, 0.0))
    token, ids, mass = token[~nowhere], ids[~nowhere], mass[~nowhere]
    rank = np.arange(len(token)) - np.searchsorted(token, token)
    for nth in range(int(rank.max(initial=-1)) + 1):
        now = rank == nth
        kept.put(token[now], ids[now], mass[now])


def follow(
    kept: Gathered,
    pending: Float[np.ndarray, "T"],
    rows: Rows,
    target: Encoding,
    row: Int[np.ndarray, "T"],
    support: Support,
    pair: Pair,
) -> None:
    """Write the next source tokens behind one that ends inside a target token: their candidates say how the target's token goes on.

    ``pending`` is the probability of what is already written, 0 where the target's token is done.
    """
    token = np.flatnonzero(pending > 0)
    row, mass_before = row[token] + 1, pending[token]
    while len(token):
        ids, mass = support.whole(row)
        mass *= mass_before
        true_ids = target.ids[token]
        written = pair.target.lengths[true_ids] - (target.ends[token] - rows.starts[row])
        done = rows.ends[row] >= target.ends[token]
        each = np.arange(len(token))
        goes_on = mass[support.slot[row], each]
        mass[support.slot[row], each] = 0.0

        column, which = np.nonzero(mass > WORTH)
        onto = np.full(ids.shape, -1, kept.ids.dtype)
        onto[column, which] = pair.first_of_both(true_ids[which], written[which], ids[column, which])
        kept.tail[token] += mass_before * support.tail[row] + (mass * (onto < 0)).sum(axis=0)
        mass[onto < 0] = 0.0
        onto[support.slot[row], each] = true_ids
        mass[support.slot[row], each] = np.where(done, goes_on, 0.0)
        kept.add(token, onto, mass)
        token, row, mass_before = token[~done], row[~done] + 1, goes_on[~done]
