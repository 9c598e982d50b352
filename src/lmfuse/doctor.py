"""How well two tokenizers fit each other on a text: ``lmfuse align``. No weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmfuse.align.exact import token_bytes
from lmfuse.bytes import ByteTokenizer
from lmfuse.models import ModelSpec, load_tokenizer
from lmfuse.text import TextSpec, read_documents
from lmfuse.types import Document, Vocabulary


@dataclass(frozen=True)
class Fit:
    """What a source's tokenizer shares with a target's.

    Attributes:
        target_tokens, source_tokens: of the text.
        common_starts: share of target tokens that start where a source token starts: a plain join on bytes covers these.
        inside: share that start inside a source token: the byte law conditions that token's row.
        same_tokens: share whose start and end are those of one source token.
        shared_vocabulary: share of the target's vocabulary whose bytes are a source token, too.
        masked_bytes: bytes that the target, the source cannot represent.
        lossy: why, for either.
    """

    documents: int
    bytes: int
    target_tokens: int
    source_tokens: int
    common_starts: float
    inside: float
    same_tokens: float
    shared_vocabulary: float
    masked_bytes: tuple[int, int]
    lossy: tuple[str, str]


def examine(target: str, source: str, text: Path) -> Fit:
    """Compare two models' tokenizers on a text file.

    Raises:
        InputError: a model folder or the text cannot be used.
    """
    ours, theirs = (load_tokenizer(ModelSpec(model=name)) for name in (target, source))
    return fit(ours, theirs, list(read_documents(TextSpec(domain="text", path=str(text.absolute())), Path())))


def fit(target: ByteTokenizer, source: ByteTokenizer, documents: Sequence[Document]) -> Fit:
    """Count boundaries that two tokenizers share over documents."""
    counts = np.zeros(5, np.int64)
    masked = [0, 0]
    num_bytes = 0
    for document in documents:
        t, s = target.encode(document), source.encode(document)
        starts, ends = t.starts[t.starts >= 0], t.ends[t.starts >= 0]
        common = np.isin(starts, s.starts)
        pairs = set(zip(s.starts.tolist(), s.ends.tolist(), strict=True))
        same = sum(pair in pairs for pair in zip(starts.tolist(), ends.tolist(), strict=True))
        inside = ~common & _inside(starts, s.starts[s.starts >= 0], s.ends[s.starts >= 0])
        counts += (len(starts), int((s.starts >= 0).sum()), int(common.sum()), int(inside.sum()), same)
        masked[0] += t.masked_bytes
        masked[1] += s.masked_bytes
        num_bytes += len(document.trained_bytes)
    n = max(int(counts[0]), 1)
    return Fit(len(documents), num_bytes, int(counts[0]), int(counts[1]), counts[2] / n, counts[3] / n, counts[4] / n,
               shared_vocabulary(target.vocabulary, source.vocabulary), (masked[0], masked[1]), (target.lossy, source.lossy))  # fmt: skip


def shared_vocabulary(target: Vocabulary, source: Vocabulary) -> float:
    """Return the share of the target's byte strings that are tokens of the source, too.

    >>> shared_vocabulary(Vocabulary.from_tokens([b"", b"a", b"b"]), Vocabulary.from_tokens([b"b", b"c"]))
    0.5
    """
    ours, theirs = (set(token_bytes(vocabulary)) - {b""} for vocabulary in (target, source))
    return len(ours & theirs) / max(len(ours), 1)


def _inside(at: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    index = np.searchsorted(starts, at, side="right") - 1
    return (index >= 0) & (at < ends[np.maximum(index, 0)]) if len(starts) else np.zeros(len(at), bool)


def show(found: Fit) -> None:
    """Print a fit."""
    from rich.table import Table

    from lmfuse.console import Console

    table = Table("what", "value", show_header=False)
    table.add_row("text", f"{found.documents:,} documents, {found.bytes:,} bytes")
    table.add_row("tokens (target, source)", f"{found.target_tokens:,}, {found.source_tokens:,}")
    table.add_row("target tokens that start where a source token starts", f"{found.common_starts:.1%}")
    table.add_row("  of these the very same stretch of text", f"{found.same_tokens:.1%}")
    table.add_row("target tokens that start inside a source token (the byte law conditions)", f"{found.inside:.1%}")
    table.add_row("target vocabulary that the source spells the same", f"{found.shared_vocabulary:.1%}")
    for side, lossy, masked in zip(("target", "source"), found.lossy, found.masked_bytes, strict=True):
        table.add_row(f"{side} tokenizer", f"{lossy}; {masked:,} bytes masked" if lossy else "exact")
    Console().table(table)
