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
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from lmfuse.bytes_chat import ConversationEncoder, turn_end
from lmfuse.bytes_encoders import piece_encoder, text_encoder
from lmfuse.bytes_files import GAVE_UP, library_errors, read_folder
from lmfuse.bytes_losses import GENERAL_PROBE, possible_losses
from lmfuse.bytes_pieces import Pieces
from lmfuse.bytes_spans import find_spans
from lmfuse.bytes_vocabulary import Given, control_strings, left_out, read_vocabulary, start_ids
from lmfuse.chat_template import ChatTemplate, Unfit, choose_template
from lmfuse.errors import InputError, TextError, TokenizerError
from lmfuse.types import Document, Encoding, Segment

CHUNK_CHARACTERS = 1 << 20  # of text tokenised at once: bounds memory, feeds all threads


class ByteTokenizer:
    """One tokenizer, as bytes; made by ``from_tokenizer`` or ``load``.

    Attributes:
        vocabulary: what every id writes.
        lossy: why it cannot represent every text, or ``""``. A literal U+2581, beyond every Metaspace vocabulary, is not named here
            but masked and counted all the same.
        key: a hash of the vocabulary and of everything that can change an encoding.
        start_ids: what stands before a plain text: usually one token, sometimes none.
        left_out: control tokens that the vocabulary lacks because the model has no rows for them.
        chat: the template with which it reads conversations, None where it reads plain text only. With a template the token that ends a
            turn writes ``END_OF_TURN``, so the vocabulary is another one.
    """

    def __init__(
        self, tokenizer: Tokenizer, named: Mapping[str, str], document_start: str, rows: int | None = None, chat: ChatTemplate | None = None
    ) -> None:
        """Use ``from_tokenizer``, which explains the arguments."""
        given = Given.read(tokenizer)
        named = {"unk": given.unknown, **named} if given.unknown is not None else dict(named)
        self.chat, self._given = chat, (tokenizer, dict(named), document_start, rows, chat)
        if chat is not None:  # what the template really writes counts, not what the folder says
            named.pop("end_of_turn", None)
            named |= {"end_of_turn": end} if (end := turn_end(chat, given, named)) else {}
        ids = {name: given.id_of(text, name) for name, text in named.items()}
        self.start_ids = start_ids(given, ids, document_start)
        ids |= {"start": self.start_ids[-1]} if self.start_ids else {}
        silent = control_strings(given, set(named.values()))
        self.left_out = left_out(given, silent, ids, rows, ("end_of_turn",) if chat else ())
        self.vocabulary = read_vocabulary(given, silent, ids, self.left_out, speaks=chat is not None)
        self._encoder = text_encoder(given, silent)
        pieces = None if given.spelling.is_wordpiece else piece_encoder(given, silent)
        self._pieces = Pieces(self.vocabulary, pieces, frozenset(given.byte_tokens.values()))
        self._absent = np.isin(np.arange(256), list(given.missing_bytes() if given.spelling.byte_level else ()))
        self._conversations = None if chat is None else ConversationEncoder(given, silent, self.vocabulary, chat, self._absent)
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
        chat: ChatTemplate | None = None,
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
            chat: the template to read conversations with; the token that it writes behind an answer then ends a turn, not ``end_of_turn``.

        Raises:
            TokenizerError: a kind that cannot be read as bytes, or a token string that it does not have.
            InputError: the chat template is at fault.
        """
        given = {"bos": bos, "eos": eos, "pad": pad, "unk": unk, "end_of_turn": end_of_turn}
        return cls(tok, {name: text for name, text in given.items() if text is not None}, document_start, rows, chat)

    @classmethod
    def load(
        cls, folder: Path, document_start: str = "auto", rows: int | None = None, *, chat_template: str = "none", model: str = ""
    ) -> ByteTokenizer:
        """Read the tokenizer of a model folder: tokenizer.json, and what its other files say of it (see ``bytes_files.read_folder``).

        Named tokens that the vocabulary does not have are left out: transformers would give them ids that the model has no rows for.

        Args:
            folder: the model's folder.
            document_start, rows: see ``from_tokenizer``.
            chat_template: how it reads conversations: ``none``, ``own``, ``openchat`` or a path (see ``chat_template.choose_template``).
            model: how errors of a chat template call the model; by default by its folder.

        Raises:
            TokenizerError: no tokenizer.json, a broken or unsafe file, unfit ids, a part that does not end, or a kind that cannot be read
                as bytes.
            InputError: there is no such chat template, or it is at fault.
        """
        found = read_folder(folder)
        try:
            with library_errors(*GAVE_UP):
                given = Given.read(found.tokenizer)
                if document_start == "auto" and found.add_bos and "bos" in found.named and not given.start_template:
                    document_start = found.named["bos"]
                start = "".join(found.tokenizer.id_to_token(token_id) or "" for token_id in given.start_template)
                chat = choose_template(chat_template, folder, found.named, start, model or str(folder))
                return cls(found.tokenizer, found.named, document_start, rows, chat)
        except TokenizerError as error:
            raise TokenizerError(f"{folder}: {error}", error.hint) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given  # the encoders' switches do not survive pickling; what was given does

    @cached_property
    def key(self) -> str:
        """Return 32 hex digits that change whenever an encoding or a token's bytes could."""
        parts = (self.vocabulary.key, self._encoder.to_str(), repr(self.start_ids), *([self.chat.key] if self.chat else []))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def encode(self, document: Document) -> Encoding:
        """Return this tokenizer's view of a document: of a plain one with the start token in front where there is one, of a conversation as
        its chat template writes it.

        Raises:
            TokenizerError: the document is a conversation, and there is no chat template.
            InputError: the chat template cannot express the conversation, or is at fault.
            TextError: its text is not valid Unicode.
        """
        return self.encode_many([document])[0]

    def encode_many(self, documents: Sequence[Document]) -> list[Encoding]:
        """Return the encodings of many documents, in their order; faster than one by one, because all cores tokenise."""
        found = self.try_encode_many(documents)
        for document, encoding in zip(documents, found, strict=True):
            if isinstance(encoding, Unfit):
                raise self._refused(document.origin or document.id, encoding)
        return [encoding for encoding in found if isinstance(encoding, Encoding)]

    def try_encode_many(self, documents: Sequence[Document]) -> list[Encoding | Unfit]:
        """Return what ``encode_many`` returns, and for a conversation that the chat template cannot express why that is so."""
        talks = [document for document in documents if self._conversations is not None and document.is_conversation]
        texts = [_plain_text(document) for document in documents if self._conversations is None or not document.is_conversation]
        with library_errors(*GAVE_UP):
            said = iter(self._conversations.encode_many(talks) if self._conversations is not None else ())
        plain = (self._walk(text, ids) for chunk in _chunks(texts) for text, ids in self._encoded(chunk))
        return [next(said if self._conversations is not None and document.is_conversation else plain) for document in documents]

    def render_prompt(self, messages: Sequence[Segment]) -> Int[np.ndarray, "T"]:
        """Return the ids of a conversation so far and of what begins the next answer: what to generate from.

        Raises:
            TokenizerError: there is no chat template.
            InputError: the chat template cannot express the messages, or is at fault.
        """
        if self._conversations is None:
            raise TokenizerError("tokenizer: no chat template to write a prompt with", hint="name one: chat_template: own or openchat")
        with library_errors(*GAVE_UP):
            found = self._conversations.prompt(messages)
        if isinstance(found, Unfit):
            raise self._refused(repr(messages[-1].text[:40]) if messages else "without messages", found)
        return found

    def _refused(self, what: str, unfit: Unfit) -> InputError:
        model = self.chat.model if self.chat else ""
        return InputError(
            f"model {model}'s chat template cannot express conversation {what}: {unfit.reason}",
            hint="leave such conversations out (unfit_conversations: leave_out), or use another chat_template",
        )

    def _encoded(self, texts: list[str]) -> list[tuple[str, Int[np.ndarray, "_"]]]:
        with library_errors(*GAVE_UP):
            found = self._encoder.encode_batch_fast(texts, add_special_tokens=False)
        return [(text, np.asarray(each.ids, np.int64)) for text, each in zip(texts, found, strict=True)]

    def _walk(self, text: str, ids: Int[np.ndarray, "T"]) -> Encoding:
        data = np.frombuffer(text.encode(), np.uint8)

        def offsets() -> Int[np.ndarray, "T 2"]:
            return np.asarray(self._encoder.encode(text, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)

        spans = find_spans(self.vocabulary, ids, data, self._absent, offsets)
        masked_bytes = len(data) - int((spans[1] - spans[0]).sum())
        front = np.full(len(self.start_ids), -1, np.int64)
        starts, ends = (np.concatenate([front, part]) for part in spans)
        return Encoding(np.concatenate([np.asarray(self.start_ids, np.int64), ids]), starts, ends, masked_bytes)

    def first_pieces(self, pieces: Sequence[bytes]) -> Int[np.ndarray, "N"]:
        """Return for each byte string the id that this tokenizer would write first if it came next in the middle of a text, or -1.

        A token of exactly these bytes wins. Else the piece is encoded without a dummy prefix. Where that says nothing (a cut character,
        an unknown one, any piece for WordPiece, which matches greedily itself), it is the longest token that the piece begins with.
        """
        return self._pieces.first(pieces)

    def pieces(self, strings: Sequence[bytes]) -> list[list[int]]:
        """Return for each byte string all ids that this tokenizer would write for it in the middle of a text, as far as it can.

        By the rules of ``first_pieces``, whose answer stands first in each list. Where encoding says nothing, the longest token that the
        rest begins with is taken again and again; a list ends before the first id that writes nothing (an unknown character).
        """
        return self._pieces.all(strings)

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
            f"document {document.id}: {len(document.segments)} segments; without a chat template only a plain text, one trained segment, is encoded",
            hint="name a chat template (chat_template: own or openchat) to read conversations",
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
