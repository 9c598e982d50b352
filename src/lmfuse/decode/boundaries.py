"""Where a segment may end: after whole words, sentences or paragraphs, and where every tokenizer ends a token.  arXiv:2407.19807, section 3

Everything here reads bytes; where tokenizers end tokens (*cuts*) comes as data. A segment never ends in whitespace, which belongs to the
next word, nor inside a character or before a mark that belongs to it, nor where the next character is not known yet.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Literal

Unit = Literal["word", "sentence", "paragraph", "answer"]
JOINER = "\u200d"
WITHOUT_SPACES = re.compile(  # scripts in which words stand side by side: a segment may end after each character
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
SENTENCE = re.compile(r"""[.!?…।؟۔]+["'”’»)\]]*(?=\s)|[。！？]+["'”’»）」』]*(?=.)""", re.DOTALL)
PARAGRAPH = re.compile(r"\S(?=[^\S\n]*\n\s*\n)")


def whole_characters(data: bytes) -> str:
    r"""Return the characters of valid UTF-8 whose last character may be unfinished, without the unfinished one.

    >>> whole_characters("né".encode()[:-1]), whole_characters("né".encode())
    ('n', 'né')
    """
    return data.decode("utf-8", errors="ignore")


def word_ends(text: str, ended: bool) -> list[int]:
    r"""Return the characters of a text behind which a word ends.

    A word ends before whitespace, where letters, digits and other signs meet, and in a script without spaces behind every character.

    Args:
        text: the text.
        ended: whether nothing follows; else what stands last may go on, and has no end.

    >>> word_ends(" it's 12\n", False), word_ends("नमस्ते दुनिया", True), word_ends("我们 go", False)
    ([3, 4, 5, 8], [6, 13], [1, 2])
    """
    ends, before = [], ""
    for place in range(1, len(text)):
        left, right = text[place - 1], text[place]
        before = before if _belongs(left) and before else _kind(left)
        if _meet(left, before, right):
            ends.append(place)
    return [*ends, len(text)] if ended and text else ends


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    if WITHOUT_SPACES.match(character):
        return "alone"
    category = unicodedata.category(character)[0]
    return {"L": "letter", "M": "letter", "N": "digit"}.get(category, "sign")


def _belongs(character: str) -> bool:
    """Return whether a character belongs to the one before it: combining marks, joiners, selectors, skin tones."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf") or "\U0001f3fb" <= character <= "\U0001f3ff"


def _meet(left: str, kind: str, right: str) -> bool:
    if kind == "space" or left == JOINER or _belongs(right):
        return False
    return _kind(right) != kind or kind == "alone"


def unit_ends(data: bytes, ended: bool, unit: Unit) -> list[int]:
    r"""Return the bytes at which words, sentences or paragraphs end in UTF-8 whose last character may be unfinished.

    >>> data = "Né. One\n\nTwo".encode()
    >>> [unit_ends(data, False, unit) for unit in ("word", "sentence", "paragraph", "answer")]
    [[3, 4, 8], [4], [8], []]
    """
    text = whole_characters(data)
    ended = ended and len(text.encode()) == len(data)
    if unit == "word":
        found = word_ends(text, ended)
    else:
        pattern = {"sentence": SENTENCE, "paragraph": PARAGRAPH}.get(unit)
        found = [match.end() for match in pattern.finditer(text)] if pattern else []
        found += [len(text)] if ended and text and found[-1:] != [len(text)] else []
    if text.isascii():
        return found
    at = [0, *accumulate(len(character.encode()) for character in text)]
    return [at[place] for place in found]


def first_end(ends: Sequence[int], cuts: Sequence[Collection[int]], length: int) -> int | None:
    """Return the first end, behind at least ``length`` units, that is a cut of every tokenizer; None where there is none.

    >>> first_end([3, 5, 9], [{3, 5, 9}, {5, 7, 9}], 1), first_end([3, 5, 9], [{3, 5, 9}, {3, 5}], 3)
    (5, None)
    """
    return next((end for end in ends[length - 1 :] if all(end in cut for cut in cuts)), None)


def last_resort(data: bytes, own_cuts: Collection[int]) -> int:
    """Return where a segment ends that met its limit without an end that suits all: behind its last word, else its last whole character.

    Both as its author cuts; 0 where not one character is whole.

    >>> last_resort(b"one two", {3, 5, 7}), last_resort("né".encode()[:2], {1, 2})
    (3, 1)
    """
    words = [end for end in unit_ends(data, False, "word") if end in own_cuts]
    if words:
        return words[-1]
    text = whole_characters(data)
    return max((end for end in accumulate(len(character.encode()) for character in text) if end in own_cuts), default=0)
