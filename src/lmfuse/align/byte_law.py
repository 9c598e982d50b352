"""The byte law: what a source says about any span of bytes, whatever its tokens and the target's.  The default alignment; our own.

The source's cost of a document up to byte ``x`` is a potential, known from one teacher pass::

    C(x) = sum of nll of the source tokens that end at or before x  -  log M(x)
    M(x) = probability of the open token's candidates that begin with its bytes before x      (1 where no token is open)

so the source's log-probability of the bytes ``[a, b)`` is ``-(C(b) - C(a))``: without a map of vocabularies, exact up to the kept
candidates and the one segmentation used, and its sum over a document is the source's own.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int, Integer
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.align.pair import Pair
from lmfuse.align.project import as_topk, gather_targets
from lmfuse.align.spans import Cuts, Support, check_vocabularies, ends_together, no_alignment
from lmfuse.types import Alignment, Encoding, Rows

TINY = np.float32(1e-38)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ByteLaw:
    """Teach each target token by the source's law of its bytes.

    - *The true token* gets the larger of its law ``exp(-(C(b) - C(a)))`` and of what the candidates bring to it.
    - *Other candidates* are those of the source token open at byte ``a``: where it has begun before ``a``, the ones that begin with
      the bytes since then, without these bytes and divided by their mass. What is left of each goes to the target token of
      exactly these bytes, else to the first target piece of them, else to the tail.
    - *Essential:* where the source token that followed ends inside the target's token, what it has beyond the law belongs to the
      tail, and not to the short target token of its bytes: the target itself would not have stopped there.
    - A candidate that did *not* follow but is a proper prefix of longer target tokens still goes to the short one: a known hole.
    - The tail is believed to share a dummy prefix, but no bytes of the text.
    - A row whose mass exceeds 1 (candidates that begin with the true token may also stand for themselves) is scaled to 1.

    ``k`` is the number of candidates kept per target row, the true one always among them; by default the source's.

    A source that expects ``hello`` (1/2) or ``help`` (1/4) gives ``hel`` 3/4, and after it ``lo`` 2/3 and ``p`` 1/3:

    >>> from lmfuse.align.pair import build_pair; from lmfuse.types import TopK, Vocabulary
    >>> source, target = Vocabulary.from_tokens([b"hello", b"help"]), Vocabulary.from_tokens([b"hel", b"lo", b"p"])
    >>> unasked = lambda strings: np.full(len(strings), -1)
    >>> topk = TopK(np.array([[0, 1]]), np.log(np.array([[.5, .25]], np.float32)), np.log(np.array([.25], np.float32)), 2)
    >>> rows = Rows(np.array([0]), np.array([5]), np.array([0]), np.log(np.array([2.], np.float32)), topk)
    >>> said = ByteLaw()(rows, Encoding(np.array([0, 1]), np.array([0, 3]), np.array([3, 5])), build_pair(source, target, unasked))
    >>> np.exp(-said.truth_nll_nats).round(2).astype(str).tolist()
    ['0.75', '0.67']
    >>> said.topk.ids.tolist(), np.exp(said.topk.log_probs).round(2).astype(str).tolist()
    ([[0, 0], [1, 2]], [['0.75', '0.0'], ['0.67', '0.33']])
    """

    name: Literal["byte_law"] = "byte_law"
    k: Annotated[int, Field(ge=1)] | None = None

    def __call__(self, rows: Rows, target: Encoding, pair: Pair) -> Alignment:
        """Align one document, or many concatenated ones (``spans.align_many``).

        Raises:
            ValueError: rows or target do not belong to the pair's vocabularies.
        """
        check_vocabularies(rows, pair.source)
        k, num_tokens = self.k or rows.topk.k, len(target.ids)
        if not len(rows) or not num_tokens:
            return no_alignment(num_tokens, k, pair.target.size)
        cuts, support = Cuts.of(rows, target, pair.source, pair.target), Support.of(rows)
        row = np.where(cuts.known, cuts.row[:num_tokens], 0)
        onto, mass, tail, potential = conditioned(rows, support, cuts, row, pair)
        truth_nll = np.maximum(potential[cuts.end] - potential[:num_tokens], 0.0)
        _follow(onto, mass, tail, np.exp(-truth_nll).astype(np.float32), support.slot[row], rows.ends[row] - target.ends, target.ids)
        unknown = np.flatnonzero(~cuts.known)
        mass[:, unknown], tail[unknown] = 0.0, 1.0

        ids, kept, lost, cut = gather_targets(onto, mass, k, pinned=target.ids)
        topk = as_topk(ids, kept, tail + lost + cut, pair.target.size)
        nll = np.where(cuts.known, truth_nll, np.nan).astype(np.float32)
        return Alignment(np.where(cuts.known, row, -1), topk, nll, lost, np.zeros(num_tokens, bool), ends_together(rows, target))


def conditioned(
    rows: Rows, support: Support, cuts: Cuts, row: Int[np.ndarray, "T"], pair: Pair
) -> tuple[Int[np.ndarray, "C T"], Float[np.ndarray, "C T"], Float[np.ndarray, "T"], Float[np.ndarray, "X"]]:
    """Return where each target token's candidates go, their mass and tail given the bytes already consumed, and C at every cut."""
    num_tokens = len(row)
    ids, mass, tail = support.take(row)
    onto = pair.whole_target.take(ids)
    lacking = np.flatnonzero(cuts.consumed[:num_tokens] < 0)  # the target writes a dummy prefix, the source does not
    onto[:, lacking] = -1 if pair.prefixed_target is None else pair.prefixed_target[ids[:, lacking]]

    cut = np.flatnonzero(cuts.consumed > 0)
    source, consumed = cuts.row[cut], cuts.consumed[cut]
    ids, open_mass, open_tail = support.take(source)
    alike = pair.begins_alike(ids, rows.next_ids[source], consumed)
    open_mass *= alike
    open_tail[cuts.in_text[cut]] = 0.0
    reached = np.maximum(open_mass.sum(axis=0) + open_tail, TINY)

    starts = int(np.searchsorted(cut, num_tokens))  # the cuts behind are ends: no row is asked for there
    column, which = np.divmod(np.flatnonzero(alike), max(len(cut), 1))
    column, which = column[which < starts], which[which < starts]
    onto[:, cut[:starts]] = -1
    onto[column, cut[which]] = pair.target_of_rest(ids[column, which], consumed[which])
    mass[:, cut[:starts]] = (open_mass / reached)[:, :starts]
    tail[cut[:starts]] = (open_tail / reached)[:starts]

    potential = np.append(0.0, np.cumsum(rows.nll_nats, dtype=np.float64))[cuts.complete]
    potential[cut] -= np.where(cuts.inside[cut], np.log(reached), 0.0)
    return onto, mass, tail, potential


def _follow(
    onto: Integer[np.ndarray, "C T"],
    mass: Float[np.ndarray, "C T"],
    tail: Float[np.ndarray, "T"],
    law: Float[np.ndarray, "T"],
    slot: Int[np.ndarray, "T"],
    reach: Integer[np.ndarray, "T"],
    true_ids: Integer[np.ndarray, "T"],
) -> None:
    """Send what followed to the target's true token, in place.

    ``slot`` is the candidate that followed, ``reach`` how many bytes it ends behind (before, if negative) the target's token.
    """
    token = np.arange(len(slot))
    onto[slot, token] = true_ids
    had = mass[slot, token]
    gets = np.where(reach < 0, np.minimum(law, had), had)
    beyond = np.flatnonzero(reach > 0)
    brought = (mass[:, beyond] * (onto[:, beyond] == true_ids[beyond])).sum(axis=0)
    gets[beyond] += np.maximum(law[beyond] - brought, 0.0)
    mass[slot, token] = gets
    tail += had - gets
