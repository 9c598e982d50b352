"""Questions that are named by a number and asked of something slow once each: a hash table that is looked up with arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

EMPTY = -1
MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio: spreads neighbouring numbers (Knuth, TAOCP 3, 6.4)
START, MOST = 1 << 12, 1 << 22  # slots at first; answers kept at most, which are 100 MB


class Memo:
    """Answers, numbers from -1 on, by the number of their question, from 0 on. Open addressing; not for several threads at once.

    >>> memo, asked = Memo(), []
    >>> tens = lambda places: asked.append(len(places)) or places * 10
    >>> memo(np.array([3, 1, 3]), tens).tolist(), memo(np.array([1, 2]), tens).tolist(), asked
    ([0, 10, 0], [10, 10], [2, 1])
    """

    def __init__(self) -> None:
        self.size = 0
        self.keys, self.values = np.full(START, EMPTY), np.full(START, EMPTY, np.int32)

    def __call__(self, keys: Int[np.ndarray, "N"], ask: Callable[[Int[np.ndarray, "M"]], Int[np.ndarray, "M"]]) -> Int[np.ndarray, "N"]:
        """Return the answer to each question; ``ask`` gets, for every new one, a place in ``keys`` where it stands."""
        slot = self._slots(keys)
        unknown = np.flatnonzero(self.keys[slot] == EMPTY)
        if len(unknown):
            new, place = np.unique(keys[unknown], return_index=True)
            if self.size and self.size + len(new) > MOST:  # forget all: an answer costs a question, never a result
                self.size, self.keys, self.values = 0, np.full(START, EMPTY), np.full(START, EMPTY, np.int32)
                return self(keys, ask)
            self._insert(new, ask(unknown[place]).astype(np.int32))
            slot = self._slots(keys)
        return self.values[slot].astype(np.int64)

    def _slots(self, keys: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
        """Return for each key the slot that holds it, or the empty one where it would be put."""
        mask = len(self.keys) - 1
        slot = ((keys.astype(np.uint64) * MIX) >> np.uint64(64 - mask.bit_length())).astype(np.int64)
        searching = np.flatnonzero((self.keys[slot] != keys) & (self.keys[slot] != EMPTY))
        while len(searching):
            slot[searching] = (slot[searching] + 1) & mask
            held = self.keys[slot[searching]]
            searching = searching[(held != keys[searching]) & (held != EMPTY)]
        return slot

    def _insert(self, keys: Int[np.ndarray, "M"], values: Int[np.ndarray, "M"]) -> None:
        """Put in keys that are new and all different; never more than half of the slots are taken."""
        self.size += len(keys)
        if 2 * self.size > len(self.keys):
            old, taken = (self.keys, self.values), self.keys != EMPTY
            slots = 1 << (4 * self.size - 1).bit_length()
            self.keys, self.values = np.full(slots, EMPTY), np.full(slots, EMPTY, np.int32)
            keys, values = np.append(old[0][taken], keys), np.append(old[1][taken], values)
        while len(keys):
            slot = self._slots(keys)
            self.keys[slot] = keys  # of keys that want the same slot one stays
            placed = self.keys[slot] == keys
            self.values[slot[placed]] = values[placed]
            keys, values = keys[~placed], values[~placed]
