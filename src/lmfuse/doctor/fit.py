"""How well a source's tokens fit a target's, on a sample of a recipe's training text: what ``lmfuse plan`` judges by the limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.dtw import Dtw
from lmfuse.align.join import Join
from lmfuse.bytes import ByteTokenizer
from lmfuse.doctor.axis import Axis
from lmfuse.doctor.samples import aligned_stretches
from lmfuse.doctor.tokenizers import shared_vocabulary
from lmfuse.limits import Fit
from lmfuse.types import Document

SAMPLE_DOCUMENTS, SAMPLE_BYTES = 512, 1 << 19  # of training text that a plan looks at

Coverage = Callable[[Any, Axis, Sequence[Document], ByteTokenizer, ByteTokenizer], float]
COVERAGE: dict[type, Coverage] = {
    ByteLaw: lambda method, axis, documents, target, source: float(axis.lawful.mean()),
    Join: lambda method, axis, documents, target, source: float(axis.joined.mean()),
    Dtw: lambda method, axis, documents, target, source: aligned_stretches(method, documents, target, source)["coverage"],
}


def spread(documents: Sequence[Document], count: int = SAMPLE_DOCUMENTS, num_bytes: int = SAMPLE_BYTES) -> list[Document]:
    """Return documents evenly spaced over a corpus, at most so many, and at most so many bytes (one document always).

    >>> [document.segments[0].text for document in spread([Document.plain(text) for text in "abcd"], count=2)]
    ['a', 'c']
    """
    found: list[Document] = []
    mean = max(sum(len(document.trained_bytes) for document in documents) // max(len(documents), 1), 1)
    step = max(-(-len(documents) // count), -(-len(documents) * mean // num_bytes), 1)
    for document in documents[::step]:
        num_bytes -= len(document.trained_bytes)
        if found and num_bytes < 0:
            break
        found.append(document)
    return found


def fit(label: str, align: object, documents: Sequence[Document], target: ByteTokenizer, source: ByteTokenizer) -> Fit:
    """Compare a source's tokenizer with a target's on some documents, as an alignment method sees them."""
    axis = Axis.of(documents, target, source)
    covered = COVERAGE[type(align)](align, axis, documents, target, source) if len(axis.target.ids) else 0.0
    masked = axis.lost_bytes / max(axis.num_bytes, 1)
    return Fit(label, covered, masked, shared_vocabulary(target.vocabulary, source.vocabulary), len(documents), axis.num_bytes)
