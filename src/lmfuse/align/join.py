"""The plain join on bytes: a target token is taught by the source row that speaks at the same byte, or by none."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Integer
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.align.pair import Pair
from lmfuse.align.project import gather, spread
from lmfuse.align.spans import check_vocabularies, ends_together, join_on_bytes, no_alignment
from lmfuse.types import Alignment, Encoding, Rows, TopK

MapName = Literal["none", "exact", "first_piece", "pieces", "min_ed", "co_occurrence", "co_occurrence_share", "co_occurrence_released"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Join:
    """Join rows where both tokenizations start a token, and project whole tokens by a map of the vocabularies.

    The simple relative of the byte law: target tokens that start inside a source token have no teacher, a candidate that is a proper
    prefix of what followed is sent to the short token, and the law of the true token is known only where both tokens cover the
    same bytes.

    ``map`` names the map that ``pair.tokens`` must hold; ``none`` needs none and leaves the rows in the source's vocabulary, for losses
    that compare them there. ``k`` is the number of candidates kept per target row, by default the source's.
    """

    name: Literal["join"] = "join"
    map: MapName = "first_piece"
    k: Annotated[int, Field(ge=1)] | None = None

    def __call__(self, rows: Rows, target: Encoding, pair: Pair) -> Alignment:
        """Align one document, or many concatenated ones (``spans.align_many``).

        Raises:
            ValueError: the pair holds no map of tokens, or another one than ``map``, or rows of another vocabulary.
        """
        check_vocabularies(rows, pair.source)
        if self.map == "none":
            return self._as_they_are(rows, target)
        if pair.tokens is None or pair.tokens.method != self.map:
            held = "no map of tokens" if pair.tokens is None else f"the map {pair.tokens.method!r}"
            raise ValueError(f"join: the pair holds {held}, expected {self.map!r}")
        k = self.k or rows.topk.k
        if not len(rows):
            return no_alignment(len(target.ids), k, pair.target.size)
        found = join_on_bytes(rows, target)
        row = np.maximum(found, 0)
        ids = np.ascontiguousarray(rows.topk.ids.take(row, axis=0).T)
        mass = np.exp(np.ascontiguousarray(rows.topk.log_probs.take(row, axis=0).T), dtype=np.float32)
        tail = np.exp(rows.topk.tail.take(row), dtype=np.float32)
        followed, nll = rows.next_ids.take(row), rows.nll_nats.take(row).astype(np.float32, copy=False)
        likely = np.exp(-nll)
        outside = np.flatnonzero(~np.logical_or.reduce((ids == followed) & (mass > 0)))
        tail[outside] = np.maximum(tail[outside] - likely[outside], 0.0)
        kept = gather(*_moved(ids, mass, pair), tail, k, pinned=target.ids)
        ids, mass = _moved(followed[None, outside], likely[None, outside], pair)
        if len(ids) == 1 and (ids >= 0).all():  # one target each: the fast way
            kept.put(outside, ids[0], mass[0])
        else:
            kept.add(np.tile(outside, len(ids)), ids.ravel(), mass.ravel())
        kept.forget(unless=found >= 0)
        nll[(found < 0) | (rows.ends.take(row) != target.ends)] = np.nan
        topk, one_hot = kept.topk(pair.target.size), np.zeros(len(found), bool)
        return Alignment(found, topk, nll, kept.lost, one_hot, ends_together(rows, target))

    def _as_they_are(self, rows: Rows, target: Encoding) -> Alignment:
        """Give each target token that begins with a source token that token's row, over the source's own vocabulary."""
        k, size = self.k or rows.topk.k, rows.topk.vocab_size
        if not len(rows):
            return no_alignment(len(target.ids), k, size)
        found = join_on_bytes(rows, target)
        row = np.maximum(found, 0)
        topk, unknown = rows.topk[row].first(k), TopK.unknown(len(row), min(k, rows.topk.k), size)
        log_probs = np.where(found[:, None] >= 0, topk.log_probs, unknown.log_probs).astype(np.float32)
        tail = np.where(found >= 0, topk.tail, unknown.tail).astype(np.float32)
        nll = np.where((found >= 0) & (rows.ends[row] == target.ends), rows.nll_nats[row], np.nan).astype(np.float32)
        no_loss, no_fallback = np.zeros(len(row), np.float32), np.zeros(len(row), bool)
        return Alignment(found, TopK(topk.ids, log_probs, tail, size), nll, no_loss, no_fallback, ends_together(rows, target))


def _moved(
    ids: Integer[np.ndarray, "C T"], mass: Float[np.ndarray, "C T"], pair: Pair
) -> tuple[Integer[np.ndarray, "F T"], Float[np.ndarray, "F T"]]:
    """Return where the pair's map sends some candidates: one target each, or several with a share of the mass."""
    assert pair.tokens is not None
    return spread(ids, mass, pair.tokens) if pair.single_target is None else (pair.single_target.take(ids, mode="clip"), mass)
