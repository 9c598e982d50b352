"""A tokenizer seen as bytes: token id -> bytes, text -> ids with byte starts and ends, and what it cannot do.

Everything else in the house speaks bytes, because bytes are what tokenizers agree on. Byte starts come from walking the bytes that the
tokens write against the bytes of the text, not from the tokenizer's own offsets: these count characters, are shared by all tokens of one
character, and are wrong behind a byte that a byte-level vocabulary lacks. Only where the two differ (a lossy normaliser, an unknown
character, a literal U+2581 in a Metaspace vocabulary) do offsets say which tokens are concerned; these are masked and their bytes
counted, and every other token is still checked byte by byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from lmfuse.bytes_encoders import piece_encoder, text_encoder
from lmfuse.bytes_files import library_errors, read_folder
from lmfuse.bytes_losses import GENERAL_PROBE, possible_losses
from lmfuse.bytes_spans import checked_spans, exact_spans, spans_around
from lmfuse.bytes_vocabulary import Given, control_strings, left_out, read_vocabulary, start_ids
from lmfuse.errors import TextError, TokenizerError
from lmfuse.types import Document, Encoding

CHUNK_CHARACTERS = 1 << 20  # of text tokenised at once: bounds memory, feeds all threads
CHUNK_PIECES = 1 << 16
GAVE_UP = ("tokenizer: the tokenizers library gave up on a text", "use a model whose tokenizer has a well-known pattern")


class ByteTokenizer:
    """One tokenizer, as bytes; made by ``from_tokenizer`` or ``load``.

    Attributes:
        vocabulary: what every id writes.
        lossy: why it cannot represent every text, or ``""``. A literal U+2581, beyond every Metaspace vocabulary, is not named here
            but masked and counted all the same.
        key: a hash of the vocabulary and of everything that can change an encoding.
        start_ids: what stands before a plain text: usually one token, sometimes none.
        left_out: control tokens that the vocabulary lacks because the model has no rows for them.
    """

    def __init__(self, tokenizer: Tokenizer, named: Mapping[str, str], document_start: str, rows: int | None = None) -> None:
        """Use ``from_tokenizer``, which explains the arguments."""
        given = Given.read(tokenizer)
        named = {"unk": given.unknown, **named} if given.unknown is not None else named
        ids = {name: given.id_of(text, name) for name, text in named.items()}
        self._given = (tokenizer, dict(named), document_start, rows)
        self.start_ids = start_ids(given, ids, document_start)
        ids |= {"start": self.start_ids[-1]} if self.start_ids else {}
        silent = control_strings(given, set(named.values()))
        self.left_out = left_out(given, silent, ids, rows)
        self.vocabulary = read_vocabulary(given, silent, ids, self.left_out)
        self._encoder = text_encoder(given, silent)
        self._pieces = None if given.spelling.is_wordpiece else piece_encoder(given, silent)
        self._byte_tokens = frozenset(given.byte_tokens.values())
        self._absent = np.isin(np.arange(256), list(given.missing_bytes() if given.spelling.byte_level else ()))
        self.lossy = self._find_losses(given)

    @classmethod
    def from_tokenizer(
        cls,
        tok: Tokenizer,
        *,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        unk: str | None = None,
        end_of_turn: str | None = None,
        document_start: str = "auto",
        rows: int | None = None,
    ) -> ByteTokenizer:
        """Read a fast tokenizer as bytes; it is not changed, and its truncation, padding and template are not used.

        Args:
            tok: the tokenizer.
            bos: the string of the token that begins a text, as configured.
            eos: the token that ends a text.
            pad: the token that fills up a batch.
            unk: the token for what is unknown; the model's own where not given.
            end_of_turn: the token that ends a turn of a conversation.
            document_start: what stands before a plain text: "auto" (what the tokenizer's template adds in front, else
                ``<|endoftext|>``, else bos, else eos, else nothing), "none", or the string of a token.
            rows: how many rows the model's embedding has; control tokens beyond them that nothing needs are left out.

        Raises:
            TokenizerError: a kind that cannot be read as bytes, or a token string that it does not have.
        """
        given = {"bos": bos, "eos": eos, "pad": pad, "unk": unk, "end_of_turn": end_of_turn}
        return cls(tok, {name: text for name, text in given.items() if text is not None}, document_start, rows)

    @classmethod
    def load(cls, folder: Path, document_start: str = "auto", rows: int | None = None) -> ByteTokenizer:
        """Read the tokenizer of a model folder: tokenizer.json, and what its other files say of it (see ``bytes_files.read_folder``).

        Named tokens that the vocabulary does not have are left out: transformers would give them ids that the model has no rows for.

        Raises:
            TokenizerError: no tokenizer.json, a broken or unsafe file, unfit ids, a part that does not end, or a kind that cannot be read
                as bytes.
        """
        found = read_folder(folder)
        try:
            with library_errors(*GAVE_UP):
                if document_start == "auto" and found.add_bos and "bos" in found.named and not Given.read(found.tokenizer).start_template:
                    document_start = found.named["bos"]
                return cls(found.tokenizer, found.named, document_start, rows)
        except TokenizerError as error:
            raise TokenizerError(f"{folder}: {error}", error.hint) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given  # the encoders' switches do not survive pickling; what was given does

    @cached_property
    def key(self) -> str:
        """Return 32 hex digits that change whenever an encoding or a token's bytes could."""
        parts = (self.vocabulary.key, self._encoder.to_str(), repr(self.start_ids))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def encode(self, document: Document) -> Encoding:
        """Return this tokenizer's view of a plain document, the start token in front where there is one.

        Raises:
            TokenizerError: the document is a conversation.
            TextError: its text is not valid Unicode.
        """
        return self.encode_many([document])[0]

    def encode_many(self, documents: Sequence[Document]) -> list[Encoding]:
        """Return the encodings of many documents, in their order; faster than one by one, because all cores tokenise."""
        texts = [_plain_text(document) for document in documents]
        encodings: list[Encoding] = []
        for chunk in _chunks(texts):
            with library_errors(*GAVE_UP):
                found = self._encoder.encode_batch_fast(chunk, add_special_tokens=False)
            encodings += [self._walk(text, np.asarray(each.ids, np.int64)) for text, each in zip(chunk, found, strict=True)]
        return encodings

    def _walk(self, text: str, ids: Int[np.ndarray, "T"]) -> Encoding:
        data = np.frombuffer(text.encode(), np.uint8)
        spans = exact_spans(self.vocabulary, ids, data)
        if spans is None and self._absent.any():
            spans = spans_around(self.vocabulary, ids, data, self._absent)
        if spans is None:
            offsets = self._encoder.encode(text, add_special_tokens=False).offsets
            spans = checked_spans(self.vocabulary, ids, data, np.asarray(offsets, np.int64).reshape(-1, 2))
        masked_bytes = len(data) - int((spans[1] - spans[0]).sum())
        front = np.full(len(self.start_ids), -1, np.int64)
        starts, ends = (np.concatenate([front, part]) for part in spans)
        return Encoding(np.concatenate([np.asarray(self.start_ids, np.int64), ids]), starts, ends, masked_bytes)

    def first_pieces(self, pieces: Sequence[bytes]) -> Int[np.ndarray, "N"]:
        """Return for each byte string the id that this tokenizer would write first if it came next in the middle of a text, or -1.

        A token of exactly these bytes wins. Else the piece is encoded without a dummy prefix. Where that says nothing (a cut character,
        an unknown one, any piece for WordPiece, which matches greedily itself), it is the longest token that the piece begins with.
        """
        place: dict[bytes, int] = {}
        inverse = np.fromiter((place.setdefault(piece, len(place)) for piece in pieces), np.int64, len(pieces))
        found = np.fromiter((self._exact.get(piece, -1) for piece in place), np.int64, len(place))
        missing = [(i, piece) for i, piece in enumerate(place) if found[i] < 0 and piece]
        texts = [(i, text) for i, piece in missing if (text := _decoded(piece)) is not None]
        for i, ids in zip((i for i, _ in texts), self._encode_pieces([text for _, text in texts]), strict=True):
            if ids and self.vocabulary.lengths[ids[0]]:
                found[i] = ids[0]
        for i, piece in missing:
            if found[i] < 0:
                found[i] = self._longest_prefix(piece)
        return found[inverse]

    def pieces(self, strings: Sequence[bytes]) -> list[list[int]]:
        """Return for each byte string all ids that this tokenizer would write for it in the middle of a text, as far as it can.

        By the rules of ``first_pieces``, whose answer stands first in each list. Where encoding says nothing, the longest token that the
        rest begins with is taken again and again; a list ends before the first id that writes nothing (an unknown character).
        """
        found = {string: [self._exact[string]] if string in self._exact else [] for string in strings}
        missing = [string for string, ids in found.items() if string and not ids]
        texts = [(string, text) for string in missing if (text := _decoded(string)) is not None]
        for (string, _), ids in zip(texts, self._encode_pieces([text for _, text in texts]), strict=True):
            found[string] = list(takewhile(lambda token_id: self.vocabulary.lengths[token_id] > 0, ids))
        for string in missing:
            rest = b"" if found[string] else string
            while (longest := self._longest_prefix(rest)) >= 0:
                found[string].append(longest)
                rest = rest[self.vocabulary.lengths[longest] :]
        return [list(found[string]) for string in strings]

    @cached_property
    def _exact(self) -> dict[bytes, int]:
        """Bytes -> id. Of several tokens with the same bytes the one that the tokenizer writes, else a literal one, else the lowest id."""
        vocabulary = self.vocabulary
        tokens = [vocabulary.bytes_of(token_id) for token_id in range(vocabulary.size)]
        ids = sorted(range(len(tokens)), key=lambda token_id: (token_id not in self._byte_tokens, -token_id))
        exact = {tokens[token_id]: token_id for token_id in ids if tokens[token_id]}
        twice = {tokens[i] for i in ids if tokens[i] and exact[tokens[i]] != i}
        texts = [(token, text) for token in sorted(twice) if (text := _decoded(token)) is not None]
        for (token, _), written in zip(texts, self._encode_pieces([text for _, text in texts]), strict=True):
            if len(written) == 1 and tokens[written[0]] == token:
                exact[token] = written[0]
        return exact

    def _encode_pieces(self, texts: list[str]) -> Iterator[list[int]]:
        for begin in range(0, len(texts), CHUNK_PIECES):
            chunk = texts[begin : begin + CHUNK_PIECES]
            if self._pieces is None:
                yield from ([] for _ in chunk)
            else:
                with library_errors(*GAVE_UP):
                    found = self._pieces.encode_batch_fast(chunk, add_special_tokens=False)
                yield from (encoding.ids for encoding in found)

    def _longest_prefix(self, piece: bytes) -> int:
        lengths = range(min(len(piece), int(self.vocabulary.lengths.max(initial=0))), 0, -1)
        return next((self._exact[piece[:length]] for length in lengths if piece[:length] in self._exact), -1)

    def _find_losses(self, given: Given) -> str:
        """Return the losses that the tokenizer's parts announce and that a round trip confirms."""
        possible = possible_losses(given)
        probes = self.encode_many([Document.plain(probe) for probe in (GENERAL_PROBE, *(probe for _, probe in possible))])
        confirmed = [reason for (reason, _), probe in zip(possible, probes[1:], strict=True) if probe.masked_bytes]
        masked, size = probes[0].masked_bytes, len(GENERAL_PROBE.encode())
        if masked == size:
            raise TokenizerError(
                "tokenizer: not one byte of a probe text is written back: its decoder does not undo its encoder",
                hint="use a model whose tokenizer.json decodes what it encodes",
            )
        return "; ".join(confirmed or ([f"{masked} of {size} bytes of a probe text are not written back"] if masked else []))


def _plain_text(document: Document) -> str:
    if len(document.segments) != 1 or not document.segments[0].trained:
        raise TokenizerError(
            f"document {document.id}: {len(document.segments)} segments; only a plain text, one trained segment, can be encoded",
            hint="give conversations as plain text",
        )
    text = document.segments[0].text
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(
                f"document from {document.origin!r}: lone surrogate at character {error.start}", hint="repair the text"
            ) from error
    return text


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _decoded(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None
