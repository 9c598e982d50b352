"""Where a source token goes that the target cannot write as one token: to the first of the target tokens that write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from lmfuse.align.exact import exact_ids, map_control_tokens, map_turn_end, token_bytes
from lmfuse.types import Vocabulary, VocabularyMap

FirstPieces = Callable[[Sequence[bytes]], Int[np.ndarray, "N"]]
"""What the target's tokenizer writes first for each byte string, as a continuation of text; -1 for nothing."""


def first_piece_ids(strings: Sequence[bytes], target: Vocabulary, first_pieces: FirstPieces) -> Int[np.ndarray, "N"]:
    """Return for each byte string the target token of exactly these bytes, else the first target piece of them, else -1.

    The tokenizer is asked only where no token, or more than one, has these bytes: of equals it decides which one it writes.
    """
    target_of = exact_ids(strings, target)
    written = token_bytes(target)
    seen: set[bytes] = set()
    ambiguous = {string for string in written if string in seen or seen.add(string)}  # type: ignore[func-returns-value]
    asked = [n for n, string in enumerate(strings) if string and (target_of[n] < 0 or string in ambiguous)]
    for n, piece in zip(asked, first_pieces([strings[n] for n in asked]).tolist(), strict=True):
        if target_of[n] < 0 or (piece >= 0 and written[piece] == strings[n]):
            target_of[n] = piece
    return target_of


def first_piece_map(source: Vocabulary, target: Vocabulary, first_pieces: FirstPieces) -> VocabularyMap:
    """Map each source token to the target token of its bytes, else to the first target piece; control tokens to their own class.

    >>> letters = Vocabulary.from_tokens([b"a", b"b", b"c"])
    >>> greedy = lambda strings: np.array([b"abc".index(string[0]) for string in strings])
    >>> first_piece_map(Vocabulary.from_tokens([b"ca", b"b"]), letters, greedy).single().tolist()
    [2, 1]
    """
    if source.key == target.key:
        return VocabularyMap.from_single(np.arange(source.size), target.size, "first_piece")
    target_of = first_piece_ids(token_bytes(source), target, first_pieces)
    target_of = map_turn_end(map_control_tokens(target_of, source, target), source, target)
    return VocabularyMap.from_single(target_of, target.size, "first_piece")
