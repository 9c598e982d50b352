"""The plain join on bytes: a target token is taught by the source row that speaks at the same byte, or by none."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.align.pair import Pair
from lmfuse.align.project import as_topk, gather_targets, spread
from lmfuse.align.spans import Support, check_vocabularies, ends_together, join_on_bytes, no_alignment
from lmfuse.types import Alignment, Encoding, Rows


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Join:
    """Join rows where both tokenizations start a token, and project whole tokens by a map of the vocabularies.

    The simple relative of the byte law: target tokens that start inside a source token have no teacher, a candidate that is a proper
    prefix of what followed is sent to the short token, and the law of the true token is known only where both tokens cover the
    same bytes.

    ``map`` names the map that ``pair.tokens`` must hold. ``k`` is the number of candidates kept per target row, by default the source's.
    """

    name: Literal["join"] = "join"
    map: Literal["exact", "first_piece", "min_ed"] = "first_piece"
    k: Annotated[int, Field(ge=1)] | None = None

    def __call__(self, rows: Rows, target: Encoding, pair: Pair) -> Alignment:
        """Align one document, or many concatenated ones (``spans.align_many``).

        Raises:
            ValueError: the pair holds no map of tokens, or another one than ``map``, or rows of another vocabulary.
        """
        check_vocabularies(rows, pair.source)
        if pair.tokens is None or pair.tokens.method != self.map:
            held = "no map of tokens" if pair.tokens is None else f"the map {pair.tokens.method!r}"
            raise ValueError(f"join: the pair holds {held}, expected {self.map!r}")
        k = self.k or rows.topk.k
        if not len(rows):
            return no_alignment(len(target.ids), k, pair.target.size)
        found = join_on_bytes(rows, target)
        row = np.maximum(found, 0)
        ids, mass, tail = Support.of(rows).take(row)
        untaught = np.flatnonzero(found < 0)
        mass[:, untaught], tail[untaught] = 0.0, 1.0
        single = pair.single_target
        onto, mass = spread(ids, mass, pair.tokens) if single is None else (single.take(ids), mass)
        ids, mass, lost, cut = gather_targets(onto, mass, k, pinned=target.ids)
        topk = as_topk(ids, mass, tail + lost + cut, pair.target.size)
        nll = np.where((found >= 0) & (rows.ends[row] == target.ends), rows.nll_nats[row], np.nan).astype(np.float32)
        return Alignment(found, topk, nll, lost, np.zeros(len(found), bool), ends_together(rows, target))
