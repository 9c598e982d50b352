"""Where a source token goes that the target does not have: to the target token with the least edit distance (MinED of FuseLLM).

arXiv:2401.10491, section 3.2. Exact matches first, then the whole target vocabulary under one tie rule:

====================  ===============================================  ==========================================================
``on``                compares                                         of several targets at the smallest distance
====================  ===============================================  ==========================================================
``"bytes"``           what the tokens write                            the longest shared prefix, then the lowest id
``"strings"``         spellings with the space sign swapped            the lowest id, as published (first minimum in vocabulary order)
====================  ===============================================  ==========================================================

On bytes, control tokens go only to the target's token of their own class, and tokens that write nothing match nothing. On strings both
are text like any other, as published: ``</s>`` and ``<|endoftext|>`` meet only if their letters are near, and byte-level or byte-fallback
spellings of newlines and non-ASCII text go through edit distances without a meaning. Where conversations are read, the end of a turn goes
to the target's and nothing else does, on bytes and on strings. The search itself is in ``nearest.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from lmfuse.align.exact import exact_map, map_turn_end, token_bytes, turn_end
from lmfuse.align.nearest import nearest
from lmfuse.align.strings import respell, space_marker
from lmfuse.types import Vocabulary, VocabularyMap

METHOD_NAMES = {"bytes": "min_ed", "strings": "min_ed_strings"}


def min_ed_map(source: Vocabulary, target: Vocabulary, *, on: Literal["bytes", "strings"]) -> VocabularyMap:
    """Map each source token to its equal in the target's vocabulary, else to the nearest by edit distance.

    Of two equal vocabularies every token is itself. The map's ``method`` is ``min_ed`` on bytes, ``min_ed_strings`` on strings.

    >>> ours = Vocabulary.from_tokens([b"", b"a", b"book", b"cooks", b"look"], control={"eos": 0})
    >>> theirs = Vocabulary.from_tokens([b"books", b"a", b"cook", b""], control={"eos": 3})
    >>> min_ed_map(theirs, ours, on="bytes").single().tolist()      # books: `book` and `cooks` are 1 away, `book` shares 4 bytes
    [2, 1, 3, 0]
    """
    if source.key == target.key:
        target_of = np.arange(source.size)
    elif on == "bytes":
        target_of = exact_map(source, target).single()
        ours, theirs = ([written.decode("latin-1") for written in token_bytes(vocabulary)] for vocabulary in (target, source))
        target_of = _fill(target_of, _unspoken(theirs, source), _unspoken(ours, target), prefix_first=True)
    else:
        target_of = exact_string_map(source, target).single()
        theirs = respell(source.strings, space_marker(source), space_marker(target))
        target_of = _fill(target_of, _unspoken(theirs, source), _unspoken(target.strings, target), prefix_first=False)
    return VocabularyMap.from_single(target_of, target.size, METHOD_NAMES[on])


def exact_string_map(source: Vocabulary, target: Vocabulary) -> VocabularyMap:
    """Map each source token to the target token of the same spelling, the space sign swapped: the published exact match (EM).

    >>> theirs = Vocabulary.from_tokens([b" a", b" b"], strings=["Ġa", "Ġb"])
    >>> exact_string_map(theirs, Vocabulary.from_tokens([b"b", b" a"], strings=["b", "▁a"])).single().tolist()
    [1, -1]
    """
    if source.key == target.key:
        return VocabularyMap.from_single(np.arange(source.size), target.size, "exact_strings")
    id_of = {string: token_id for token_id, string in reversed(list(enumerate(target.strings))) if string}
    spelled = respell(source.strings, space_marker(source), space_marker(target))
    target_of = np.fromiter((id_of.get(string, -1) for string in spelled), np.int64, source.size)
    return VocabularyMap.from_single(map_turn_end(target_of, source, target), target.size, "exact_strings")


def _unspoken(strings: Sequence[str], vocabulary: Vocabulary) -> Sequence[str]:
    """Return strings without that of the token that ends a turn: it is near to no other."""
    end = turn_end(vocabulary)
    return strings if end < 0 else [*strings[:end], "", *strings[end + 1 :]]


def _fill(target_of: Int[np.ndarray, " W"], theirs: Sequence[str], ours: Sequence[str], *, prefix_first: bool) -> Int[np.ndarray, " W"]:
    """Give each non-empty source token without a target the nearest non-empty target token."""
    missing = [token_id for token_id, string in enumerate(theirs) if string and target_of[token_id] < 0]
    known = [token_id for token_id, string in enumerate(ours) if string]
    if missing and known:
        found = nearest([theirs[n] for n in missing], [ours[n] for n in known], prefix_first=prefix_first)
        target_of[missing] = np.asarray(known)[found]
    return target_of
