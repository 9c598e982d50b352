"""What a tokenizer consists of, which of its tokens carry no bytes, and what every id writes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from tokenizers import AddedToken, Tokenizer

from lmfuse.bytes_files import one_line
from lmfuse.bytes_spelling import BYTE_TOKEN, Node, Spelling, byte_alphabet, read_spelling, walk
from lmfuse.errors import TokenizerError
from lmfuse.types import END_OF_TURN, Vocabulary

MARKUP = re.compile(r"[<\[{|].*[>\]}|]", re.DOTALL)  # what control tokens look like; "!" as padding token is still text
END_OF_TEXT = "<|endoftext|>"
NEEDED = ("start", "bos", "eos", "unk")
UTF8_BYTES = frozenset(range(256)) - {0xC0, 0xC1} - set(range(0xF5, 0x100))  # what valid text can contain


@dataclass(frozen=True)
class Given:
    """A tokenizer as it was given, with its JSON parsed; it is never changed."""

    tokenizer: Tokenizer
    state: Node

    @classmethod
    def read(cls, tokenizer: Tokenizer) -> Given:
        """Parse a tokenizer's JSON.

        Raises:
            TokenizerError: it has parts written in Python, which have no JSON.
        """
        try:
            return cls(tokenizer, json.loads(tokenizer.to_str()))
        except Exception as error:  # the Rust side raises plain exceptions
            message = f"tokenizer: cannot be written as JSON: {one_line(error)}"
            raise TokenizerError(message, hint="use parts of the tokenizers library") from error

    @cached_property
    def spelling(self) -> Spelling:
        """Return how its strings stand for text."""
        return read_spelling(self.state)

    @cached_property
    def own(self) -> dict[str, int]:
        """Return the ids of the model's own strings, without what was added later."""
        vocab = self.state["model"]["vocab"]
        return vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}

    @cached_property
    def added(self) -> dict[int, AddedToken]:
        """Return the added tokens by id."""
        return dict(sorted(self.tokenizer.get_added_tokens_decoder().items()))

    @cached_property
    def byte_tokens(self) -> dict[str, int]:
        """Return the ids of the byte-fallback tokens."""
        return {text: i for text, i in self.own.items() if self.spelling.byte_fallback and BYTE_TOKEN.fullmatch(text)}

    @cached_property
    def unknown(self) -> str | None:
        """Return the string of the token that the model writes where it knows nothing better, if it has one."""
        model = self.state["model"]
        if model.get("unk_id") is not None:
            return str(model["vocab"][model["unk_id"]][0])
        return model["unk_token"] if model.get("unk_token") in self.own else None

    @cached_property
    def start_template(self) -> tuple[int, ...]:
        """Return the ids that its post-processor puts in front of a text."""
        if self.tokenizer.post_processor is None:
            return ()
        bare = self.bare()
        bare.post_processor = self.tokenizer.post_processor
        encoding = bare.encode("a")
        mask = encoding.special_tokens_mask
        return tuple(encoding.ids[: mask.index(0)]) if 0 in mask else ()

    def bare(self) -> Tokenizer:
        """Return a tokenizer over the same model: no added tokens, no template, nothing cut or padded."""
        bare = Tokenizer(self.tokenizer.model)
        bare.normalizer, bare.pre_tokenizer = self.tokenizer.normalizer, self.tokenizer.pre_tokenizer
        return bare

    def id_of(self, text: str, name: str) -> int:
        """Return a token's id.

        Raises:
            TokenizerError: there is no such token; ``name`` says what it was wanted for.
        """
        token_id = self.tokenizer.token_to_id(text)
        if token_id is not None:
            return int(token_id)
        known = sorted(token.content for token in self.added.values() if token.special)
        close = get_close_matches(text, [*known, *(piece for piece in self.own if MARKUP.fullmatch(piece))], n=1)
        raise TokenizerError(
            f"tokenizer: {name}: unknown token {text!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
            hint=f"its control tokens: {', '.join(known[:8]) or 'none'}{', ...' if len(known) > 8 else ''}",
        )

    def missing_bytes(self) -> frozenset[int]:
        """Return the bytes of valid UTF-8 that the vocabulary cannot write alone, by alphabet or by fallback."""
        if self.spelling.byte_level:
            return frozenset(byte for char, byte in byte_alphabet().items() if byte in UTF8_BYTES and char not in self.own)
        fallback = self.spelling.byte_fallback and self.state["model"].get("byte_fallback")
        return frozenset(byte for byte in UTF8_BYTES if not fallback or f"<0x{byte:02X}>" not in self.own)

    def part_types(self) -> set[str]:
        """Return the types of the parts that change or cut a text before the model sees it."""
        return {node["type"] for name in ("normalizer", "pre_tokenizer") for node in walk(self.state.get(name))}


def start_ids(given: Given, named: Mapping[str, int], document_start: str) -> tuple[int, ...]:
    """Return the ids that stand before a plain text; ``ByteTokenizer.from_tokenizer`` says which these are."""
    if document_start == "none":
        return ()
    if document_start != "auto":
        return (given.id_of(document_start, "document_start"),)
    if given.start_template:
        for token_id in given.start_template:
            if given.tokenizer.id_to_token(token_id) is None:
                message = f"tokenizer: post_processor puts id {token_id} before every text, which is no token"
                raise TokenizerError(message, hint="fetch the file again, or give document_start")
        return given.start_template
    candidates = (given.tokenizer.token_to_id(END_OF_TEXT), named.get("bos"), named.get("eos"))
    return next(((int(token_id),) for token_id in candidates if token_id is not None), ())


def control_strings(given: Given, named: set[str]) -> frozenset[str]:
    """Return the tokens that carry no bytes: special and named ones.

    Not among them is ordinary text with a second job ("!" as padding token): text that the model itself writes with that token.
    """
    special = {token.content for token in given.added.values() if token.special} | named
    plain = sorted(text for text in (special - {given.unknown}) & given.own.keys() if not MARKUP.fullmatch(text))
    written = [encoding.ids for encoding in given.bare().encode_batch_fast(plain, add_special_tokens=False)]
    return frozenset(special) - {text for text, ids in zip(plain, written, strict=True) if given.own[text] in ids}


def read_vocabulary(
    given: Given, silent: frozenset[str], control: Mapping[str, int], without: tuple[str, ...] = (), *, speaks: bool = False
) -> Vocabulary:
    """Return what every id writes.

    Args:
        given: the tokenizer.
        silent: strings of the tokens that carry no bytes.
        control: ids by class, for the vocabulary.
        without: tokens that get no id (see ``left_out``).
        speaks: whether conversations are read: the token that ends a turn then writes ``END_OF_TURN``, and no other token does.

    Raises:
        TokenizerError: no token writes anything.
    """
    added = {token.content: i for i, token in given.added.items()}
    dropped = frozenset(without)
    ids = {text: i for text, i in (given.own | added).items() if text not in dropped}
    size = 1 + max(ids.values(), default=-1)
    spelled, tokens = [""] * size, [b""] * size
    read = given.spelling.reader()
    spells_added = not (given.spelling.byte_level or given.spelling.is_wordpiece)  # else what was added is spelled as it is
    for text, i in ids.items():
        spelled[i] = text
        if text not in silent:
            tokens[i] = read(text) if spells_added or text in given.own else text.encode()
    if speaks:
        tokens = [b"" if END_OF_TURN in written else written for written in tokens]
        if control.get("end_of_turn", size) < size:
            tokens[control["end_of_turn"]] = END_OF_TURN
    if not any(tokens):
        raise TokenizerError(f"tokenizer: none of its {len(ids)} tokens writes text: all are control tokens", "use another model")
    return Vocabulary.from_tokens(tokens, strings=spelled, control={name: i for name, i in control.items() if i < size})


def left_out(
    given: Given, silent: frozenset[str], control: Mapping[str, int], rows: int | None, more: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return the tokens that are left out because the model has no row for them.

    Some published models have control tokens (padding, an image's place) beyond the rows of their embedding. That does no harm where no
    text is ever encoded to them and nothing needs them: all tokens from ``rows`` on are left out if each is a control token, and none
    begins or ends a text or stands for what is unknown (or is of a class in ``more``). Else none is, and the vocabulary is larger than
    the model: an error.
    """
    if rows is None:
        return ()
    outside = {i: text for text, i in [*given.own.items(), *((token.content, i) for i, token in given.added.items())] if i >= rows}
    needed = {control[name] for name in (*NEEDED, *more) if name in control}
    return () if needed & outside.keys() or not silent.issuperset(outside.values()) else tuple(outside[i] for i in sorted(outside))
