"""Conversations as tokens: the ids that a model reads, and which of them stand for which trained bytes.

The tokenizer's own library cuts and encodes the whole text that the chat template wrote. Only what the *template* wrote can become a control
token: each of its control tokens is replaced by a character of the last private plane, which is an added token with the same flags, and the
control strings themselves are switched off. So ``<|im_end|>`` inside a message is read as the characters that it is. Added tokens that are
not special (Qwen's ``<tool_call>``) are no control tokens: they write their own letters, and where a message spells one it becomes one, as
in transformers and in plain documents. Between the control tokens lie *parts*; in each of them the bytes that the tokens write are walked
against its text, as for plain documents.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import numpy as np
from jaxtyping import Bool, Int, UInt8
from tokenizers import AddedToken

from lmfuse.bytes_encoders import text_encoder
from lmfuse.bytes_spans import SPACE, Spans, find_spans
from lmfuse.bytes_vocabulary import MARKUP, Given
from lmfuse.chat_layout import FIRST_PRIVATE, WHITESPACE, Controls, Layout, lay_out
from lmfuse.chat_template import ChatTemplate, Unfit
from lmfuse.errors import InputError
from lmfuse.types import Document, Encoding, Segment, Vocabulary

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
PROBE = (Segment("Hello", "user", trained=False), Segment("Hi", "assistant"))
LOST = Unfit("the tokenizer does not find the template's control tokens in it again")


def turn_end(template: ChatTemplate, given: Given, named: Mapping[str, str]) -> str | None:
    """Return the string of the token that a template writes right behind an answer, None where that is no single control token.

    Raises:
        InputError: the template cannot express a question and an answer.
    """
    rendered = template.render(PROBE)
    if isinstance(rendered, Unfit):
        raise InputError(
            f"model {template.model}'s chat template cannot express a question and an answer: {rendered.reason}",
            hint="name another one: chat_template: openchat, or the path of a template",
        )
    answer = next(place for place, stretch in enumerate(rendered) if stretch.message == len(PROBE) - 1)
    behind = "".join(stretch.text for stretch in rendered[answer + 1 :])
    takes_space = {token.content: token.lstrip for token in given.added.values() if token.special or MARKUP.fullmatch(token.content)}
    tokens = dict.fromkeys(named.values(), False) | takes_space
    return max(
        (text for text, space in tokens.items() if (behind.lstrip(WHITESPACE) if space else behind).startswith(text)), key=len, default=None
    )


class ConversationEncoder:
    """What a tokenizer makes of conversations; ``ByteTokenizer`` makes one where it has a chat template."""

    def __init__(
        self, given: Given, silent: frozenset[str], vocabulary: Vocabulary, template: ChatTemplate, absent: Bool[np.ndarray, "256"]
    ) -> None:
        """Prepare; ``silent`` are the strings of the tokens that carry no text, ``absent`` the bytes that have no token."""
        self.given, self.silent, self.vocabulary, self.template, self.absent = given, silent, vocabulary, template, absent
        self.turn_end = vocabulary.control.get("end_of_turn", -1)
        ids = {text: token_id for text in silent if (token_id := given.tokenizer.token_to_id(text)) is not None}
        flags = {i: AddedToken(text) for text, i in ids.items()} | given.added
        self.controls = Controls({text: i for text, i in ids.items() if i < vocabulary.size}, flags)
        self._private: tuple[int, ...] = ()  # what the private characters stand for, in their order
        self._encoder = text_encoder(given, silent)
        self._lock = threading.Lock()

    def encode_many(self, documents: Sequence[Document]) -> list[Encoding | Unfit]:
        """Return the encodings of conversations, or why they have none.

        Raises:
            InputError: the template itself is at fault.
        """
        layouts = [lay_out(document.segments, self.template.render(document.segments), self.controls) for document in documents]
        encodings = iter(self._encode([layout for layout in layouts if isinstance(layout, Layout)]))
        found: list[Encoding | Unfit] = []
        for document, layout in zip(documents, layouts, strict=True):
            found.append(layout if isinstance(layout, Unfit) else self._walk(document, layout, next(encodings)))
        return found

    def prompt(self, messages: Sequence[Segment]) -> Int[np.ndarray, "T"] | Unfit:
        """Return the ids of messages and of what begins an answer to them, or why there are none.

        Raises:
            InputError: the template itself is at fault.
        """
        layout = lay_out(messages, self.template.render(messages, prompt=True), self.controls)
        if isinstance(layout, Unfit):
            return layout
        restored = self._restored(self._encode([layout])[0], layout)
        return LOST if restored is None else restored[0]

    # ── from text to ids ────────────────────────────────────────────────────────────────────────────────────────────

    def _encode(self, layouts: Sequence[Layout]) -> list[Int[np.ndarray, "_"]]:
        """Return the ids of each layout; control tokens have the ids behind all others, in the order of ``_private``."""
        with self._lock:  # the list only grows: an id that stands for a control token does so for ever
            if new := {token_id for layout in layouts for token_id in layout.controls}.difference(self._private):
                private = (*self._private, *sorted(new))
                self._encoder = text_encoder(self.given, self.silent, [self._stand_in(n, i) for n, i in enumerate(private)])
                self._private = private
        texts = [layout.text(self._private) for layout in layouts]
        found = self._encoder.encode_batch_fast(texts, add_special_tokens=False) if texts else []
        return [np.asarray(encoding.ids, np.int64) for encoding in found]

    def _stand_in(self, number: int, token_id: int) -> AddedToken:
        flags = {name: getattr(self.controls.flags[token_id], name) for name in FLAGS}
        return AddedToken(chr(FIRST_PRIVATE + number), special=False, **flags)

    def _restored(self, found: Int[np.ndarray, "T"], layout: Layout) -> tuple[Int[np.ndarray, "T"], Int[np.ndarray, "C"]] | None:
        """Return the ids with those of the control tokens in place, and where these stand; None if they are not the layout's."""
        first = self._encoder.token_to_id(chr(FIRST_PRIVATE))
        place = np.flatnonzero(found >= (len(found) + int(found.max(initial=0)) if first is None else first))
        ids = found.copy()
        ids[place] = np.array(self._private, np.int64)[found[place] - (first or 0)]
        return (ids, place) if ids[place].tolist() == list(layout.controls) else None

    # ── from ids to bytes ───────────────────────────────────────────────────────────────────────────────────────────

    def _walk(self, document: Document, layout: Layout, found: Int[np.ndarray, "T"]) -> Encoding | Unfit:
        """Find the trained bytes that each token stands for."""
        restored = self._restored(found, layout)
        if restored is None:
            return LOST
        ids, place = restored
        starts, ends, axis = np.full(len(ids), -1), np.full(len(ids), -1), 0
        bounds, offsets = [-1, *place.tolist(), len(ids)], self._offsets(layout)
        for number, (part, begin) in enumerate(zip(layout.parts, layout.begins, strict=True)):
            here = slice(bounds[number] + 1, bounds[number + 1])
            data = np.frombuffer(part.text.encode(), np.uint8)
            spans = _NO_SPANS
            if part.contents:
                spans = find_spans(self.vocabulary, ids[here], data, self.absent, partial(offsets, here, begin))
            for first, last in part.contents:
                span = len(part.text[:first].encode()), len(part.text[:last].encode())
                _put(self.vocabulary.lengths[ids[here]], spans, data, span, axis, (starts[here], ends[here]))
                axis += span[1] - span[0] + 1
                if last == len(part.text) and here.stop < len(ids) and ids[here.stop] == self.turn_end:
                    starts[here.stop], ends[here.stop] = axis - 1, axis
        assert axis == len(document.trained_bytes), "every trained segment stands once in the layout, in its order"
        return Encoding(ids, starts, ends, axis - int((ends - starts).sum()))

    def _offsets(self, layout: Layout) -> Callable[[slice, int], Int[np.ndarray, "T 2"]]:
        """Return what tells the characters of some tokens, counted from one on; the text is encoded again when it is asked first."""

        @cache
        def all_offsets() -> Int[np.ndarray, "T 2"]:
            encoding = self._encoder.encode(layout.text(self._private), add_special_tokens=False)
            return np.asarray(encoding.offsets, np.int64).reshape(-1, 2)

        return lambda here, begin: all_offsets()[here] - begin


_NO_SPANS: Spans = (np.zeros(0, np.int64), np.zeros(0, np.int64))


def _put(
    lengths: Int[np.ndarray, "T"],
    spans: Spans,
    data: UInt8[np.ndarray, "N"],
    content: tuple[int, int],
    axis: int,
    onto: tuple[Int[np.ndarray, "T"], Int[np.ndarray, "T"]],
) -> None:
    """Put the tokens of a content on the trained axis.

    A token that begins with the one space before the content belongs to it, the space is its dummy prefix. One that begins further before,
    or runs beyond, is the template's as well and stays masked.

    Args:
        lengths: bytes that each token of the part writes.
        spans: where in the part the tokens begin and end.
        data: the bytes of the part.
        content: the bytes of it that are the content.
        axis: where the content begins on the trained axis.
        onto: the starts and ends of the tokens, changed in place.
    """
    (starts, ends), (first, last) = spans, content
    inside = (starts >= first) & (ends <= last) & (starts < last)
    if first and data[first - 1] == SPACE:
        inside |= (starts == first - 1) & (ends > first) & (ends <= last) & (lengths == ends - starts)
    onto[0][inside] = np.maximum(starts[inside], first) - first + axis
    onto[1][inside] = ends[inside] - first + axis
