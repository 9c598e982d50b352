"""A prompt as one model reads it, and what its tokenizer knows of it when it goes on."""

from __future__ import annotations

import numpy as np

from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import InputError, PromptTooLongError
from lmfuse.generate.spelling import TAIL_BYTES, Spelling
from lmfuse.models import LanguageModel
from lmfuse.types import Document, Encoding, Segment
from lmfuse.writing import Prompt


def read_prompt(tokenizer: ByteTokenizer, prompt: Prompt) -> tuple[list[int], Spelling]:
    """Return the ids of a prompt, and what the tokenizer knows of it when it goes on.

    Raises:
        InputError: the chat template cannot express the conversation; or there is nothing to begin from.
        TokenizerError: there is no chat template for a conversation.
    """
    if isinstance(prompt, str):
        encoding = tokenizer.encode(Document.plain(prompt))
        ids, before = encoding.ids.tolist(), b"" if encoding.masked_bytes else last_words(prompt.encode())
        probe = Document.plain("a")
    else:
        ids, before = tokenizer.render_prompt(prompt).tolist(), b""
        probe = Document((*(Segment(segment.text, segment.role, trained=False) for segment in prompt), Segment("a", "assistant")))
    if not ids:
        raise InputError("the prompt is empty, and no token of the model stands before a text", "give a prompt")
    dummy = (prompt == "" or not isinstance(prompt, str)) and _writes_dummy(tokenizer, probe)
    return ids, Spelling(tokenizer, b" " if dummy else before, dummy=dummy)


def read_fitting(model: LanguageModel, label: str, prompt: Prompt) -> tuple[list[int], Spelling]:
    """Return the same of a prompt that leaves room for an answer.

    Raises:
        PromptTooLongError: it does not; names the model.
        InputError, TokenizerError: see ``read_prompt``.
    """
    ids, spelling = read_prompt(model.tokenizer, prompt)
    if len(ids) >= model.context:
        raise PromptTooLongError(f"the prompt has {len(ids):,} tokens, {label} reads at most {model.context:,}", "shorten the prompt")
    return ids, spelling


def _writes_dummy(tokenizer: ByteTokenizer, begun: Document) -> bool:
    """Return whether the first token of the text that begins in a document writes a space that is not part of it."""
    encoding = tokenizer.try_encode_many([begun])[0]
    if not isinstance(encoding, Encoding) or not (encoding.starts == 0).any():
        return False
    place = int(np.argmax(encoding.starts == 0))
    return int(tokenizer.vocabulary.lengths[encoding.ids[place]]) > int(encoding.ends[place] - encoding.starts[place])


def last_words(data: bytes) -> bytes:
    """Return the end of a text from where a word begins, as far as it matters for how the next word is cut.

    >>> last_words(b"one two"), len(last_words(b"many words " * 50)), last_words("…".encode() * 50)[:3].decode()
    (b'one two', 62, '…')
    """
    tail = data[-TAIL_BYTES:]
    if len(tail) < len(data):
        space = tail.find(b" ")
        tail = tail[space:] if space >= 0 else tail.decode("utf-8", errors="ignore").encode()
    return tail
