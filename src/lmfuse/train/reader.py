"""What a training step reads: samples become batches; the teachers are asked in the order of reading.

A sample has one text or several, each in a strand of its own: an answer that people wrote and one that a model wrote, for example. All texts of
a sample are read in the same step; each strand has a mean loss, and these are added up with the strands' weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Int

from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import InputError, TextError
from lmfuse.train.batches import Batch, Example, collate, example, planned_steps
from lmfuse.train.settings import Training
from lmfuse.types import Document, Encoding, Fused

Teacher = Callable[[Document, Encoding], Fused | None]
DocumentWeight = Callable[[Document], float]
Knots = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Strand:
    """One text of every sample, who teaches it, and what it weighs.

    Attributes:
        documents: one for each sample; None where a sample has no such text.
        teacher: called once per document read, in order, with the document and the target's encoding of it; None: nobody teaches.
        weight: of the mean loss over the strand's predicted tokens of a step: a number at some shares of the run, linear between them, the
            last one from there on; of two at the same share the second counts from there on.
    """

    documents: Sequence[Document | None]
    teacher: Teacher | None = None
    weight: Knots = ((0.0, 1.0),)

    def weight_at(self, share: float) -> float:
        """Return the weight when a share of the run is done.

        >>> stages = Strand([], weight=((0.0, 1.0), (0.5, 1.0), (0.5, 0.1)))
        >>> [stages.weight_at(share) for share in (0.0, 0.4, 0.5, 0.9)]
        [1.0, 1.0, 0.1, 0.1]
        >>> Strand([], weight=((0.0, 0.0), (1.0, 1.0))).weight_at(0.25)
        0.25
        """
        for (begin, first), (end, last) in pairwise(self.weight):
            if begin <= share < end:
                return first + (last - first) * (share - begin) / (end - begin)
        return self.weight[-1][1]


def check_strands(strands: Sequence[Strand]) -> int:
    """Return the number of samples.

    Raises:
        InputError: there is no sample, strands of different length, or a sample without any text.
    """
    lengths = {len(strand.documents) for strand in strands}
    if lengths <= {0}:
        raise InputError("no documents to train on", hint="give a training corpus that is not empty")
    if len(lengths) > 1:
        raise InputError(f"strands of {sorted(lengths)} samples", hint="give each strand one document, or None, for each sample")
    empty = [place for place, texts in enumerate(zip(*(strand.documents for strand in strands), strict=True)) if not any(texts)]
    if empty:
        raise InputError(f"sample {empty[0]} has no text in any strand", hint="leave such samples out")
    return lengths.pop()


@dataclass(frozen=True)
class Step:
    """One step of the optimizer: its number, counted from 0, this process's share of its micro-batches, and what each strand weighs."""

    index: int
    batches: tuple[Batch, ...]
    weights: tuple[float, ...] = (1.0,)

    @property
    def num_positions(self) -> tuple[int, ...]:
        """Return how many tokens this process predicts in the step, for each strand."""
        return tuple(sum(len(batch.labels) for batch in self.batches if batch.strand == place) for place in range(len(self.weights)))


@dataclass(frozen=True)
class Reader:
    """Samples become batches: encode, ask the teacher, collate.

    Attributes:
        clm_weight: the share of the ground truth at a step.
        document_weight: the same for one document, whatever the step; it goes first where it is given.
        context: the most tokens that the model can read.
        first: the samples of the stream that were read before, by another training: this one goes on behind them.
        process, num_processes: this process takes every ``num_processes``-th micro-batch of a step.
    """

    strands: Sequence[Strand]
    tokenizer: ByteTokenizer
    settings: Training
    clm_weight: Callable[[int], float]
    document_weight: DocumentWeight | None
    context: int
    first: int = 0
    process: int = 0
    num_processes: int = 1

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Yield the steps from ``start`` on.

        Raises:
            TextError: a document has more tokens than the model can read.
        """
        texts = list(zip(*(strand.documents for strand in self.strands), strict=True))
        lengths = np.array([sum(document.num_bytes for document in some if document is not None) for some in texts])
        num_steps = self.settings.num_steps(len(lengths))
        for index, planned in enumerate(planned_steps(lengths, self.settings, start, self.first), start):
            weights = tuple(strand.weight_at(index / num_steps) for strand in self.strands)
            batches = tuple(self._batches(planned[self.process :: self.num_processes], weights, index))
            yield Step(index, batches or (self._silence(planned[0], index),), weights)

    def _batches(self, planned: Sequence[Int[np.ndarray, "_"]], weights: Sequence[float], step: int) -> Iterator[Batch]:
        """Yield the batches of some micro-batches of samples, strand by strand; a strand that weighs nothing is not read."""
        for samples in planned:
            for place, (strand, weight) in enumerate(zip(self.strands, weights, strict=True)):
                documents = [document for i in samples if (document := strand.documents[i]) is not None]
                if documents and weight:
                    yield replace(collate([self._example(document, strand, step) for document in documents]), strand=place)

    def _silence(self, samples: Int[np.ndarray, "N"], step: int) -> Batch:
        """Return a batch with nothing to predict: what a process computes that has no share of a step."""
        strand, document = next((s, found) for i in samples[::-1] for s in self.strands if (found := s.documents[i]) is not None)
        return collate([self._example(document, strand, step)]).silenced()

    def _example(self, document: Document, strand: Strand, step: int) -> Example:
        encoding = self.tokenizer.encode(document)
        if len(encoding.ids) > self.context:
            message = f"document {document.id} ({document.domain}): {len(encoding.ids)} tokens, the model reads {self.context}"
            raise TextError(message, hint="cut the text into windows that fit every model's context")
        fused = strand.teacher(document, encoding) if strand.teacher else None
        weight = self.document_weight(document) if self.document_weight else self.clm_weight(step)
        return example(document, encoding, fused, float(weight))
