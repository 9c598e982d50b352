"""Which ids a tokenizer writes for byte strings in the middle of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import takewhile

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from lmfuse.bytes_files import GAVE_UP, library_errors
from lmfuse.types import END_OF_TURN, Vocabulary

CHUNK_PIECES = 1 << 16


class Pieces:
    """Answers what a tokenizer would write, see ``ByteTokenizer.first_pieces`` and ``pieces``."""

    def __init__(self, vocabulary: Vocabulary, encoder: Tokenizer | None, byte_tokens: frozenset[int]) -> None:
        """Keep what is asked; ``encoder`` encodes without a dummy prefix, None where that says nothing (WordPiece)."""
        self.vocabulary, self.encoder, self.byte_tokens = vocabulary, encoder, byte_tokens
        end = vocabulary.control.get("end_of_turn")
        self.speaks = end is not None and vocabulary.bytes_of(end) == END_OF_TURN

    def first(self, pieces: Sequence[bytes]) -> Int[np.ndarray, "N"]:
        """Return for each byte string the id that is written first, or -1."""
        place: dict[bytes, int] = {}
        inverse = np.fromiter((place.setdefault(self._said(piece), len(place)) for piece in pieces), np.int64, len(pieces))
        found = np.fromiter((self.exact.get(piece, -1) for piece in place), np.int64, len(place))
        missing = [(i, piece) for i, piece in enumerate(place) if found[i] < 0 and piece]
        texts = [(i, text) for i, piece in missing if (text := _decoded(piece)) is not None]
        for i, ids in zip((i for i, _ in texts), self._encode([text for _, text in texts]), strict=True):
            if ids and self.vocabulary.lengths[ids[0]]:
                found[i] = ids[0]
        for i, piece in missing:
            if found[i] < 0:
                found[i] = self._longest_prefix(piece)
        return found[inverse]

    def all(self, strings: Sequence[bytes]) -> list[list[int]]:
        """Return for each byte string all ids that are written for it."""
        found = {string: [self.exact[string]] if string in self.exact else [] for string in map(self._said, strings)}
        missing = [string for string, ids in found.items() if string and not ids]
        texts = [(string, text) for string in missing if (text := _decoded(string)) is not None]
        for (string, _), ids in zip(texts, self._encode([text for _, text in texts]), strict=True):
            found[string] = list(takewhile(lambda token_id: self.vocabulary.lengths[token_id] > 0, ids))
        for string in missing:
            rest = b"" if found[string] else string
            while (longest := self._longest_prefix(rest)) >= 0:
                found[string].append(longest)
                rest = rest[self.vocabulary.lengths[longest] :]
        return [[*found[self._said(string)], *self._end(string, found)] for string in strings]

    def _end(self, string: bytes, found: dict[bytes, list[int]]) -> list[int]:
        """Return the token that ends a turn where a string has one behind text that is written whole."""
        said = self._said(string)
        whole = said != string and int(self.vocabulary.lengths[found[said]].sum()) == len(said)
        return [self.exact[END_OF_TURN]] if whole else []

    def _said(self, piece: bytes) -> bytes:
        """Return a piece up to the end of a turn: where turns end text ends, so nothing behind it changes what is written before."""
        return piece.partition(END_OF_TURN)[0] or piece if self.speaks else piece

    @cached_property
    def exact(self) -> dict[bytes, int]:
        """Bytes -> id. Of several tokens with the same bytes the one that the tokenizer writes, else a literal one, else the lowest id."""
        vocabulary = self.vocabulary
        tokens = [vocabulary.bytes_of(token_id) for token_id in range(vocabulary.size)]
        ids = sorted(range(len(tokens)), key=lambda token_id: (token_id not in self.byte_tokens, -token_id))
        exact = {tokens[token_id]: token_id for token_id in ids if tokens[token_id]}
        twice = {tokens[i] for i in ids if tokens[i] and exact[tokens[i]] != i}
        texts = [(token, text) for token in sorted(twice) if (text := _decoded(token)) is not None]
        for (token, _), written in zip(texts, self._encode([text for _, text in texts]), strict=True):
            if len(written) == 1 and tokens[written[0]] == token:
                exact[token] = written[0]
        return exact

    def _encode(self, texts: list[str]) -> Iterator[list[int]]:
        for begin in range(0, len(texts), CHUNK_PIECES):
            chunk = texts[begin : begin + CHUNK_PIECES]
            if self.encoder is None:
                yield from ([] for _ in chunk)
            else:
                with library_errors(*GAVE_UP):
                    found = self.encoder.encode_batch_fast(chunk, add_special_tokens=False)
                yield from (encoding.ids for encoding in found)

    def _longest_prefix(self, piece: bytes) -> int:
        lengths = range(min(len(piece), int(self.vocabulary.lengths.max(initial=0))), 0, -1)
        return next((self.exact[piece[:length]] for length in lengths if piece[:length] in self.exact), -1)


def _decoded(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None
