"""Tokenizers made for us from a tokenizer that was given: one for texts, one for pieces in the middle of a text.

Both share the given tokenizer's model (no second copy of a vocabulary), cut and pad nothing, add no template token, and read
literal control strings (``<s>``, ``<|im_end|>``, ``<0x0A>``) as the characters they are. The given tokenizer is never changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers

from lmfuse.bytes_spelling import CHILDREN, Node
from lmfuse.bytes_vocabulary import Given
from lmfuse.errors import TokenizerError

DROPPING_SPACE = frozenset({"WhitespaceSplit", "Strip", "Prepend"})


def text_encoder(given: Given, silent: frozenset[str], more: Sequence[AddedToken] = ()) -> Tokenizer:
    """Return the tokenizer that encodes plain texts.

    Args:
        given: the tokenizer.
        silent: the strings of the tokens that carry no bytes.
        more: further tokens, which get the ids behind all others.
    """
    encoder = _same_ids(given, silent)
    encoder.normalizer, encoder.pre_tokenizer = given.tokenizer.normalizer, given.tokenizer.pre_tokenizer
    _guard(encoder, given, silent)
    encoder.add_tokens(list(more))
    return encoder


def piece_encoder(given: Given, silent: frozenset[str]) -> Tokenizer:
    """Return the tokenizer that encodes a piece as it would stand in the middle of a text: nothing put before it, no space taken off.

    Metaspace, byte-level and Prepend lose their dummy prefix. Parts that drop spaces (T5 splits at whitespace and then marks every
    word) are left out, so that a space in front of a piece, and no space in front of one, stay what they are.
    """
    encoder = _same_ids(given, silent)
    parts = {name: _edit(given.state.get(name), _without_prefix) for name in ("normalizer", "pre_tokenizer")}
    small = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    edited = Tokenizer.from_str(json.dumps({**small, **parts}))
    encoder.normalizer, encoder.pre_tokenizer = edited.normalizer, edited.pre_tokenizer
    _guard(encoder, given, silent)
    return encoder


def _same_ids(given: Given, silent: frozenset[str]) -> Tokenizer:
    """Return a tokenizer over the same model with the same ids; every silent token is special, and what is special is read as text."""
    model = given.tokenizer.model
    if given.state["model"].get("dropout"):  # merges would be left out at random: the same text must give the same ids
        model = Tokenizer.from_str(json.dumps({**given.state, "model": {**given.state["model"], "dropout": None}})).model
    encoder = Tokenizer(model)
    kept = {i: token for i, token in given.added.items() if token.content not in given.byte_tokens}
    encoder.add_tokens([_flagged(token, token.special or token.content in silent) for token in kept.values()])
    for i, token in kept.items():
        if encoder.token_to_id(token.content) != i:
            raise TokenizerError(
                f"tokenizer: added token {token.content!r} has id {i}, expected {encoder.token_to_id(token.content)}: ids with gaps",
                hint="save the tokenizer again with transformers, which numbers added tokens without gaps",
            )
    encoder.encode_special_tokens = True
    return encoder


def _flagged(token: AddedToken, special: bool) -> AddedToken:
    flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(token.content, special=special, **flags)


def _guard(encoder: Tokenizer, given: Given, silent: frozenset[str]) -> None:
    """Split texts inside every literal control or byte string that the model itself would take for the token.

    Unigram looks every stretch of a text up in its vocabulary and so finds ``</s>`` and ``<0x0A>`` in it; a BPE model does so where a merge
    or ``ignore_merges`` makes such a token. The split stands last, where strings are spelled as in the vocabulary.
    """
    traps = {text: encoder.token_to_id(text) for text in sorted({*silent, *given.byte_tokens}) if len(text) > 1}
    if given.state["model"]["type"] != "Unigram":
        encodings = encoder.encode_batch_fast(list(traps), add_special_tokens=False)
        traps = {text: i for (text, i), encoding in zip(traps.items(), encodings, strict=True) if i in encoding.ids}
    if not traps:
        return
    tails: dict[str, list[str]] = {}
    for text in traps:
        tails.setdefault(text[0], []).append(re.escape(text[1:]))
    pattern = "|".join(f"{re.escape(first)}(?=(?:{'|'.join(rest)}))" for first, rest in tails.items())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    before = encoder.pre_tokenizer
    encoder.pre_tokenizer = split if before is None else pre_tokenizers.Sequence([before, split])


def _edit(node: Node | None, change: Callable[[Node], Node | None]) -> Node | None:
    """Return a part with every part of it changed; what is changed to None falls out of its sequence."""
    changed = None if node is None else change(node)
    if changed is None:
        return None
    lists: dict[str, Any] = {
        name: [child for child in (_edit(part, change) for part in changed[name]) if child] for name in CHILDREN if name in changed
    }
    return {**changed, **lists}


def _without_prefix(node: Node) -> Node | None:
    match node:
        case {"type": "Metaspace"}:
            return {"type": "Metaspace", "replacement": node["replacement"], "prepend_scheme": "never", "split": node.get("split", True)}
        case {"type": "ByteLevel"} if "add_prefix_space" in node:
            return {**node, "add_prefix_space": False}
        case {"type": str(kind)} if kind in DROPPING_SPACE:
            return None
        case _:
            return node
