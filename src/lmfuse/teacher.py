"""Rows of several sources become one teacher row per target token, document by document, while training asks for them.

Nothing aligned is kept on disk: aligning again costs less than reading it back would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np

from lmfuse.align.pair import Pair
from lmfuse.fuse.blend import take
from lmfuse.store import RowStore
from lmfuse.types import Alignment, Document, Encoding, Fused, Rows

AlignCallable = Callable[[Rows, Encoding, Pair], Alignment]
FuseCallable = Callable[..., Fused]


@runtime_checkable
class Encoder(Protocol):
    """Whatever encodes a document: a ``ByteTokenizer``."""

    def encode(self, document: Document) -> Encoding:
        """Return the document's tokens and where they lie."""
        ...


@dataclass(frozen=True)
class SourceRows:
    """One source as a teacher sees it: its rows, what its vocabulary means to the target, and how good it is on held-out text by domain."""

    name: str
    store: Mapping[str, Rows] | RowStore
    pair: Pair
    held_out_nats_per_byte: Mapping[str, float]


@dataclass(frozen=True)
class RowTeacher:
    """Align each source's rows to the target's tokens and fuse them into one row per token.

    Attributes:
        no_teacher_nats_per_byte: by domain, what plain training alone reaches on held-out text: where no source is better, nobody teaches.
            Empty: every source may teach.
    """

    sources: tuple[SourceRows, ...]
    align: AlignCallable
    fuse: FuseCallable
    no_teacher_nats_per_byte: Mapping[str, float] = field(default_factory=dict)

    def alignments(self, document: Document, encoding: Encoding) -> list[Alignment]:
        """Return what each source says about each token of the target's encoding, in the order of the sources."""
        return [self.align(source.store[document.id], encoding, source.pair) for source in self.sources]

    def scores(self, document: Document) -> list[float]:
        """Return each source's cross-entropy as the fusion method wants it, and last the one to beat, if any."""
        if getattr(self.fuse, "judge", "held_out") == "training_text":
            rows = self._comparable([source.store[document.id] for source in self.sources])
            per_token = getattr(self.fuse, "unit", "byte") == "token"
            return [r.nats_per_token if per_token else r.nats_per_byte for r in rows]
        scores = [source.held_out_nats_per_byte.get(document.domain, float("nan")) for source in self.sources]
        to_beat = self.no_teacher_nats_per_byte.get(document.domain)
        return [*scores, to_beat] if to_beat is not None and getattr(self.fuse, "no_teacher", False) else scores

    def _comparable(self, rows: list[Rows]) -> list[Rows]:
        """Leave the ends of turns out of what sources are judged by where one of them has no single token for them: it is spared their cost."""
        ends = [source.pair.source.control.get("end_of_turn") for source in self.sources]
        if None not in ends:
            return rows
        return [each if end is None else each.where(each.next_ids != end) for each, end in zip(rows, ends, strict=True)]

    def __call__(self, document: Document, encoding: Encoding) -> Fused:
        """Return one teacher row per token of the target's encoding."""
        return self.fuse(self.alignments(document, encoding), np.asarray(self.scores(document)))


@dataclass(frozen=True)
class AuthorTeacher:
    """Each text is taught by the model that wrote it.  ProFuser's inference mode, arXiv:2408.04998

    Attributes:
        sources: the authors, each with the rows over its own texts.
        authors: the place among them of a text's author, by the document's id.
    """

    sources: tuple[SourceRows, ...]
    align: AlignCallable
    authors: Mapping[str, int]

    def __call__(self, document: Document, encoding: Encoding) -> Fused:
        """Return the author's row for each token of the target's encoding."""
        place = self.authors[document.id]
        source = self.sources[place]
        alignment = self.align(source.store[document.id], encoding, source.pair)
        fused = take([alignment], np.where(alignment.taught, 0, -1))
        return replace(fused, winner=np.where(fused.taught, place, -1))


@dataclass(frozen=True)
class SourceSurvey:
    """What one source contributes: shares of the target's text tokens, and of probability."""

    coverage: float
    lost_mass: float
    one_hot: float
    win_rate: float


def survey(teacher: RowTeacher, documents: Iterable[Document], tokenizer: Encoder) -> tuple[dict[str, SourceSurvey], dict[str, int]]:
    """Align and fuse all documents once and count.

    Returns:
        by source: coverage (tokens with a row of this source), lost mass (mean probability without a target id, over those), one-hot rate
        (published fallbacks) and win rate (tokens whose teacher it is); and the counters ``tokens`` and ``tokens_untaught``.
    """
    totals = np.zeros((len(teacher.sources), 4))
    tokens = untaught = 0
    for document in documents:
        encoding = tokenizer.encode(document)
        text = encoding.starts >= 0
        alignments = teacher.alignments(document, encoding)
        fused = teacher.fuse(alignments, np.asarray(teacher.scores(document)))
        tokens += int(text.sum())
        untaught += int((text & ~fused.taught).sum())
        for index, alignment in enumerate(alignments):
            has_row = alignment.source_row >= 0
            totals[index] += (
                has_row.sum(),
                alignment.lost_mass[has_row].sum(),
                alignment.one_hot.sum(),
                (fused.taught & (fused.winner == index)).sum(),
            )
    found = {
        source.name: SourceSurvey(
            coverage=float(row[0] / max(tokens, 1)),
            lost_mass=float(row[1] / max(row[0], 1)),
            one_hot=float(row[2] / max(tokens, 1)),
            win_rate=float(row[3] / max(tokens, 1)),
        )
        for source, row in zip(teacher.sources, totals, strict=True)
    }
    return found, {"tokens": tokens, "tokens_untaught": untaught}


def domains_where_better(scores: Mapping[str, float], to_beat: Mapping[str, float]) -> list[str]:
    """Return the domains, sorted, in which a source's nats per byte are below those to beat.

    >>> domains_where_better({"code": 0.5, "prose": 0.9}, {"code": 0.6, "prose": 0.8})
    ['code']
    """
    return sorted(domain for domain, value in scores.items() if value < to_beat.get(domain, float("-inf")))
