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
    missing = max(k - len(ids), 0)
    kept_ids, kept = (np.ascontiguousarray(np.pad(array[:k], ((0, missing), (0, 0))).T) for array in (ids, mass))
    return np.maximum(kept_ids, 0, out=kept_ids), kept, lost, cut


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
        wins = offered > kept.min(axis=0)
        cut[token] += np.where(wins, mass[slot, token], mass[behind, token])
        slot, token = slot[wins], token[wins]
        ids[slot, token], mass[slot, token] = ids[behind, token], mass[behind, token]


def project(
    source: TopK,
    onto: VocabularyMap,
    k: int,
    *,
    pinned: Integer[np.ndarray, T] | None = None,
    keep: Literal["sum", "first"] = "sum",
) -> tuple[TopK, Float[np.ndarray, T]]:
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
    mass = np.exp(source.log_probs.T, dtype=np.float32)
    first = onto.indptr.take(source.ids.T)
    count = onto.indptr.take(source.ids.T + 1) - first
    targets, masses = [], []
    for share in range(max(int(count.max(initial=0)), 1)):
        exists = share < count
        entry = np.where(exists, first + share, 0)
        table, weights = (onto.target_ids, onto.weights) if len(onto.target_ids) else (np.array([-1]), np.ones(1, np.float32))
        targets.append(np.where(exists, table.take(entry), -1))
        masses.append(mass * np.where(exists, weights.take(entry), share == 0))  # mass without any target stays in share 0 and is lost
    gathered = gather_targets(np.concatenate(targets), np.concatenate(masses), k, pinned=pinned, keep=keep)
    projected, kept, lost, cut = gathered
    with np.errstate(divide="ignore"):
        tail = np.log(np.exp(source.tail, dtype=np.float32) + lost + cut, dtype=np.float32)
        return TopK(projected, np.log(kept), tail, onto.target_size), lost
