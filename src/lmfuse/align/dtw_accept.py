"""Which source token a target token is taken for: the published rules on token strings, FuseLLM's and FuseChat's.

==========  ============================================================  =====================================
``accept``  one source token is matched                                   several source tokens are matched
==========  ============================================================  =====================================
``equal``   accepted if the strings are equal but for the sign for space  never
``min_ed``  also if the source's string maps to the target's              never
``suffix``  accepted if one string ends in the other                      the first one that passes the same test
==========  ============================================================  =====================================

The first two are FuseLLM's (arXiv:2401.10491, section 3.2), the last is the statistics mode of FuseChat's released code (arXiv:2408.07990),
which also prefers another of two equally short paths. Of several source tokens without such an end that code peels off those that the
target token begins with. What they rebuild exactly ends in the last of them, so that case is the suffix test's; what they do not rebuild
becomes an empty row, which its collator replaces. Here nothing teaches such a token.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int, Integer

from lmfuse.align.dtw_path import decoded_strings, dtw_path, spell_end
from lmfuse.align.min_ed import exact_string_map, min_ed_map
from lmfuse.align.pair import Pair
from lmfuse.align.strings import BYTE_LEVEL_MARKER, respell, space_marker
from lmfuse.types import VocabularyMap

Accept = Literal["equal", "min_ed", "suffix"]
NO_MATCH, NO_ROW = -1, -2  # the fallback speaks; nothing does


@dataclass(frozen=True)
class Spellings:
    """Two vocabularies as strings, and what each source string is taken for.

    Attributes:
        accept: the rule that the strings are for.
        source: source strings with the target's sign for a space.
        target: target strings.
        bare_source: source strings as DTW compares them: without that sign, or (``suffix``) decoded.
        bare_target: likewise.
        map: the map that carries the candidates and (but for ``suffix``) accepts a pair.
        single: ``map`` as one target id, or -1, per source id.
        dummy_prefix: what a byte-level source lacks before the first token of a text: the target's sign for a space; else ``""``.
    """

    accept: Accept
    source: list[str]
    target: Sequence[str]
    bare_source: list[str]
    bare_target: list[str]
    map: VocabularyMap
    single: Int[np.ndarray, " W"]
    dummy_prefix: str

    @classmethod
    def of(cls, pair: Pair, accept: Accept) -> Spellings:
        """Spell both vocabularies; the map of MinED takes seconds unless the pair brings it.

        Raises:
            ValueError: ``suffix`` and no map in the pair that was counted over a corpus and has one target per id.
        """
        ours, theirs = space_marker(pair.target), space_marker(pair.source)
        if accept == "suffix":
            onto = _equal_first(pair)
            bare_source, bare_target = decoded_strings(pair.source), decoded_strings(pair.target)
        else:
            onto = exact_string_map(pair.source, pair.target) if accept == "equal" else _min_ed(pair)
            bare_source = spell_end(respell(pair.source.strings, theirs, ""), pair.source)
            bare_target = spell_end(respell(pair.target.strings, ours, ""), pair.target)
        spelled = respell(pair.source.strings, theirs, ours)
        dummy_prefix = ours if theirs == BYTE_LEVEL_MARKER else ""
        return cls(accept, spelled, pair.target.strings, bare_source, bare_target, onto, onto.single(), dummy_prefix)

    @classmethod
    def kept(cls, pair: Pair, accept: Accept) -> Spellings:
        """Return the strings of a pair, kept for the last few pairs: every document asks for them."""
        key = (pair.source.key, pair.target.key, accept, id(pair.tokens))
        if key not in _KEPT:
            _KEPT[key] = (cls.of(pair, accept), pair.tokens)  # the map stays alive, so no other one gets its id
            while len(_KEPT) > 8:
                _KEPT.popitem(last=False)
        return _KEPT[key][0]

    def accepts_first(self, source_id: int, target_id: int) -> bool:
        """Return whether the first target token of a text may be the source token, which may lack its dummy prefix.

        The published rule: the prefix is put before the source's string if only the target's has it.
        """
        ours, theirs = self.target[target_id], self.source[source_id]
        if not (self.dummy_prefix and ours.startswith(self.dummy_prefix) and not theirs.startswith(self.dummy_prefix)):
            return bool(self.single[source_id] == target_id)
        theirs = self.dummy_prefix + theirs
        return ours == theirs or any(string == theirs and self.single[n] == target_id for n, string in enumerate(self.source))


_KEPT: OrderedDict[tuple[str, str, str, int], tuple[Spellings, VocabularyMap | None]] = OrderedDict()


def _min_ed(pair: Pair) -> VocabularyMap:
    if pair.tokens is not None and pair.tokens.method == "min_ed_strings":
        return pair.tokens
    return min_ed_map(pair.source, pair.target, on="strings")


def _equal_first(pair: Pair) -> VocabularyMap:
    """Return the map of FuseChat's rows: to the token of the same spelling, else as counted over a corpus."""
    counted = pair.tokens
    if counted is None or not counted.method.startswith("co_occurrence") or np.diff(counted.indptr).max(initial=0) > 1:
        held = "no map of tokens" if counted is None else f"the map {counted.method!r}"
        raise ValueError(f"dtw: the pair holds {held}, accept 'suffix' needs 'co_occurrence_released' or 'co_occurrence'")
    equal = exact_string_map(pair.source, pair.target).single()
    return VocabularyMap.from_single(np.where(equal >= 0, equal, counted.single()), counted.target_size, counted.method)


def accepted(source_ids: Integer[np.ndarray, " U"], target_ids: Integer[np.ndarray, " T"], spellings: Spellings) -> Int[np.ndarray, " T"]:
    """Return for each target token the source token that it is taken for, ``NO_MATCH`` for none, ``NO_ROW`` for an empty row.

    Positions are the published ones, the tokens that were read; ``Dtw`` moves them by one.
    """
    theirs = [spellings.bare_source[n] for n in source_ids.tolist()]
    ours = [spellings.bare_target[n] for n in target_ids.tolist()]
    if spellings.accept == "suffix":
        path = dtw_path(theirs, ours, ties="target")
        return np.fromiter((accept_suffix(string, places, theirs) for string, places in zip(ours, path, strict=True)), np.int64, len(path))
    path = dtw_path(theirs, ours)
    match = np.fromiter((places[0] if len(places) == 1 else NO_MATCH for places in path), np.int64, len(path))
    found = np.flatnonzero(match >= 0)
    agree = spellings.single[source_ids[match[found]]] == target_ids[found]
    if len(found) and found[0] == 0:
        agree[0] = spellings.accepts_first(int(source_ids[match[0]]), int(target_ids[0]))
    match[found[~agree]] = NO_MATCH
    return match


def accept_suffix(ours: str, places: Sequence[int], theirs: Sequence[str]) -> int:
    """Return which of the source tokens at ``places`` a target token is taken for: FuseChat's rule for one token.

    >>> theirs = ["foot", "bal", "l", "team"]
    >>> accept_suffix("ball", [2], theirs), accept_suffix("foot", [1], theirs)       # `ball` ends in `l`; `foot` and `bal` end differently
    (2, -1)
    >>> accept_suffix("football", [0, 1, 2], theirs), accept_suffix("foots", [0, 1], theirs), accept_suffix("game", [1, 3], theirs)
    (2, -2, -1)
    """
    for place in places:
        if ours.endswith(theirs[place]) or theirs[place].endswith(ours):
            return place
    return NO_ROW if len(places) > 1 and any(ours.startswith(theirs[place]) for place in places) else NO_MATCH
