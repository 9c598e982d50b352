"""Random numbers that belong to a place in a tensor: the same however the tensor is cut, so nothing has to be kept."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from jaxtyping import Bool, Float, UInt32

BLOCK = 2**16  # elements drawn by one generator; another number is another version of all masks


def uniform(seed: int, name: str, start: int, stop: int) -> Float[np.ndarray, "N"]:
    """Return numbers from [0, 1) for elements ``start:stop`` of the flattened tensor ``name``.

    They depend on seed, name and position alone.

    >>> bool((uniform(7, "w", 65_530, 65_540)[3:6] == uniform(7, "w", 65_533, 65_536)).all())
    True
    """
    return (_bits(seed, name, start, stop) >> 8).astype(np.float32) * np.float32(2**-24)


def below(rate: float, seed: int, name: str, start: int, stop: int) -> Bool[np.ndarray, "N"]:
    """Return where ``uniform`` is below a rate, in a fraction of the time.

    >>> bool((below(0.3, 7, "w", 0, 999) == (uniform(7, "w", 0, 999) < np.float64(0.3))).all())
    True
    """
    limit = math.ceil(rate * 2**24)
    if limit >= 2**24:  # a rate so near 1 that no number reaches it
        return np.ones(stop - start, bool)
    return np.asarray(_bits(seed, name, start, stop) < np.uint32(limit << 8))


def _bits(seed: int, name: str, start: int, stop: int) -> UInt32[np.ndarray, "N"]:
    drawn = np.empty(stop - start, np.uint32)
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        first, last = max(start, block * BLOCK), min(stop, (block + 1) * BLOCK)
        digest = hashlib.sha256(f"{seed}\n{name}\n{block}".encode()).digest()
        generator = np.random.SFC64(int.from_bytes(digest[:16], "little"))
        words = np.asarray(generator.random_raw(-(-(last - block * BLOCK) // 2))).view(np.uint32)
        drawn[first - start : last - start] = words[first - block * BLOCK : last - block * BLOCK]
    return drawn


def derived(seed: int, *words: object) -> int:
    """Return a seed that belongs to another seed and a place, of 48 bits, so that it survives JSON.

    >>> derived(0, "turn", 1) == derived(0, "turn", 1) != derived(0, "turn", 2)
    True
    """
    text = "\n".join(map(str, (seed, *words)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little")
