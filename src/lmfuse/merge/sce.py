"""SCE: select where sources differ, calculate their weights from there, erase who goes against the others."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.merge.affine import SMALLEST, squared_norms
from lmfuse.merge.agree import agreed, disagreement, keep_unanimous, unit_scale
from lmfuse.merge.family import About, Combine, Look, Merge, Share
from lmfuse.merge.piece import Piece, Tensor
from lmfuse.merge.rank import Count, Values
from lmfuse.merge.select import Top, share_of, top_k
from lmfuse.merge.varm import variation_ratio


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Sce(Merge):
    """Select, calculate, erase.  FuseChat, arXiv:2408.07990, on merging

    Per tensor, with ``d_i = theta_i - base``: select the share tau of the elements whose variance over the sources is largest, among
    those where it is not 0; ``eta_i = sum d_i^2 / sum_j sum d_j^2`` over the selected; for each element keep the sources whose d has
    the sign of ``sum_i d_i`` (+ where it is 0); result ``base + sum_i eta_i keep_i d_i / sum_i eta_i keep_i``. With tau 1 nothing
    is left out, not even where all agree.

    - ``tau``: the selected share; FuseChat .1, FuseO1 1.
    - ``variant``: ``paper``: what is not selected stays as in the base; weights are uniform where no selected d differs from 0, and
      the divisor is 1 where nothing is kept. ``fuseai``, the authors' code: the selection is for the weights only, everything is
      merged. ``mergekit``: as ``paper``, but weights are uniform wherever ``sum_i mean(d_i^2)`` is below 1e-6 (changes of about 1e-3,
      as light fine-tuning makes them), and the divisor is 1e-6 at least.

    Changes (.4, -.2) and (-.1, -.6): squares .2 and .37, weights .351 and .649; the second source is erased from the first number.

    >>> import torch
    >>> from lmfuse.merge.whole import merge_tensors
    >>> sources = [torch.tensor([0.4, -0.2]), torch.tensor([-0.1, -0.6])]
    >>> merge_tensors(Sce(tau=1.0), sources, torch.zeros(2))
    tensor([ 0.4000, -0.4596])
    """

    needs_base: ClassVar[bool] = True
    min_sources: ClassVar[int] = 2
    name: Literal["sce"] = "sce"
    tau: Share = 0.1
    variant: Literal["paper", "fuseai", "mergekit"] = "paper"

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit: select and weigh."""
        self.check(about.num_sources, has_base=True)
        top: Top | None = None
        values: Values = disagreement
        if self.tau < 1:
            counts: list[Count] = [lambda _, not_zero: share_of(self.tau, not_zero)]
            (top,) = yield from top_k(values, counts, about, _squares)
            scale = 1.0 if SMALLEST <= top.sums.max() < np.inf and top.threshold < np.inf else (yield from unit_scale())
            if scale != 1:
                values = partial(disagreement, scale=scale)
                (top,) = yield from top_k(values, counts, about, partial(_squares, scale=scale))
            squares = top.sums / scale**2
            if not top.num_selected:
                about.counters["sce_nothing_selected"] += 1
        else:
            squares = (yield lambda piece: squared_norms(piece.deltas)).numpy()
        if self.variant == "mergekit" and squares.sum() / about.num_elements < 1e-6:
            squares = np.zeros_like(squares)
        eta = variation_ratio(squares, about.counters, "sce_uniform_weights")
        least = 1e-6 if self.variant == "mergekit" else 1e-37
        if top is None or self.variant == "fuseai":
            return lambda piece: keep_unanimous(_merge_all(piece, eta, least), piece.sources)
        return lambda piece: _merge_selected(piece, top, values, eta, least)


def _squares(piece: Piece, _: int, scale: float = 1.0) -> Float[Tensor, "S N"]:
    changes = piece.changes()
    return (changes if scale == 1 else changes.mul_(scale)).square_()


def _merge_all(piece: Piece, eta: tuple[float, ...], least: float) -> Float[Tensor, "N"]:
    return piece.changed(agreed(piece.changes(), eta, eta, least))


def _merge_selected(piece: Piece, top: Top, values: Values, eta: tuple[float, ...], least: float) -> Float[Tensor, "N"]:
    """Merge the selected elements, leave the others as they are in the base."""
    result = piece.copy_of_base()
    at, candidates, chosen = top.of(piece, values)
    result.numpy()[at.take(chosen)] = _merge_all(candidates, eta, least).numpy().take(chosen)
    return result
