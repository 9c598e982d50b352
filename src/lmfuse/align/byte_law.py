"""The byte law: what a source says about any span of bytes, whatever its tokens and the target's.  The default alignment; our own.

The source's cost of a document up to byte ``x`` is a potential, known from one teacher pass::

    C(x) = sum of nll of the source tokens that end at or before x  -  log M(x)
    M(x) = probability of the open token's candidates that begin with its bytes before x      (1 where no token is open)

so the source's log-probability of the bytes ``[a, b)`` is ``-(C(b) - C(a))``: without a map of vocabularies, exact up to the kept
candidates and the one segmentation used, and its sum over a document is the source's own.

A *row* needs more than that: the probability that the target's next token is this one and no longer one. ``byte_law.py`` makes the
rows of tokens inside one source token, ``expand.py`` adds what other segmentations and the next source tokens say.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.align.condition import Begun
from lmfuse.align.expand import More, continuations, earlier_paths, longer_tokens
from lmfuse.align.pair import Pair
from lmfuse.align.project import gather
from lmfuse.align.spans import Cuts, Support, check_vocabularies, ends_together, no_alignment
from lmfuse.types import Alignment, Encoding, Rows


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ByteLaw:
    """Teach each target token by the source's law of its bytes.

    - *Candidates* are those of the source token open at byte ``a``. Where it has begun before ``a``, they are the ones that begin with
      the bytes since then and that the target, too, would have cut at ``a``; without these bytes, and divided by their mass. What is left
      of each goes to the target token of exactly these bytes, else to the first target piece of them, else to the tail.
    - *What followed*: the source's true token stands for the target's true token if it reaches its end. If it ends before, the next
      source token's candidates say how it goes on, and so forth: each is written behind the bytes before it and goes to the first
      target token of the whole. So a newline is not taught where the target writes it with the indentation.
    - *What did not follow* and is the beginning of longer target tokens is shared among these as a corpus has it (``pair.longer``), if there
      is one; else it goes to the short token.
    - *Earlier paths*: the source may have meant a longer token at the place where the previous one began, which the target would cut here.
      Its rest counts beside the row that begins here, each with its probability.
    - The tail is believed to share a dummy prefix, but no bytes of the text.

    ``k`` is the number of candidates kept per target row, the true one always among them; by default the source's. Rows that are put
    together from several have more candidates than these.

    A source that expects ``hello`` (1/2) or ``help`` (1/4) gives ``hel`` 3/4, and after it ``lo`` 2/3 and ``p`` 1/3:

    >>> from lmfuse.align.pair import build_pair; from lmfuse.types import TopK, Vocabulary
    >>> source, target = Vocabulary.from_tokens([b"hello", b"help"]), Vocabulary.from_tokens([b"hel", b"lo", b"p"])
    >>> begins = lambda strings: np.array([0 if s.startswith(b"hel") else -1 for s in strings])
    >>> topk = TopK(np.array([[0, 1]]), np.log(np.array([[.5, .25]], np.float32)), np.log(np.array([.25], np.float32)), 2)
    >>> rows = Rows(np.array([0]), np.array([5]), np.array([0]), np.log(np.array([2.], np.float32)), topk)
    >>> said = ByteLaw()(rows, Encoding(np.array([0, 1]), np.array([0, 3]), np.array([3, 5])), build_pair(source, target, begins))
    >>> np.exp(-said.truth_nll_nats).round(2).astype(str).tolist()
    ['0.75', '0.67']
    >>> said.topk.ids.tolist(), np.exp(said.topk.log_probs).round(2).astype(str).tolist()
    ([[0, 0], [1, 2]], [['0.75', '0.0'], ['0.67', '0.33']])
    """

    revision: ClassVar[int] = 3  # part of the key of what it teaches: raise it when the same rows would become others
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
        begun = Begun.of(rows, support, cuts, row, pair)
        ends_before, outside = begun.place_what_followed(rows, target, support, row)
        longer = longer_tokens(begun, support, row, cuts, pair)

        kept = gather(begun.onto, begun.mass, begun.tail, k, pinned=target.ids)
        kept.put(outside, target.ids[outside], begun.followed[outside])
        earlier, through = earlier_paths(kept, rows, support, cuts, row, pair)
        pending = np.where(ends_before & cuts.known, begun.followed * through, 0.0)
        longer = longer._replace(mass=longer.mass * through[longer.token])
        kept.add(*More.together([longer, earlier, continuations(pending, kept.tail, rows, target, row, support, pair)]))
        bare = np.flatnonzero(cuts.known & (target.starts == target.ends) & (rows.ends[row] > target.ends))  # a dummy prefix alone
        kept.put(bare, target.ids[bare], kept.tail[bare])
        kept.tail[bare] = 0.0
        kept.forget(unless=cuts.known)

        nll = np.where(cuts.known, np.maximum(begun.potential[cuts.end] - begun.potential[:num_tokens], 0.0), np.nan).astype(np.float32)
        no_fallback, together = np.zeros(num_tokens, bool), ends_together(rows, target)
        return Alignment(np.where(cuts.known, row, -1), kept.topk(pair.target.size), nll, kept.lost, no_fallback, together)
