"""Where a source token goes: to the target token that stands where it stands, counted over a corpus.

The mapping statistics of FuseChat, arXiv:2408.07990 (FusionChat, arXiv:2402.16107). Which tokens meet is counted in ``counts.py``; the
rules that choose among them (``choose``) are in ``choices.py``.

A token that the corpus does not show goes to the target token of its bytes, else to its first target piece. As released it goes
instead to the target's unknown token, or to its end token where there is none: beside ``min_ed_strings`` the only map that sends text
to a control token. Control tokens and the end of a turn are never counted; they go to their own class, and nothing else goes to the end
of a turn: where the released code's token for the unknown is that one, what was not counted is unmapped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from lmfuse.align.choices import METHOD_NAMES, RULES, Choice
from lmfuse.align.counts import Counts
from lmfuse.align.exact import exact_ids, map_control_tokens, map_turn_end, token_bytes, turn_end
from lmfuse.align.first_piece import FirstPieces, first_piece_ids
from lmfuse.types import Vocabulary, VocabularyMap


@dataclass(frozen=True)
class MapReport:
    """How many source ids got their target from where; together they are the vocabulary.

    ``counted`` in the corpus; ``exact`` bytes; the ``first_piece``; a ``control`` token of the same class; ``unknown``, the released
    code's target for what it has not counted; and ``unmapped``.
    """

    counted: int = 0
    exact: int = 0
    first_piece: int = 0
    control: int = 0
    unknown: int = 0
    unmapped: int = 0


def co_occurrence_map(
    counts: Counts,
    source: Vocabulary,
    target: Vocabulary,
    first_pieces: FirstPieces,
    choose: Choice = "most_frequent",
    min_share: float = 0.01,
) -> tuple[VocabularyMap, MapReport]:
    """Map each source token by what it met in a corpus, and say how many tokens could be mapped so.

    Args:
        counts: which ids met how often.
        source: where probability comes from.
        target: where it goes.
        first_pieces: the target's tokenizer, for tokens that were not counted.
        choose: the rule.
        min_share: the least share of a source token's counts that a target token needs, for ``share``; the largest always stays.

    Raises:
        ValueError: counts of other vocabularies, or ``min_share`` outside of [0, 1].

    >>> ours, theirs = Vocabulary.from_tokens([b"a", b"ab", b"c"]), Vocabulary.from_tokens([b"abc", b"c", b"ca"])
    >>> counts = Counts.nothing(3, 3).plus(np.array([0, 0, 0, 0]), np.array([1, 0, 1, 1]))
    >>> first = lambda strings: np.array([b"abc".index(string[0]) for string in strings])
    >>> co_occurrence_map(counts, theirs, ours, first)[0].single().tolist()                # `abc` stood where `ab` stood
    [1, 2, 2]
    >>> shares, report = co_occurrence_map(counts, theirs, ours, first, "share")
    >>> shares.target_ids.tolist(), shares.weights.tolist(), report.counted, report.exact, report.first_piece
    ([1, 0, 2, 2], [0.75, 0.25, 1.0, 1.0], 1, 1, 1)
    """
    if (counts.source_size, counts.target_size) != (source.size, target.size):
        found = f"counts between {counts.source_size} and {counts.target_size} ids"
        raise ValueError(f"co_occurrence: {found}, expected {source.size} and {target.size}: count with the same tokenizers")
    if not 0 <= min_share <= 1:
        raise ValueError(f"co_occurrence: min_share {min_share}, expected a share from 0 to 1")
    if source.key == target.key:
        return VocabularyMap.from_single(np.arange(source.size), target.size, METHOD_NAMES[choose]), MapReport(exact=source.size)
    theirs, ours = np.divmod(counts.codes, target.size)
    text = (source.lengths[theirs] > 0) & (target.lengths[ours] > 0) & (theirs != turn_end(source)) & (ours != turn_end(target))
    counts = Counts(counts.codes[text], counts.counts[text], source.size, target.size)
    weights = RULES[choose](counts, source, target, min_share)
    kept = np.flatnonzero(weights)
    ids, onto = np.divmod(counts.codes[kept], counts.target_size)
    others, report = _not_counted(np.unique(ids), source, target, first_pieces, released=choose == "released")
    mapped = np.flatnonzero(others >= 0)
    ids, onto = np.concatenate([ids, mapped]), np.concatenate([onto, others[mapped]])
    weights = np.concatenate([weights[kept], np.ones(len(mapped))])
    order = np.lexsort((onto, -weights, ids))
    indptr = np.append(0, np.cumsum(np.bincount(ids, minlength=source.size)))
    return VocabularyMap(indptr, onto[order], weights[order].astype(np.float32), target.size, METHOD_NAMES[choose]), report


def _not_counted(
    counted: Int[np.ndarray, "N"], source: Vocabulary, target: Vocabulary, first_pieces: FirstPieces, *, released: bool
) -> tuple[Int[np.ndarray, "W"], MapReport]:
    """Return where the ids go that were not counted (-1: nowhere, or counted), and how many go by what."""
    target_of = map_turn_end(map_control_tokens(np.full(source.size, -1), source, target), source, target)
    control = target_of >= 0
    text = (source.lengths > 0) & (np.arange(source.size) != turn_end(source))
    text[counted] = False
    missing, strings = np.flatnonzero(text), token_bytes(source)
    exact = unknown = 0
    if released:
        nothing = target.control.get("unk", target.control.get("eos", -1))
        target_of[missing] = -1 if nothing == turn_end(target) else nothing
        unknown = int((target_of[missing] >= 0).sum())
    else:
        asked = [strings[n] for n in missing.tolist()]
        target_of[missing] = first_piece_ids(asked, target, first_pieces)
        exact = int((exact_ids(asked, target) >= 0).sum())
    found = int((target_of[missing] >= 0).sum())
    unmapped = source.size - len(counted) - int(control.sum()) - found
    return target_of, MapReport(len(counted), exact, found - exact - unknown, int(control.sum()), unknown, unmapped)
