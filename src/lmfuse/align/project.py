"""Move candidates from a source's vocabulary into a target's: probabilities that meet on one id add, nothing disappears unseen.

The released code of FuseLLM and FuseChat keeps only the first of several candidates that meet (``keep="first"``) and renormalises the
rest away.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Integer

from lmfuse.types import TopK, VocabularyMap


def gather_targets(
    ids: Integer[np.ndarray, "C T"],
    mass: Float[np.ndarray, "C T"],
    k: int,
    *,
    pinned: Integer[np.ndarray, "T"] | None = None,
    keep: Literal["sum", "first"] = "sum",
) -> tuple[Integer[np.ndarray, "T k"], Float[np.ndarray, "T k"], Float[np.ndarray, "T"], Float[np.ndarray, "T"]]:
    """Add up the mass of equal ids for each token and keep the k heaviest; what needs no change stays in its slot.

    Candidates come first on the axes: whole arrays of tokens are compared, one pair of candidates at a time.

    Args:
        ids: where each candidate's mass goes, negative for nowhere.
        mass: probabilities.
        k: candidates that are kept.
        pinned: one id of each token that is never cut, whatever its mass (0 excepted).
        keep: ``"sum"`` adds the mass of equal ids, ``"first"`` keeps that of the first and cuts the others.

    Returns:
        ids and mass of the kept candidates (id 0, mass 0 in empty slots), the mass that found no id, the mass that was cut.

    >>> ids, mass, lost, cut = gather_targets(np.array([[5], [7], [5], [-1]]), np.array([[4.0], [3.0], [2.0], [1.0]]) / 16, k=1)
    >>> ids.tolist(), mass.tolist(), lost.tolist(), cut.tolist()
    ([[5]], [[0.375]], [0.0625], [0.1875])
    """
    somewhere = ids >= 0
    lost = (mass * ~somewhere).sum(axis=0)
    mass = mass * somewhere
    ids = np.where(mass > 0, ids, -1 - np.arange(len(ids), dtype=ids.dtype)[:, None])  # all different: empty slots meet nothing
    cut = np.zeros(mass.shape[1], mass.dtype)
    _merge_equal(ids, mass, cut, keep)
    _cut_to(k, ids, mass, cut, pinned)
    kept_ids, kept = np.zeros((ids.shape[1], k), ids.dtype), np.zeros((ids.shape[1], k), mass.dtype)
    width = min(k, len(ids))
    kept_ids[:, :width], kept[:, :width] = np.maximum(ids[:width], 0).T, mass[:width].T
    return kept_ids, kept, lost, cut


def _merge_equal(
    ids: Integer[np.ndarray, "C T"], mass: Float[np.ndarray, "C T"], cut: Float[np.ndarray, "T"], keep: Literal["sum", "first"]
) -> None:
    """Move the mass of equal ids to the first of them (``sum``) or to ``cut`` (``first``), in place."""
    for later in range(1, len(ids)):
        equal = ids[:later] == ids[later]
        token = np.flatnonzero(equal.any(axis=0))
        if keep == "sum":
            mass[equal[:, token].argmax(axis=0), token] += mass[later, token]
        else:
            cut[token] += mass[later, token]
        ids[later, token], mass[later, token] = -1 - later, 0


def _cut_to(
    k: int,
    ids: Integer[np.ndarray, "C T"],
    mass: Float[np.ndarray, "C T"],
    cut: Float[np.ndarray, "T"],
    pinned: Integer[np.ndarray, "T"] | None,
) -> None:
    """Let each candidate behind the first k slots replace the lightest one in them, if that is lighter and not pinned, in place."""
    for behind in range(k, len(ids)):
        token = np.flatnonzero(mass[behind] > 0)
        kept, offered = mass[:k, token], mass[behind, token]
        if pinned is not None:
            kept[ids[:k, token] == pinned[token]] = np.inf
            offered = np.where(ids[behind, token] == pinned[token], np.inf, offered)
        slot = kept.argmin(axis=0)
        wins = offered > kept[slot, np.arange(len(slot))]
        cut[token] += np.where(wins, mass[slot, token], mass[behind, token])
        slot, token = slot[wins], token[wins]
        ids[slot, token], mass[slot, token] = ids[behind, token], mass[behind, token]


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


def as_topk(ids: Integer[np.ndarray, "T k"], mass: Float[np.ndarray, "T k"], tail: Float[np.ndarray, "T"], vocab_size: int) -> TopK:
    """Return rows from probabilities; a tail below 0 is scaled away with the row."""
    over = np.flatnonzero(tail < 0)
    mass[over] /= 1 - tail[over, None]
    with np.errstate(divide="ignore"):
        return TopK(ids, np.log(mass), np.log(np.maximum(tail, 0)), vocab_size)


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
    ids, kept, lost, cut = gather_targets(targets, mass, k, pinned=pinned, keep=keep)
    tail = np.exp(source.tail, dtype=np.float32) + lost + cut
    return as_topk(ids, kept, tail, onto.target_size), lost
