"""How the strings of a vocabulary stand for text, read from the parts of a tokenizer's JSON: decoder first, class names never.

There are three spellings:

==============  ===========================================  ==========================================
byte level      every character stands for one byte          ``Ġthe`` -> ``b" the"`` (GPT-2, Qwen)
Metaspace       U+2581 for a space, ``<0xNN>`` for a byte    ``▁the`` -> ``b" the"`` (Llama-2, T5)
WordPiece       ``##`` goes on, everything else is a word    ``the`` -> ``b" the"``, ``##s`` -> ``b"s"``
==============  ===========================================  ==========================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from lmfuse.errors import TokenizerError

Node = dict[str, Any]  # one part of a tokenizer.json: {"type": ..., its options}
CHILDREN = ("normalizers", "pretokenizers", "decoders", "processors")
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
MOST_REPLACED, MOST_GROWTH = 64, 16  # replacements in a row, and how much longer they make a token; a few dozen doublings fill any memory
NOT_SPACED = (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")  # WordPiece's decoder with cleanup writes no space before these


def walk(node: Node | None) -> Iterator[Node]:
    """Yield a part and, in order, the parts that it is a sequence of; nothing for None."""
    if node is None:
        return
    yield node
    for child in (part for name in CHILDREN for part in node.get(name) or ()):
        yield from walk(child)


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: the printable characters stand for themselves, the other bytes for U+0100 and up, in order.

    >>> alphabet = byte_alphabet()
    >>> alphabet["a"], alphabet["Ġ"], alphabet["Ċ"], len(alphabet)
    (97, 32, 10, 256)
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(rest)}


@dataclass(frozen=True)
class Spelling:
    """How the strings of a vocabulary stand for text; ``read_spelling`` finds it.

    Attributes:
        byte_level: every character of a token stands for a byte.
        replace: pairs of strings; the first is written as the second (U+2581 as a space).
        byte_fallback: ``<0xNN>`` is one byte.
        word_prefix: WordPiece's ``##``; None for every other kind.
        cleanup: WordPiece's decoder writes no space before ``. ? ! ,`` and contractions.
    """

    byte_level: bool = False
    replace: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    word_prefix: str | None = None
    cleanup: bool = False

    @property
    def is_wordpiece(self) -> bool:
        """Return whether spaces between words are no part of any token string."""
        return self.word_prefix is not None

    def reader(self) -> Callable[[str], bytes]:
        """Return the function from a token's string to the bytes that it writes in the middle of a text."""
        if self.byte_level:
            value_of = byte_alphabet().__getitem__

            def read_byte_level(token: str) -> bytes:
                try:
                    return bytes(map(value_of, token))
                except KeyError:  # the decoder copies what is not of its alphabet
                    return token.encode()

            return read_byte_level
        return self._read_word if self.is_wordpiece else self._read_text

    def _read_text(self, token: str) -> bytes:
        if self.byte_fallback and (match := BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        for old, new in self.replace:
            token = token.replace(old, new)
        return token.encode()

    def _read_word(self, token: str) -> bytes:
        assert self.word_prefix is not None
        if token.startswith(self.word_prefix):
            return token[len(self.word_prefix) :].encode()
        return token.encode() if self.cleanup and token.startswith(NOT_SPACED) else b" " + token.encode()


def read_spelling(state: Node) -> Spelling:
    """Find how a tokenizer spells text from its parsed JSON, from the decoder where it has one.

    Raises:
        TokenizerError: the parts belong to none of the kinds that can be read as bytes.
    """
    model = state["model"]
    found: dict[str, Any] = {"byte_fallback": bool(model.get("byte_fallback"))}
    replace: list[tuple[str, str]] = []
    for node in walk(state.get("decoder")) if state.get("decoder") else _implied_decoder(state):
        match node:
            case {"type": "ByteLevel"}:
                found["byte_level"] = True
            case {"type": "Metaspace", "replacement": str(mark)}:
                replace.append((mark, " "))
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replace.append((old, new))
            case {"type": "ByteFallback"}:
                found["byte_fallback"] = True
            case {"type": "WordPiece", "prefix": str(prefix)}:
                found |= {"word_prefix": prefix, "cleanup": bool(node.get("cleanup"))}
            case {"type": "Fuse" | "Strip" | "Sequence"}:
                pass  # Strip takes the dummy prefix off a whole text; tokens keep theirs
            case _:
                raise _unreadable(f"decoder {node.get('type')!r}")
    if len(replace) > MOST_REPLACED or prod(max((len(new) + (not old)) / max(len(old), 1), 1) for old, new in replace) > MOST_GROWTH:
        raise _unreadable(f"decoder of {len(replace)} replacements (more than {MOST_REPLACED}, or text {MOST_GROWTH} times as long)")
    if model.get("end_of_word_suffix"):
        raise _unreadable(f"end_of_word_suffix {model['end_of_word_suffix']!r}")
    if model.get("continuing_subword_prefix") and "word_prefix" not in found:
        raise _unreadable(f"continuing_subword_prefix {model['continuing_subword_prefix']!r} without a WordPiece decoder")
    return Spelling(replace=tuple(replace), **found)


def _implied_decoder(state: Node) -> list[Node]:
    """Return the decoder that a tokenizer without one should have, from the parts that write its alphabet."""
    if state["model"].get("type") == "WordPiece":
        return [{"type": "WordPiece", "prefix": state["model"]["continuing_subword_prefix"]}]
    parts = [*walk(state.get("normalizer")), *walk(state.get("pre_tokenizer"))]
    decoder: list[Node] = [node for node in parts if node["type"] in ("ByteLevel", "Metaspace")]
    for node in parts:
        if node["type"] == "Replace" and node["pattern"] == {"String": " "}:
            decoder.append({"type": "Replace", "pattern": {"String": node["content"]}, "content": " "})
    if not decoder:
        raise _unreadable(f"model {state['model'].get('type')!r} without a decoder")
    return decoder


def _unreadable(what: str) -> TokenizerError:
    return TokenizerError(
        f"tokenizer: {what} cannot be read as bytes; expected byte level, Metaspace, byte fallback or WordPiece",
        hint="use a model whose tokenizer is one of these kinds",
    )
