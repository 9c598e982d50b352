"""FuseLLM's and FuseChat's alignment by dynamic time warping as published, for parity. The byte law is what to use.

FuseLLM: arXiv:2401.10491, section 3.2; FuseChat: arXiv:2408.07990; and the released code where the papers are silent. Published row ``i`` is
the prediction made after token ``i`` was read; here a row stands where the predicted token begins. So "target row ``i`` gets source row
``j``" reads: target token ``i + 1`` is taught by the source row of source token ``j + 1``. At the ends of a text:

* the first target token is taught by nothing: the published code reads no start token. In a conversation the first token of an answer
  stands behind the template instead (as one may behind masked bytes): the source row that begins at the same byte teaches it, if one does,
  and no fallback;
* the published last row predicts an end-of-text token, which is no token of the text and has no place here;
* a target token whose source row would lie behind the source's last token, or behind bytes that a tokenizer cannot represent, is
  taught by nothing. It gets no fallback: its strings did agree.

Reproduced on purpose by the default settings:

* a fallback row puts all probability on the token just *read* instead of the one to predict (``one_hot``);
* strings that agree are taken for one place in the text, which warping without context does not ensure;
* spellings differ in more than the sign for a space, so newlines, tabs and text beyond ASCII do not match (``strings.py``);
* of several candidates that meet on one target id only the first keeps its probability (``collision``);
* what the kept candidates do not cover is renormalised away (``renormalise``).

Not reproduced: exceptions on tokens that the map does not hold; an end of text that is aligned as a string; and the target's own row where
the published one has no candidate at all (such a token is taught by nothing).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Int
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.align.dtw_accept import NO_MATCH, Accept, Spellings, accepted
from lmfuse.align.exact import turn_end
from lmfuse.align.pair import Pair
from lmfuse.align.project import project
from lmfuse.align.spans import check_vocabularies, ends_together, join_on_bytes
from lmfuse.types import Alignment, Encoding, Rows, TopK, VocabularyMap


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Dtw:
    """Align token strings by dynamic time warping, accept a pair whose strings agree, put a one-hot row everywhere else.

    Attributes:
        accept: ``"min_ed"``: the strings are equal or the source's maps to the target's by least edit distance (MinED, FuseLLM's published
            setting); ``"equal"``: they are equal (EM); ``"suffix"``: one ends in the other, or several source tokens rebuild the target
            token (MS, FuseChat's published setting), over decoded strings. ``dtw_accept.py`` has the rules.
        one_hot: the row of a target token without an accepted pair: all probability on the token before it (``"current"``, FuseLLM's
            off-by-one: the student is taught to repeat what it has read), on the token itself (``"next"``, FuseChat's mend), or no row.
        collision: several candidates on one target id: the first one's probability, or their sum.
        renormalise: divide by the mass of the candidates left, so that nothing is in the tail, as published.
        k: candidates of a source row that are looked at, the likeliest first (10, as published); by default all that were kept.

    The map that accepts a pair also carries the candidates: ``pair.tokens`` where that is ``min_ed_map(..., on="strings")``, else it is
    computed once per pair and kept. ``suffix`` takes equal strings first and then ``pair.tokens``, which has to be counted over a corpus
    (a run counts ``co_occurrence_released``, as published). Candidates of a row are expected in descending order. ``lost_mass``
    holds what found no target id and what a collision cut.

    >>> from lmfuse.align.dtw_path import dtw_path
    >>> dtw_path(["h", "e", "y"], ["he", "y"])
    [[0, 1], [2]]
    """

    revision: ClassVar[int] = 2  # part of the key of what it teaches: raise it when the same rows would become others
    name: Literal["dtw"] = "dtw"
    accept: Accept = "min_ed"
    one_hot: Literal["current", "next", "none"] = "current"
    collision: Literal["first", "sum"] = "first"
    renormalise: bool = True
    k: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        if self.accept == "suffix" and self.one_hot == "current":
            message = "one_hot 'current' is FuseLLM's off-by-one, accept 'suffix' is FuseChat's rule"
            raise ValueError(f"{message}: choose one_hot 'next' (as FuseChat) or 'none'")

    def __call__(self, rows: Rows, target: Encoding, pair: Pair) -> Alignment:
        """Align one document.

        Raises:
            ValueError: rows or token ids of another vocabulary; with ``suffix``, a pair without a map that was counted over a corpus.
        """
        check_vocabularies(rows, pair.source)
        if self.k is not None:
            rows = replace(rows, topk=rows.topk.first(self.k))
        if len(target.ids) and int(target.ids.max()) >= pair.target.size:
            raise ValueError(f"target: token id {int(target.ids.max())} is outside its vocabulary of {pair.target.size} tokens")
        spellings = Spellings.kept(pair, self.accept)
        text = np.flatnonzero(target.starts >= 0)
        matched = accepted(rows.next_ids, target.ids[text], spellings)
        taught = text[1:][text[1:] == text[:-1] + 1]  # a token of text stands right before it
        before = np.searchsorted(text, taught) - 1
        match, row = matched[before], matched[before] + 1
        exists = (match >= 0) & (row < len(rows))
        exists[exists] = rows.ends[match[exists]] == rows.starts[row[exists]]

        source_row = np.full(len(target.ids), -1)
        one_hot = np.zeros(len(target.ids), bool)
        source_row[taught[exists]] = row[exists]
        answers = _answers_begin(rows, target, pair, np.setdiff1d(text, taught))
        source_row[answers] = join_on_bytes(rows, target)[answers]
        one_hot[taught] = (match == NO_MATCH) & (self.one_hot != "none")
        return self._rows(rows, target, spellings.map, source_row, one_hot)

    def _rows(
        self, rows: Rows, target: Encoding, onto: VocabularyMap, source_row: Int[np.ndarray, " T"], one_hot: Bool[np.ndarray, " T"]
    ) -> Alignment:
        """Project the chosen rows and write the fallbacks."""
        num_tokens, k = len(target.ids), rows.topk.k
        topk = TopK.unknown(num_tokens, k, onto.target_size)
        nll, lost = np.full(num_tokens, np.nan, np.float32), np.zeros(num_tokens, np.float32)
        at = np.flatnonzero(source_row >= 0)
        row = source_row[at]
        chosen = rows.topk[row]
        moved, _ = project(chosen, onto, k, keep=self.collision)
        kept = np.exp(moved.log_probs).sum(axis=1)
        lost[at] = np.maximum(np.exp(chosen.log_probs.astype(np.float32)).sum(axis=1) - kept, 0.0)
        topk.ids[at], topk.log_probs[at], topk.tail[at] = moved.ids, moved.log_probs, moved.tail
        if self.renormalise:
            topk.log_probs[at[kept > 0]] -= np.log(kept[kept > 0])[:, None]
            topk.tail[at[kept > 0]] = -np.inf
        same = (rows.starts[row] == target.starts[at]) & (rows.ends[row] == target.ends[at])
        nll[at[same]] = rows.nll_nats[row[same]]
        for array, nothing in ((source_row, -1), (nll, np.nan), (lost, 0.0), (topk.tail, 0.0)):
            array[at[kept <= 0]] = nothing

        fallback = np.flatnonzero(one_hot)
        certain = TopK.certain(target.ids[fallback - (self.one_hot == "current")], k, onto.target_size)
        topk.ids[fallback], topk.log_probs[fallback], topk.tail[fallback] = certain.ids, certain.log_probs, certain.tail
        return Alignment(source_row, topk, nll, lost, one_hot, ends_together(rows, target))


def _answers_begin(rows: Rows, target: Encoding, pair: Pair, first: Int[np.ndarray, " N"]) -> Int[np.ndarray, " A"]:
    """Return which of the target tokens ``first``, behind no token of text, begin together with a source token.

    Nothing is among them in plain text, nor where neither vocabulary has a token that ends a turn.
    """
    if max(turn_end(pair.target), turn_end(pair.source)) < 0 or not len(rows):
        return first[:0]
    row = join_on_bytes(rows, target)[first]
    bare = target.starts[first] == target.ends[first]  # a dummy prefix alone: only another one says what it says
    return first[(row >= 0) & ((rows.starts == rows.ends)[row] == bare)]
