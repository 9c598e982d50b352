"""Tokens as FuseLLM and FuseChat compare them: spelled strings in which only the sign for a space is swapped.

What this cannot see, and the released code does not see either: byte-level spellings (``Ċ``, ``âĢĶ``) and byte-fallback tokens (``<0x0A>``)
keep their letters, so newlines, tabs and text beyond ASCII of different families never match.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmfuse.types import Vocabulary

BYTE_LEVEL_MARKER = "Ġ"
METASPACE_MARKER = "▁"


def space_marker(vocabulary: Vocabulary) -> str:
    """Return the sign with which a vocabulary spells a leading space, the more frequent one if it has both; ``""`` without any.

    >>> space_marker(Vocabulary.from_tokens([b" a", b"b"], strings=["Ġa", "b"]))
    'Ġ'
    """
    count = {marker: sum(string.startswith(marker) for string in vocabulary.strings) for marker in (METASPACE_MARKER, BYTE_LEVEL_MARKER)}
    marker = max(count, key=lambda sign: count[sign])
    return marker if count[marker] else ""


def respell(strings: Sequence[str], marker: str, new_marker: str) -> list[str]:
    """Return the strings with every ``marker`` replaced; without a marker nothing changes.

    >>> respell(["Ġa", "b"], "Ġ", "▁")
    ['▁a', 'b']
    """
    return [string.replace(marker, new_marker) for string in strings] if marker else list(strings)
