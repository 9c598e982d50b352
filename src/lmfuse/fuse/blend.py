"""What the fusion methods share: checking their input, taking rows from chosen sources, adding rows up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

from lmfuse.types import Alignment, Fused, TopK

BLEND = -2
NOBODY = -1


def check(alignments: Sequence[Alignment], scores: Float[np.ndarray, "S"], extra: bool = False) -> None:
    """Raise unless all alignments speak of the same tokens and vocabulary and each has a score (one more where ``extra``).

    Raises:
        ValueError: no source at all, alignments of different length or vocabulary, or the wrong number of scores.
    """
    if not alignments:
        raise ValueError("fuse: got no alignment, expected one per source")
    shapes = {(len(each.source_row), each.topk.vocab_size) for each in alignments}
    if len(shapes) > 1:
        raise ValueError(f"fuse: alignments of different (tokens, vocabulary): {sorted(shapes)}; expected one document and one target")
    expected = (len(alignments), len(alignments) + 1) if extra else (len(alignments),)
    if len(scores) not in expected:
        raise ValueError(f"fuse: got {len(scores)} scores for {len(alignments)} sources, expected {' or '.join(map(str, expected))}")


def nothing(alignments: Sequence[Alignment]) -> Fused:
    """Return a document on which nobody teaches."""
    num_tokens, first = len(alignments[0].source_row), alignments[0].topk
    unknown = TopK.unknown(num_tokens, first.k, first.vocab_size)
    nobody, nan = np.zeros(num_tokens, bool), np.full(num_tokens, np.nan, np.float32)
    return Fused(unknown, nobody, np.full(num_tokens, NOBODY), nan, nobody.copy())


def take(alignments: Sequence[Alignment], winner: Integer[np.ndarray, "T"]) -> Fused:
    """Return for each token the row of ``alignments[winner]``; -1 is not taught. Narrower rows get empty slots."""
    k = max(each.topk.k for each in alignments)
    topk = TopK.unknown(len(winner), k, alignments[0].topk.vocab_size)
    nll, boundary = np.full(len(winner), np.nan, np.float32), np.zeros(len(winner), bool)
    for source, each in enumerate(alignments):
        mine = winner == source
        topk.ids[mine, : each.topk.k] = each.topk.ids[mine]
        topk.log_probs[mine, : each.topk.k] = each.topk.log_probs[mine]
        topk.tail[mine] = each.topk.tail[mine]
        nll[mine], boundary[mine] = each.truth_nll_nats[mine], each.boundary[mine]
    return Fused(topk, winner >= 0, winner, nll, boundary)


def blend(alignments: Sequence[Alignment], weights: Float[np.ndarray, "S"] | Float[np.ndarray, "S T"], k: int | None = None) -> Fused:
    """Return the weighted mean of the sources' distributions, token by token.

    At each token the weights are renormalised over the sources that have a row there; a token at which they sum to 0 is not
    taught. The probabilities of equal ids add up and so do the tails. What one source keeps and another has in its tail
    counts only with the first one's share, the rest of it stays in the tail: nothing is invented. The probability of the true token is
    the weighted mean too, known where every source that has a part knows its own.

    Args:
        alignments: one per source.
        weights: not negative; any scale; one per source, or one per source and token.
        k: candidates kept per token, largest first; the others' probability goes to the tail. None keeps all.
    """
    by_token = np.asarray(weights, np.float64).reshape(len(alignments), -1)
    share = by_token * np.stack([each.taught for each in alignments])
    total = share.sum(0)
    taught = total > 0
    share = np.where(taught, share / np.where(taught, total, 1.0), 0.0)
    rows = [each.topk for each in alignments]
    mass = np.concatenate([s[:, None] * np.exp(row.log_probs, dtype=np.float64) for s, row in zip(share, rows, strict=True)], 1)
    tail = sum(s * np.exp(row.tail, dtype=np.float64) for s, row in zip(share, rows, strict=True))
    ids, mass = _add_equal_ids(np.concatenate([row.ids for row in rows], 1), mass, rows[0].vocab_size)
    if k is not None and k < ids.shape[1]:
        tail = tail + mass[:, k:].sum(1)
        ids, mass = ids[:, :k], mass[:, :k]
    with np.errstate(divide="ignore"):
        log_probs, log_tail = np.log(mass).astype(np.float32), np.log(np.where(taught, tail, 1.0)).astype(np.float32)
    nll, boundary = _truth(alignments, share)
    return Fused(TopK(ids, log_probs, log_tail, rows[0].vocab_size), taught, np.where(taught, BLEND, NOBODY), nll, boundary & taught)


def _truth(alignments: Sequence[Alignment], share: Float[np.ndarray, "S T"]) -> tuple[Float[np.ndarray, "T"], Bool[np.ndarray, "T"]]:
    """Return the blend's negative log-likelihood of the true tokens, and where all sources with a share end a token."""
    part = share > 0
    probs = np.where(part, np.exp(-np.stack([each.truth_nll_nats for each in alignments]).astype(np.float64)), 0.0)
    with np.errstate(divide="ignore"):
        nll = -np.log((share * probs).sum(0))
    boundary = np.all(np.stack([each.boundary for each in alignments]) | ~part, axis=0)
    return np.where(part.any(0), nll, np.nan).astype(np.float32), boundary


def _add_equal_ids(
    ids: Integer[np.ndarray, "T K"], mass: Float[np.ndarray, "T K"], vocab_size: int
) -> tuple[Integer[np.ndarray, "T K"], Float[np.ndarray, "T K"]]:
    """Return each row's distinct ids with their summed mass, largest first, then empty slots (id 0, mass 0)."""
    ids = np.where(mass > 0, ids, vocab_size).astype(np.int64)  # empty slots sort behind every id and form one group of mass 0
    order = np.argsort(ids, axis=1, kind="stable")
    ids, mass = np.take_along_axis(ids, order, 1), np.take_along_axis(mass, order, 1)
    first = np.ones(ids.shape, bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    summed = np.zeros_like(mass)
    if mass.size:
        summed[first] = np.add.reduceat(mass.ravel(), np.flatnonzero(first))
    order = np.argsort(-summed, axis=1, kind="stable")  # equal masses: lower id first
    ids, summed = np.take_along_axis(ids, order, 1), np.take_along_axis(summed, order, 1)
    return np.where(summed > 0, ids, 0), summed
