"""A rendered conversation as a tokenizer will see it: control tokens, the text between them, and where in it the trained contents stand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from tokenizers import AddedToken

from lmfuse.chat_template import Stretch, Unfit
from lmfuse.types import Segment

FIRST_PRIVATE, LAST_PRIVATE = 0x100000, 0x10FFFD  # characters that stand for control tokens while a text is encoded
WHITESPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
"""Unicode's, which the tokenizers library means; Python's takes in U+001C to U+001F, too."""
PRIVATE = re.compile(f"[{chr(FIRST_PRIVATE)}-{chr(LAST_PRIVATE)}]")


class Controls:
    """The control tokens that a template can write.

    >>> controls = Controls({"<s>": 1, "</s>": 2}, {})
    >>> controls.cut("<s>[INST] "), controls.cut("</s><s>")
    ((['', '[INST] '], [1]), (['', '', ''], [2, 1]))
    """

    def __init__(self, ids: Mapping[str, int], flags: Mapping[int, AddedToken]) -> None:
        """Keep their ids by string, and by id how each takes whitespace with it."""
        self.ids, self.flags = dict(ids), dict(flags)
        longest_first = sorted(ids, key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._known: dict[str, tuple[list[str], list[int]]] = {}

    def cut(self, text: str) -> tuple[list[str], list[int]]:
        """Return the texts between the control tokens that a text spells, and their ids: one text more than there are ids."""
        found = self._known.get(text)
        if found is None:
            found = self._pattern.split(text), [self.ids[control] for control in self._pattern.findall(text)]
            self._known[text] = found
        return found


@dataclass(frozen=True)
class Part:
    """Text between two control tokens, and its trained contents as first and last character."""

    text: str
    contents: tuple[tuple[int, int], ...]

    def without_space(self, before: bool, behind: bool) -> Part:
        """Return the part without the whitespace that the control tokens beside it take."""
        taken = len(self.text) - len(self.text.lstrip(WHITESPACE)) if before else 0
        text = self.text[taken:].rstrip(WHITESPACE) if behind else self.text[taken:]
        return Part(text, tuple((max(first - taken, 0), min(last - taken, len(text))) for first, last in self.contents))


@dataclass(frozen=True)
class Layout:
    """Parts, one more than the control tokens between them."""

    parts: tuple[Part, ...]
    controls: tuple[int, ...]

    def text(self, private: Sequence[int]) -> str:
        """Return the text to encode: the n-th of ``private`` is written as the n-th private character."""
        mark = {token_id: chr(FIRST_PRIVATE + n) for n, token_id in enumerate(private)}
        marks = [*(mark[token_id] for token_id in self.controls), ""]
        return "".join(written for part, mark in zip(self.parts, marks, strict=True) for written in (part.text, mark))

    @property
    def begins(self) -> list[int]:
        """Return for each part the character of ``text`` at which it begins."""
        return [0, *accumulate(len(part.text) + 1 for part in self.parts[:-1])]


def lay_out(messages: Sequence[Segment], rendered: list[Stretch] | Unfit, controls: Controls) -> Layout | Unfit:
    """Return what a template wrote of some messages, cut at the control tokens that it wrote itself.

    Control strings in a message are no control tokens, nor is one that a message completes.
    """
    if isinstance(rendered, Unfit):
        return rendered
    if any(not stretch.text.isascii() and PRIVATE.search(stretch.text) for stretch in rendered):
        return Unfit(f"it holds a character beyond U+{FIRST_PRIVATE:X}; these stand for control tokens here")
    trained = [stretch.message for stretch in rendered if stretch.message >= 0 and messages[stretch.message].trained]
    if any(first > second for first, second in pairwise(trained)):
        return Unfit("it changes the order of the answers")
    texts: list[str] = [""]
    contents: list[list[tuple[int, int]]] = [[]]
    ids: list[int] = []
    for stretch in rendered:
        if stretch.message < 0:
            pieces, found = controls.cut(stretch.text)
            texts[-1] += pieces[0]
            texts += pieces[1:]
            contents += [[] for _ in found]
            ids += found
            continue
        if messages[stretch.message].trained:
            contents[-1].append((len(texts[-1]), len(texts[-1]) + len(stretch.text)))
        texts[-1] += stretch.text
    before = [False, *(controls.flags[token_id].rstrip for token_id in ids)]
    behind = [*(controls.flags[token_id].lstrip for token_id in ids), False]
    parts = (Part(text, tuple(spans)) for text, spans in zip(texts, contents, strict=True))
    return Layout(tuple(part.without_space(*sides) for part, *sides in zip(parts, before, behind, strict=True)), tuple(ids))
