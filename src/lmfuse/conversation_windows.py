"""Conversations that every model can read whole: a long one keeps its beginning, up to the last answer that all have room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Int

from lmfuse.bytes import ByteTokenizer
from lmfuse.chat_template import Unfit
from lmfuse.types import Document, Encoding, UnfitRule


@dataclass
class ConversationFitter:
    """Shortens conversations to ``max_tokens[i]`` tokens of ``tokenizers[i]``.

    Attributes:
        unfit: whether a conversation that a chat template cannot express stops everything, or is left out.
        counters: ``conversations_shortened``; ``conversations_left_out``: not even the first exchange fits; ``conversations_unfit``.
        left_out: which are left out, and why.
    """

    tokenizers: Sequence[ByteTokenizer]
    max_tokens: Sequence[int]
    unfit: UnfitRule = "stop"
    counters: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def fit(self, documents: Sequence[Document]) -> list[Document]:
        """Return the conversations that remain, in their order.

        Raises:
            InputError: a chat template cannot express one of them, and ``unfit`` is ``stop``; or it is itself at fault.
            TokenizerError: a tokenizer has no chat template.
        """
        for name in ("shortened", "left_out", "unfit"):
            self.counters.setdefault(f"conversations_{name}", 0)
        found: list[Document | None] = list(documents)
        waiting = list(enumerate(documents))
        while waiting:
            views = (tokenizer.try_encode_many([document for _, document in waiting]) for tokenizer in self.tokenizers)
            again: list[tuple[int, Document]] = []
            for (place, document), encodings in zip(waiting, zip(*views, strict=True), strict=True):
                kept = found[place] = self._shorter(document, encodings)
                if kept is not None and kept is not document:
                    again.append((place, kept))
            waiting = again
        remaining = [(kept, given) for kept, given in zip(found, documents, strict=True) if kept is not None]
        self.counters["conversations_shortened"] += sum(kept is not given for kept, given in remaining)
        return [kept for kept, _ in remaining]

    def _shorter(self, document: Document, encodings: Sequence[Encoding | Unfit]) -> Document | None:
        """Return a conversation itself where it fits, else a beginning that looks as if it did, or None if it is left out."""
        fitting = num_answers = sum(segment.trained for segment in document.segments)
        for tokenizer, most, encoding in zip(self.tokenizers, self.max_tokens, encodings, strict=True):
            model = tokenizer.chat.model if tokenizer.chat else ""
            if isinstance(encoding, Unfit):
                if self.unfit == "stop":
                    tokenizer.encode(document)  # says what is wrong
                self._leave_out("unfit", document, f"{model}'s chat template cannot express it: {encoding.reason}")
                return None
            if len(encoding.ids) > most:
                needed = _tokens_needed(document, encoding)
                fitting = min(fitting, num_answers - 1, int(np.searchsorted(needed, most, side="right")))
                if not fitting:
                    size = len(encoding.ids) if num_answers == 1 else needed[0]  # alone, what the template writes behind it counts, too
                    self._leave_out("left_out", document, f"its first exchange has {size} tokens of {model}, at most {most} fit")
                    return None
        return document if fitting == num_answers else beginning(document, fitting)

    def _leave_out(self, counter: str, document: Document, why: str) -> None:
        self.counters[f"conversations_{counter}"] += 1
        self.left_out.append(f"{document.origin or document.id}: {why}")


def _tokens_needed(document: Document, encoding: Encoding) -> Int[np.ndarray, "N"]:
    """Return for each trained segment how many tokens stand before and in it, in the whole conversation."""
    ends = np.cumsum([len(segment.text.encode()) + 1 for segment in document.segments if segment.trained])
    text = np.flatnonzero(encoding.starts >= 0)
    last = np.searchsorted(encoding.ends[text], ends, side="right") - 1  # the last token that ends in it
    return np.where(last >= 0, text[np.maximum(last, 0)] + 1, 0) if len(text) else np.full(len(ends), len(encoding.ids))


def beginning(document: Document, num_answers: int) -> Document:
    """Return a conversation up to and with so many trained segments.

    >>> from lmfuse.types import Segment
    >>> talk = Document(tuple(Segment(text, role, role == "assistant") for text, role in [("a", "user"), ("b", "assistant"), ("c", "user")]))
    >>> [segment.text for segment in beginning(talk, 1).segments]
    ['a', 'b']
    """
    last = [place for place, segment in enumerate(document.segments) if segment.trained][num_answers - 1]
    return replace(document, segments=document.segments[: last + 1])
