"""Dynamic time warping over token strings: FuseLLM's alignment as published, for parity. The byte law is what to use.

arXiv:2401.10491, section 3.2, and the released code where the paper is silent. Published row ``i`` is the prediction made after token
``i`` was read; here a row stands where the predicted token begins. So "target row ``i`` gets source row ``j``" reads: target token
``i + 1`` is taught by the source row of source token ``j + 1``. At the ends of a text:

* the first target token is taught by nothing: the published code reads no start token;
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
an exact match leaves no candidate at all (such a token is taught by nothing).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Int, Integer
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from lmfuse.align.min_ed import exact_string_map, min_ed_map
from lmfuse.align.pair import Pair
from lmfuse.align.project import project
from lmfuse.align.spans import check_vocabularies, ends_together
from lmfuse.align.strings import BYTE_LEVEL_MARKER, respell, space_marker
from lmfuse.types import Alignment, Encoding, Rows, TopK, VocabularyMap

FAR = 1 << 30  # farther than any path, and no overflow when two path lengths are added


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Dtw:
    """Align token strings by dynamic time warping, accept a pair whose strings agree, put a one-hot row everywhere else.

    Attributes:
        accept: ``"min_ed"``: the strings are equal or the source's maps to the target's by least edit distance (MinED, the published
            setting); ``"equal"``: they are equal (EM). The same map then carries the candidates.
        one_hot: the row of a target token without an accepted pair: all probability on the token before it (``"current"``, FuseLLM's
            off-by-one: the student is taught to repeat what it has read), on the token itself (``"next"``, FuseChat's mend), or no row.
        collision: several candidates on one target id: the first one's probability, or their sum.
        renormalise: divide by the mass of the candidates left, so that nothing is in the tail, as published.
        k: candidates of a source row that are looked at, the likeliest first (10, as published); by default all that were kept.

    The map of strings is ``pair.tokens`` where that is one (``min_ed_map(..., on="strings")``), else it is computed once per pair and kept.
    Candidates of a row are expected in descending order. ``lost_mass`` holds what found no target id and what a collision cut.

    >>> letters = ["h", "e", "y"]
    >>> dtw_path(letters, ["he", "y"])
    [[0, 1], [2]]
    """

    name: Literal["dtw"] = "dtw"
    accept: Literal["equal", "min_ed"] = "min_ed"
    one_hot: Literal["current", "next", "none"] = "current"
    collision: Literal["first", "sum"] = "first"
    renormalise: bool = True
    k: Annotated[int, Field(ge=1)] | None = None

    def __call__(self, rows: Rows, target: Encoding, pair: Pair) -> Alignment:
        """Align one document.

        Raises:
            ValueError: rows or token ids of another vocabulary.
        """
        check_vocabularies(rows, pair.source)
        if self.k is not None:
            rows = replace(rows, topk=rows.topk.first(self.k))
        if len(target.ids) and int(target.ids.max()) >= pair.target.size:
            raise ValueError(f"target: token id {int(target.ids.max())} is outside its vocabulary of {pair.target.size} tokens")
        spellings = _spellings(pair, self.accept)
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
        one_hot[taught] = (match < 0) & (self.one_hot != "none")
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


@plain_dataclass(frozen=True)
class Spellings:
    """Two vocabularies as strings, and what each source string is taken for.

    Attributes:
        source: source strings with the target's sign for a space.
        target: target strings.
        bare_source: source strings without that sign, which is what DTW compares.
        bare_target: likewise.
        map: the map that accepts a pair and carries the candidates.
        single: ``map`` as one target id, or -1, per source id.
        dummy_prefix: what a byte-level source lacks before the first token of a text: the target's sign for a space; else ``""``.
    """

    source: list[str]
    target: Sequence[str]
    bare_source: list[str]
    bare_target: list[str]
    map: VocabularyMap
    single: Int[np.ndarray, " W"]
    dummy_prefix: str

    @classmethod
    def of(cls, pair: Pair, accept: str) -> Spellings:
        """Spell both vocabularies; the map of MinED takes seconds unless the pair brings it."""
        ours, theirs = space_marker(pair.target), space_marker(pair.source)
        if accept == "equal":
            onto = exact_string_map(pair.source, pair.target)
        elif pair.tokens is not None and pair.tokens.method == "min_ed_strings":
            onto = pair.tokens
        else:
            onto = min_ed_map(pair.source, pair.target, on="strings")
        bare_source, bare_target = respell(pair.source.strings, theirs, ""), respell(pair.target.strings, ours, "")
        spelled = respell(pair.source.strings, theirs, ours)
        dummy_prefix = ours if theirs == BYTE_LEVEL_MARKER else ""
        return cls(spelled, pair.target.strings, bare_source, bare_target, onto, onto.single(), dummy_prefix)

    def accepts_first(self, source_id: int, target_id: int) -> bool:
        """Return whether the first target token of a text may be the source token, which may lack its dummy prefix.

        The published rule: the prefix is put before the source's string if only the target's has it.
        """
        ours, theirs = self.target[target_id], self.source[source_id]
        if not (self.dummy_prefix and ours.startswith(self.dummy_prefix) and not theirs.startswith(self.dummy_prefix)):
            return bool(self.single[source_id] == target_id)
        theirs = self.dummy_prefix + theirs
        return ours == theirs or any(string == theirs and self.single[n] == target_id for n, string in enumerate(self.source))


def accepted(source_ids: Integer[np.ndarray, " U"], target_ids: Integer[np.ndarray, " T"], spellings: Spellings) -> Int[np.ndarray, " T"]:
    """Return for each target token the source token that it is taken for, or -1: one match only, and strings that agree.

    Positions are the published ones, the tokens that were read; ``Dtw`` moves them by one.
    """
    path = dtw_path([spellings.bare_source[n] for n in source_ids.tolist()], [spellings.bare_target[n] for n in target_ids.tolist()])
    match = np.fromiter((places[0] if len(places) == 1 else -1 for places in path), np.int64, len(path))
    found = np.flatnonzero(match >= 0)
    agree = spellings.single[source_ids[match[found]]] == target_ids[found]
    if len(found) and found[0] == 0:
        agree[0] = spellings.accepts_first(int(source_ids[match[0]]), int(target_ids[0]))
    match[found[~agree]] = -1
    return match


def dtw_path(source_strings: Sequence[str], target_strings: Sequence[str]) -> list[list[int]]:
    """Return for each target string the places of the source strings that dynamic time warping matches with it, ascending.

    The cost of a match is the Levenshtein distance. Of equally short paths the published choice is made, from the end of the text
    backwards: both sides step back, else only the source, else only the target.

    >>> dtw_path(["hello", "wor", "ld"], ["hel", "lo", "world"])         # `lo` meets `wor`: strings do not know where they stand
    [[0], [1], [2]]
    """
    matches: list[list[int]] = [[] for _ in target_strings]
    if not source_strings or not target_strings:
        return matches
    total = _path_lengths(_costs(source_strings, target_strings))
    i, j = total.shape[0] - 1, total.shape[1] - 1
    while i > 0:
        matches[j - 1].append(i - 1)
        both, source_only, target_only = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        if both <= source_only and both <= target_only:
            i, j = i - 1, j - 1
        elif source_only <= target_only:
            i -= 1
        else:
            j -= 1
    return [places[::-1] for places in matches]


def _costs(source_strings: Sequence[str], target_strings: Sequence[str]) -> Int[np.ndarray, "U T"]:
    """Return the edit distances of all pairs, computed once per pair of different strings."""
    rows, columns = ({string: n for n, string in enumerate(dict.fromkeys(strings))} for strings in (source_strings, target_strings))
    distinct = cdist(list(rows), list(columns), scorer=Levenshtein.distance, dtype=np.int32)
    return distinct[np.ix_([rows[string] for string in source_strings], [columns[string] for string in target_strings])]


def _path_lengths(cost: Int[np.ndarray, "U T"]) -> Int[np.ndarray, "U+1 T+1"]:
    """Return the cost of the shortest path to each cell, with a border of ``FAR`` around it.

    A row at a time: a path enters row ``i`` in some column from above or diagonally and then goes right, which costs a difference of two
    running sums. So the best way in is a running minimum, and integers keep it exact.
    """
    total = np.full((cost.shape[0] + 1, cost.shape[1] + 1), FAR, np.int32)
    total[0, 0] = 0
    along = np.cumsum(cost, axis=1, dtype=np.int32)
    for i in range(len(cost)):
        enter = np.minimum(total[i, :-1], total[i, 1:])
        enter[1:] -= along[i, :-1]
        np.minimum.accumulate(enter, out=enter)
        np.add(enter, along[i], out=total[i + 1, 1:])
    return total


_KEPT: OrderedDict[tuple[str, str, str], Spellings] = OrderedDict()


def _spellings(pair: Pair, accept: str) -> Spellings:
    """Return the strings of a pair, kept for the last few pairs: every document asks for them."""
    key = (pair.source.key, pair.target.key, accept)
    if key not in _KEPT:
        _KEPT[key] = Spellings.of(pair, accept)
        while len(_KEPT) > 8:
            _KEPT.popitem(last=False)
    return _KEPT[key]
