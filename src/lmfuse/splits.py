"""Which documents are used, and which are kept apart: by content, so that the order of files never matters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import takewhile

from lmfuse.errors import TextError
from lmfuse.types import Document, Segment


def deduplicate(documents: Iterable[Document]) -> tuple[list[Document], int]:
    """Return the documents without those whose content came before, in their order, and how many were left out.

    >>> once, repeated = deduplicate([Document.plain("a"), Document.plain("b"), Document.plain("a", origin="elsewhere")])
    >>> [document.segments[0].text for document in once], repeated
    (['a', 'b'], 1)
    """
    unique: dict[str, Document] = {}
    count = 0
    for count, document in enumerate(documents, start=1):  # noqa: B007
        unique.setdefault(document.id, document)
    return list(unique.values()), count - len(unique)


def split_held_out(documents: Sequence[Document], held_out: float | int, *, seed: int = 0) -> tuple[list[Document], list[Document]]:
    """Keep documents of each domain apart: those whose hash of seed and content is lowest. The order within both parts stays.

    Call it with whole documents, before windows are cut, so that no text stands on both sides. Equal documents stay together, and so do
    conversations that begin with the same question: one with another answer would tell what the question is about.

    Args:
        documents: of any domains.
        held_out: the share of each domain's documents (a float below 1; rounded, at least one), or their number (an int).
        seed: another seed, another choice.

    Returns:
        the documents that remain, and those held out.

    Raises:
        TextError: a domain is too small to leave a document on both sides.
    """
    chosen: set[str] = set()
    for domain in sorted({document.domain for document in documents}):
        ids = {_kin(document) for document in documents if document.domain == domain}
        number = held_out if isinstance(held_out, int) else max(1, round(held_out * len(ids)))
        if not 0 < number < len(ids):
            message = f"domain {domain!r}: cannot hold out {number} of {len(ids)} different documents, some must remain on both sides"
            raise TextError(message, hint="give more documents, a separator that splits large files, or hold out fewer")
        chosen |= set(sorted(ids, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())[:number])
    sides: tuple[list[Document], list[Document]] = [], []
    for document in documents:
        sides[_kin(document) in chosen].append(document)
    return sides


def _kin(document: Document) -> str:
    """Return what equal documents share; of a conversation what stands before its first answer, trained or not, the system message aside.

    Case and whitespace do not count there, as they do not where overlap is looked for.
    """
    if not document.is_conversation:
        return document.id
    before = takewhile(lambda segment: segment.role != "assistant", document.segments)
    asked = [Segment(" ".join(s.text.casefold().split()), s.role, trained=False) for s in before if s.role != "system"]
    return Document(tuple(asked)).id if asked else document.id
