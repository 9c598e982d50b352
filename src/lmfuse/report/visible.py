"""Bytes from strangers as characters that can be shown: no control character, nothing invisible, nothing that overrides the direction of text.

Letters that are written from right to left stay letters: a page isolates them, a terminal orders them as it does.
"""

from __future__ import annotations

import unicodedata
from itertools import groupby
from typing import Literal

Part = tuple[Literal["text", "mark", "hex"], str]

MARKS = {" ": "\u00b7", "\n": "\u21b5", "\t": "\u21e5"}
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")
BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(code) for code in range(0xFE00, 0xFE10)
}  # letters that show nothing
COMBINING = ("Mn", "Mc", "Me")
DOTTED_CIRCLE = "\u25cc"  # carries a combining character that has nothing before it


def parts(data: bytes) -> list[Part]:
    """Return bytes as runs of text, of marks for spaces, tabs and newlines, and of hex digits for what cannot be shown.

    Hex digits stand for half a character, for what is invisible, and for what would change the direction of the text.

    >>> parts(b"a b\\n\\xe6\\x9d")
    [('text', 'a'), ('mark', '·'), ('text', 'b'), ('mark', '↵'), ('hex', 'E69D')]
    """
    pairs = [_shown(character) for character in data.decode("utf-8", "surrogateescape")]
    runs = [(kind, "".join(text for _, text in run)) for kind, run in groupby(pairs, key=lambda pair: pair[0])]
    return [(kind, DOTTED_CIRCLE + text if kind == "text" and unicodedata.category(text[0]) in COMBINING else text) for kind, text in runs]


def _shown(character: str) -> Part:
    code = ord(character)
    if character in MARKS:
        return "mark", MARKS[character]
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return "hex", f"{code - 0xDC00:02X}"
    if unicodedata.category(character) in HIDDEN or character in BLANK:
        return "hex", character.encode("utf-8", "surrogatepass").hex().upper()
    return "text", character


def visible(data: bytes | str, most: int = 80) -> str:
    r"""Return bytes or a string on one line, cut after ``most`` characters; what cannot be shown as ``\x`` and hex digits.

    >>> print(visible("Ġthe\u202e\x1b[0m"), visible(b"\xff ok", most=6))
    Ġthe\xE2\x80\xAE\x1B[0m \xFF·…
    """
    found = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    escaped = "".join(
        "".join(f"\\x{text[i : i + 2]}" for i in range(0, len(text), 2)) if kind == "hex" else text
        for kind, text in parts(found[: 4 * most])
    )
    return escaped if len(escaped) <= most and len(found) <= 4 * most else escaped[: most - 1] + "…"


def plain(text: str, most: int = 160) -> str:
    """Return a name or a sentence like ``visible``, with its spaces as spaces.

    >>> plain("my model\\n")
    'my model↵'
    """
    return visible(text, most).replace(MARKS[" "], " ")
