"""Move candidates from a source's vocabulary into a target's: probabilities that meet on one id add, nothing disappears unseen.

The released code of FuseLLM and FuseChat keeps only the first of several candidates that meet (``keep="first"``) and renormalises the
rest away. Candidates stand first on the axes, ``[C, T]``: what is done to them is then done to whole arrays of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8

from lmfuse.types import TopK, VocabularyMap


@dataclass
class Gathered:
    """Teacher rows in the making: what T tokens' candidates have become in the target's vocabulary so far. Changed in place.

    Attributes:
        ids: the kept candidates; a slot without mass means nothing.
        mass: their probabilities.
        tail: probability outside of them, what was cut or lost included.
        lost: probability of candidates that found no target id.
        pinned: one id of each token that is never cut, or None.
    """

    ids: Integer[np.ndarray, "k T"]
    mass: Float[np.ndarray, "k T"]
    tail: Float[np.ndarray, "T"]
    lost: Float[np.ndarray, "T"]
    pinned: Integer[np.ndarray, "T"] | None

    def add(self, tokens: Int[np.ndarray, "N"], ids: Integer[np.ndarray, "N"], mass: Float[np.ndarray, "N"]) -> None:
        """Add candidates to some tokens, in any order and several to one token; negative ids are lost. The k heaviest stay, from the heaviest on."""
        somewhere = ids >= 0
        lost = np.bincount(tokens, np.where(somewhere, 0.0, mass), len(self.tail)).astype(self.tail.dtype)
        self.lost += lost
        self.tail += lost
        is_touched = np.zeros(len(self.tail), bool)
        is_touched[tokens[somewhere]] = True
        touched = np.flatnonzero(is_touched)
        if not len(touched):
            return
        place = (np.cumsum(is_touched) - 1)[tokens[somewhere]]
        held, had = self.ids.take(touched, axis=1), self.mass.take(touched, axis=1)
        here = np.append(np.tile(np.arange(len(touched)), len(held)), place)
        all_ids, all_mass = np.append(held.ravel(), ids[somewhere]), np.append(had.ravel(), mass[somewhere])
        order = np.argsort(here << 32 | all_ids, kind="stable")  # one number each: sorting by two keys takes three times as long
        here, all_ids, all_mass = here[order], all_ids[order], all_mass[order]
        first = np.flatnonzero(np.append(True, (here[1:] != here[:-1]) | (all_ids[1:] != all_ids[:-1])))
        here, all_ids, total = here[first], all_ids[first], np.add.reduceat(all_mass, first)

        lightness = (1 << 31) - total.astype(np.float32).view(np.int32).astype(np.int64)  # the bits of positive floats are in their order
        if self.pinned is not None:
            lightness[(all_ids == self.pinned[touched][here]) & (total > 0)] = 0
        order = np.argsort(here << 32 | lightness, kind="stable")
        here, all_ids, total = here[order], all_ids[order], total[order]
        rank = np.arange(len(here))
        rank -= np.maximum.accumulate(np.where(np.diff(here, prepend=-1) != 0, rank, 0))
        stays = (rank < len(held)) & (total > 0)
        self.tail[touched] += np.bincount(here[~stays], total[~stays], len(touched)).astype(self.tail.dtype)
        for slot in self.mass:
            slot[touched] = 0.0
        self.ids[rank[stays], touched[here[stays]]] = all_ids[stays]
        self.mass[rank[stays], touched[here[stays]]] = total[stays]

    def put(self, tokens: Int[np.ndarray, "N"], ids: Integer[np.ndarray, "N"], mass: Float[np.ndarray, "N"]) -> None:
        """Add one candidate with an id to some tokens (each named once): to the slot that has it, else in place of the lightest if that is lighter."""
        held, now = self.ids.take(tokens, axis=1), self.mass.take(tokens, axis=1)
        worth, wanted = now, mass  # probabilities; more than 2 for what is never cut, less than 0 for the slot that has the id already
        if self.pinned is not None:
            pinned = self.pinned.take(tokens).astype(held.dtype, copy=False)  # of one type: comparing is then three times as fast
            worth = worth + np.float32(4) * ((held == pinned) & (now > 0))
            wanted = wanted + np.float32(4) * (ids == pinned)
        worth = worth - np.float32(8) * ((held == ids.astype(held.dtype, copy=False)) & (now > 0))
        weight = worth.min(axis=0)
        slot = len(worth) - _from_the_end(worth == weight).astype(np.int64)
        meets = weight < 0
        self.mass[slot[meets], tokens[meets]] += mass[meets]
        wins = ~meets & (wanted > weight)
        self.tail[tokens] += np.where(meets, 0.0, np.where(wins, weight, mass))
        self.ids[slot[wins], tokens[wins]], self.mass[slot[wins], tokens[wins]] = ids[wins], mass[wins]

    def scale(self, tokens: Int[np.ndarray, "N"], by: Float[np.ndarray, "N"]) -> None:
        """Multiply all probabilities of some tokens."""
        for part in (*self.mass, self.tail, self.lost):
            part[tokens] *= by

    def forget(self, unless: Bool[np.ndarray, "T"]) -> None:
        """Make the rows of all other tokens know nothing."""
        self._multiply(unless.astype(np.float32))
        self.tail += ~unless

    def topk(self, vocab_size: int) -> TopK:
        """Return the rows, as views of slots by tokens; a row that sums to more than 1, as one stored in 16 bits may, is scaled to 1."""
        total = self.mass.sum(axis=0) + self.tail
        if (total > 1).any():
            self._multiply(1 / np.maximum(total, 1))
        with np.errstate(divide="ignore"):
            log_probs, tail = np.log(self.mass), np.log(self.tail)
        return TopK((self.ids * (self.mass > 0)).T, log_probs.T, tail, vocab_size)

    def _multiply(self, by: Float[np.ndarray, "T"]) -> None:
        """Multiply all probabilities of all tokens."""
        for part in (self.mass, self.tail, self.lost):
            np.multiply(part, by, out=part)


def gather(
    ids: Integer[np.ndarray, "C T"],
    mass: Float[np.ndarray, "C T"],
    tail: Float[np.ndarray, "T"],
    k: int,
    *,
    pinned: Integer[np.ndarray, "T"] | None = None,
    keep: Literal["sum", "first"] = "sum",
) -> Gathered:
    """Add up the mass of equal ids for each token and keep the k heaviest; what needs no change stays in its slot.

    Args:
        ids: where each candidate's mass goes, negative for nowhere.
        mass: probabilities; overwritten.
        tail: probability outside of the candidates.
        k: candidates that are kept.
        pinned: one id of each token that is never cut, whatever its mass (0 excepted).
        keep: ``"sum"`` adds the mass of equal ids, ``"first"`` keeps that of the first and cuts the others.

    >>> found = gather(np.array([[5], [7], [5], [-1]]), np.array([[4.0], [3.0], [2.0], [1.0]]) / 16, np.array([6.0]) / 16, k=1)
    >>> found.ids.tolist(), found.mass.tolist(), found.tail.tolist(), found.lost.tolist()
    ([[5]], [[0.375]], [0.625], [0.0625])
    """
    tail, lost = tail.copy(), np.zeros(mass.shape[1], mass.dtype)
    largest = int(ids.view(np.uint32 if ids.itemsize == 4 else np.uint64).max(initial=0))  # a negative one is larger than any
    if largest >= 1 << 31:
        nowhere = np.flatnonzero(ids < 0)
        slot = nowhere // mass.shape[1]
        token = nowhere - slot * mass.shape[1]
        np.add.at(lost, token, mass[slot, token])
        tail += lost
        mass[slot, token] = 0
    _merge_equal(ids.astype(np.uint16) if largest < 1 << 16 else ids, mass, tail, keep)  # half as wide is twice as fast
    kept_ids, kept = ids[:k], mass[:k]
    if len(ids) < k:
        kept_ids, kept = (np.concatenate([each, np.zeros((k - len(ids), each.shape[1]), each.dtype)]) for each in (ids, mass))
    _cut_to(k, ids, mass, kept_ids, kept, tail, pinned)
    return Gathered(kept_ids, kept, tail, lost, pinned)


def _merge_equal(ids: Integer[np.ndarray, "C T"], mass: Float[np.ndarray, "C T"], tail: Float[np.ndarray, "T"], keep: str) -> None:
    """Move the mass of equal ids to the first of them (``sum``) or to the tail (``first``), in place."""
    flat = mass.reshape(-1)
    for later in range(1, len(ids)):
        behind = _from_the_end(ids[:later] == ids[later])
        token = np.flatnonzero(behind != 0)
        slot = later - behind.take(token).astype(np.int64)
        moved = mass[later].take(token)
        mass[later][token] = 0
        if keep == "sum":
            flat[slot * ids.shape[1] + token] += moved
        else:
            tail[token] += moved


def _from_the_end(flags: Bool[np.ndarray, "C T"]) -> UInt8[np.ndarray, "T"] | Integer[np.ndarray, "T"]:
    """Return the place of the first flag of each token, counted from the end: C for the first row, 1 for the last, 0 where none is set.

    Multiplying bytes and taking maxima are a few instructions for 64 tokens; searching along the first axis (``argmax``) is ten times slower.
    """
    weights: Integer[np.ndarray, "C"] = np.arange(len(flags), 0, -1, dtype=np.uint8 if len(flags) < 1 << 8 else np.int32)
    return np.multiply(flags.view(np.uint8), weights[:, None]).max(axis=0)


def _cut_to(
    k: int,
    ids: Integer[np.ndarray, "C T"],
    mass: Float[np.ndarray, "C T"],
    kept_ids: Integer[np.ndarray, "k T"],
    kept: Float[np.ndarray, "k T"],
    tail: Float[np.ndarray, "T"],
    pinned: Integer[np.ndarray, "T"] | None,
) -> None:
    """Let each candidate behind the first k slots replace the lightest one in them, if that is lighter and not pinned, in place."""
    for behind in range(k, len(ids)):
        token = np.flatnonzero(mass[behind] > 0)
        now, offered = kept[:, token], mass[behind, token]
        if pinned is not None:
            now[(kept_ids[:, token] == pinned[token]) & (now > 0)] = np.inf
            offered = np.where(ids[behind, token] == pinned[token], np.inf, offered)
        slot = now.argmin(axis=0)
        wins = offered > now[slot, np.arange(len(slot))]
        tail[token] += np.where(wins, kept[slot, token], mass[behind, token])
        slot, token = slot[wins], token[wins]
        kept_ids[slot, token], kept[slot, token] = ids[behind, token], mass[behind, token]


def spread(
    ids: Integer[np.ndarray, "C T"], mass: Float[np.ndarray, "C T"], onto: VocabularyMap
) -> tuple[Int[np.ndarray, "F T"], Float[np.ndarray, "F T"]]:
    """Return where the shares of each candidate go and their mass: as many blocks of C as the widest candidate has targets.

    A candidate without any target keeps its mass, with target -1.
    """
    first = onto.indptr.take(ids)
    count = onto.indptr.take(ids + 1) - first
    table, weights = (onto.target_ids, onto.weights) if len(onto.target_ids) else (np.array([-1]), np.ones(1, np.float32))
    targets, masses = [], []
    for share in range(max(int(count.max(initial=0)), 1)):
        exists = share < count
        entry = first + share
        targets.append(np.where(exists, table.take(entry, mode="clip"), -1).astype(np.int32))
        masses.append(mass * np.where(exists, weights.take(entry, mode="clip"), np.float32(share == 0)))
    return np.concatenate(targets), np.concatenate(masses)


def project(
    source: TopK,
    onto: VocabularyMap,
    k: int,
    *,
    pinned: Integer[np.ndarray, "T"] | None = None,
    keep: Literal["sum", "first"] = "sum",
) -> tuple[TopK, Float[np.ndarray, "T"]]:
    """Project rows over the source's vocabulary onto the target's.

    Returns:
        The k heaviest target ids of each row, all other mass in the tail, and per row the mass of candidates without a target id.

    Raises:
        ValueError: the rows and the map are over vocabularies of different sizes.

    >>> both = VocabularyMap.from_single(np.array([1, 1, -1]), target_size=2, method="toy")
    >>> rows = TopK(np.array([[0, 1, 2]]), np.log(np.array([[.5, .25, .125]], np.float32)), np.log(np.array([.125], np.float32)), 3)
    >>> there, lost = project(rows, both, k=1)
    >>> there.ids.tolist(), np.exp(there.log_probs).round(3).tolist(), np.exp(there.tail).round(3).tolist(), lost.tolist()
    ([[1]], [[0.75]], [0.25], [0.125])
    """
    if source.vocab_size != onto.source_size:
        raise ValueError(f"project: rows over {source.vocab_size} ids, but the map is from {onto.source_size} ids")
    mass = np.ascontiguousarray(np.exp(source.log_probs, dtype=np.float32).T)
    targets, mass = spread(np.ascontiguousarray(source.ids.T), mass, onto)
    found = gather(targets, mass, np.exp(source.tail, dtype=np.float32), k, pinned=pinned, keep=keep)
    return found.topk(onto.target_size), found.lost
