"""Posterior: sources are believed in proportion to how well they have predicted the text so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.fuse.blend import NOBODY, blend, check, nothing
from lmfuse.types import Alignment, Fused

FLOOR = -600.0  # log-weights below are taken for this: no source is ever at 0, it may be the only one with a row


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Posterior:
    """Blend the sources by the probability that each is the one who writes this text, given what stands before the token.  Our own

    Bayes' rule: a source's weight is its prior times the probability that it gave to the document's earlier bytes, so the blend is
    itself a language model and never looks at the token that it teaches. Evidence fades as in dynamic model averaging (Raftery,
    Karny, Ettler, Technometrics 2010, section 3): each token takes the earlier weights to the power ``memory``, so that another source may lead
    in the next paragraph. A source that says nothing of a token neither gains nor loses there.

    - ``memory``: 1 never forgets (Bayes' rule itself); 0 knows the prior and nothing else.
    - ``prior_bytes``: held-out scores, in nats per byte, count like the evidence of so many bytes; what fades, fades into them.
    - ``k``: candidates kept per token; by default the union of all sources'. A smaller number can cut off the token that follows.
    - ``no_teacher``: one more score may follow the sources': that of having no teacher. Where it is the lowest nothing is taught.

    Two sources, equal before the text; the first gives the first token probability 3/4, the second 1/4: so they stand at the second token.

    >>> truth = np.array([[.75, .5], [.25, .5]])
    >>> Posterior(memory=1.0).weights(-np.log(truth), np.zeros(2)).round(3).tolist()
    [[0.5, 0.75], [0.5, 0.25]]
    """

    name: Literal["posterior"] = "posterior"
    memory: Annotated[float, Field(ge=0, le=1)] = 0.8
    prior_bytes: Annotated[float, Field(ge=0)] = 8.0
    k: Annotated[int, Field(ge=1)] | None = None
    no_teacher: bool = True

    def weights(self, nll_nats: Float[np.ndarray, "S T"], log_prior: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S T"]:
        """Return each source's weight before each token; they sum to 1 over the sources."""
        said = ~np.isnan(nll_nats)
        evidence = np.maximum(-np.where(said, nll_nats, 0.0), FLOOR)
        log_weights = np.empty(nll_nats.shape)
        now = np.maximum(log_prior - _log_sum(log_prior), FLOOR)
        for token in range(nll_nats.shape[1]):
            log_weights[:, token] = now
            heard = said[:, token]
            if heard.any():  # who is silent moves with the blend of the others
                gain = _log_sum((now + evidence[:, token])[heard]) - _log_sum(now[heard])
                now = now + np.where(heard, evidence[:, token], gain)
            now = self.memory * now + (1 - self.memory) * log_prior
            now = np.maximum(now - _log_sum(now), FLOOR)
        return np.exp(log_weights)

    def __call__(self, alignments: Sequence[Alignment], scores: Float[np.ndarray, "S"]) -> Fused:
        """Return one document's teacher; ``winner`` is the source of the largest weight among those that have a row.

        Args:
            alignments: one per source, in the recipe's order, of an alignment that knows ``truth_nll_nats``.
            scores: held-out nats per byte, one per source, and with ``no_teacher`` optionally one more; ``nan`` has no part.

        Raises:
            ValueError: the alignments do not fit together, or the scores do not fit them.
        """
        check(alignments, scores, extra=self.no_teacher)
        costs = np.where(np.isnan(scores), np.inf, np.asarray(scores, np.float64))
        best = int(np.argmin(costs))
        if np.isinf(costs[best]) or best == len(alignments):
            return nothing(alignments)
        judged = np.flatnonzero(np.isfinite(costs[: len(alignments)]))
        chosen = [alignments[source] for source in judged.tolist()]
        nll_nats = np.stack([each.truth_nll_nats for each in chosen]).astype(np.float64)
        weights = self.weights(nll_nats, -self.prior_bytes * costs[judged])
        fused = blend(chosen, weights, self.k)
        leader = judged[np.argmax(weights * np.stack([each.taught for each in chosen]), axis=0)]
        return replace(fused, winner=np.where(fused.taught, leader, NOBODY))


def _log_sum(values: Float[np.ndarray, "S"]) -> float:
    """Return the logarithm of the sum of exponentials."""
    return float(np.logaddexp.reduce(values))
