"""A source's rows where the target's tokens begin: as they are, or given the bytes of the source's token that are already written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from lmfuse.align.pair import Pair
from lmfuse.align.spans import Cuts, Support
from lmfuse.types import Encoding, Rows

TINY = np.float32(1e-38)


@dataclass
class Begun:
    """For each target token the candidates of the source row that speaks for it. Arrays are changed in place.

    Attributes:
        onto: the target id that each kept candidate goes to, -1 for none.
        mass: the candidates' probabilities.
        tail: the probability outside of them.
        followed: the probability of the source token that followed; it is also in ``mass`` where it is a kept candidate.
        potential: C at every cut, in nats.
    """

    onto: Int[np.ndarray, "K T"]
    mass: Float[np.ndarray, "K T"]
    tail: Float[np.ndarray, "T"]
    followed: Float[np.ndarray, "T"]
    potential: Float[np.ndarray, "X"]

    @classmethod
    def of(cls, rows: Rows, support: Support, cuts: Cuts, row: Int[np.ndarray, "T"], pair: Pair) -> Begun:
        """Take each token's row, and condition it where its source token has begun before."""
        ids, mass = support.ids.take(row, axis=1), support.mass.take(row, axis=1)
        onto = pair.whole_target.take(ids)
        lacking = np.flatnonzero(cuts.consumed[: len(row)] < 0)  # the target writes a dummy prefix, the source does not
        onto[:, lacking] = -1 if pair.prefixed_target is None else pair.prefixed_target[ids[:, lacking]]
        potential = np.append(0.0, np.cumsum(rows.nll_nats, dtype=np.float64))[cuts.complete]
        begun = cls(onto, mass, support.tail.take(row), support.next_mass.take(row), potential)
        begun._condition(rows, support, cuts, pair)
        return begun

    def _condition(self, rows: Rows, support: Support, cuts: Cuts, pair: Pair) -> None:
        """Keep the candidates that begin with what is consumed of the open token, and count C there."""
        cut = np.flatnonzero(cuts.consumed > 0)
        if not len(cut):
            return
        source, consumed, slot = cuts.row[cut], cuts.consumed[cut], support.slot[cuts.row[cut]]
        ids = support.ids.take(source, axis=1)
        begins = np.flatnonzero(pair.begins_alike(ids, rows.next_ids[source], consumed))
        column = begins // len(cut)
        at = begins - column * len(cut)
        ids, mass = ids[column, at], support.mass[column, source[at]]
        outside = np.where(slot == len(support.ids), support.next_mass[source], 0.0)  # what followed begins so, kept or not
        tail = np.where(cuts.in_text[cut], 0.0, support.tail[source])
        reached = np.maximum(np.bincount(at, mass, len(cut)) + outside + tail, TINY)
        self.potential[cut] -= np.where(cuts.inside[cut], np.log(reached), 0.0)

        starts = int(np.searchsorted(cut, self.onto.shape[1]))  # the cuts behind are ends: no row is asked for there
        followed = column == slot[at]  # is cut here, whatever the target makes of it alone
        alive = (at < starts) & (followed | pair.stops_after(ids, consumed[at]) | ~cuts.joined[source[at]])
        column, at, ids, mass = column[alive], at[alive], ids[alive], mass[alive]
        reached = np.maximum(np.bincount(at, mass, len(cut)) + outside + tail, TINY)[:starts]
        mass = mass / reached[at]
        over = pair.source.lengths[ids] > consumed[at]  # else all of it is written, and nobody knows how that path goes on
        tail = np.bincount(at, np.where(over, 0.0, mass), len(cut))[:starts] + tail[:starts] / reached
        cut, column, at, mass = cut[:starts], column[over], at[over], mass[over]
        for kept in self.mass:  # numpy is slow at all slots of some columns at once
            kept[cut] = 0.0
        self.tail[cut] = tail
        self.mass[column, cut[at]] = mass
        self.onto[column, cut[at]] = pair.target_of_rest(ids[over], consumed[at])
        self.followed[cut] /= reached

    def place_what_followed(
        self, rows: Rows, target: Encoding, support: Support, row: Int[np.ndarray, "T"]
    ) -> tuple[Bool[np.ndarray, "T"], Int[np.ndarray, "N"]]:
        """Send the source token that followed to the target's true token, or take it out where it ends before that token does.

        Returns:
            where it was taken out, and the tokens where it still has to be added, because it is none of the kept candidates.
        """
        ends_before = rows.ends[row] < target.ends
        slot, token = support.slot[row], np.arange(len(row))
        kept = np.flatnonzero(slot < len(self.onto))
        self.onto[slot[kept], kept] = target.ids[kept]
        self.mass[slot[kept], kept] = np.where(ends_before[kept], 0.0, self.followed[kept])
        return ends_before, token[(slot == len(self.onto)) & ~ends_before]
