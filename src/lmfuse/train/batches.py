"""Documents in the order in which they are read, as padded tensors with labels and teacher rows beside them.

The order is a pure function of seed, epoch and position, so that a resumed run reads what it would have read.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from lmfuse.losses.teacher import TeacherRows
from lmfuse.train.settings import Training
from lmfuse.types import Document, Encoding, Fused

Item = TypeVar("Item")


# ------------------------------------------------------------------------------------------------------------------------ order


def permutation(num_documents: int, seed: int, epoch: int) -> Int[np.ndarray, "B"]:
    """Return the order of the documents in one epoch: sorted by the words of a counter-based generator (Philox) with key (seed, epoch).

    Raw words and a stable sort mean the same everywhere and in every version of numpy.
    """
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_documents)
    return np.argsort(words, kind="stable")


def stream(num_documents: int, seed: int, begin: int, end: int) -> Int[np.ndarray, "N"]:
    """Return the documents at positions ``begin`` to ``end`` of all epochs, one after the other."""
    epochs = range(begin // num_documents, (end - 1) // num_documents + 1)
    first = epochs.start * num_documents
    return np.concatenate([permutation(num_documents, seed, epoch) for epoch in epochs])[begin - first : end - first]


def planned_steps(
    lengths: Integer[np.ndarray, "B"], settings: Training, start: int = 0, first: int = 0
) -> Iterator[list[Int[np.ndarray, "N"]]]:
    """Yield for each step from ``start`` on its micro-batches of document indices, the longest documents first.

    Blocks of ``length_block`` steps are sorted by length, cut into steps, and the steps shuffled; every step depends on seed and
    position only. Longest first: memory that does not suffice shows at the first step, not in the night.
    ``first`` documents of the stream were read before, by another training.
    """
    block_documents = settings.length_block * settings.step_documents
    total = settings.read_documents(len(lengths))
    for block in range(start // settings.length_block, -(-total // block_documents)):
        begin = block * block_documents
        documents = stream(len(lengths), settings.seed, first + begin, first + min(begin + block_documents, total))
        steps = _cut(_longest_first(documents, lengths) if settings.length_block > 1 else documents, settings.step_documents)
        order = permutation(len(steps), settings.seed, (1 << 63) + block)  # epochs never get this far
        skip = max(0, start - block * settings.length_block)
        for step in order[skip:]:
            yield _cut(_longest_first(steps[step], lengths), settings.batch_documents)


def _longest_first(documents: Int[np.ndarray, "N"], lengths: Integer[np.ndarray, "B"]) -> Int[np.ndarray, "N"]:
    return documents[np.argsort(-lengths[documents], kind="stable")]


def _cut(documents: Int[np.ndarray, "N"], size: int) -> list[Int[np.ndarray, "_"]]:
    return [documents[begin : begin + size] for begin in range(0, len(documents), size)]


# ---------------------------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch:
    """One forward pass: padded token ids, and for each predicted token where its hidden state is, what it was, and who teaches it.

    The hidden state of token ``t - 1`` predicts token ``t``. A token is predicted if it carries trained text and another token stands
    before it. ``positions`` index the hidden states of the batch as one flat list ``B * T``.

    Attributes:
        documents: ids, for messages.
        labels: the tokens that really followed.
        teacher: row ``n`` says what should follow at ``positions[n]``; None: nobody teaches.
        clm_weight: the share of the ground truth in the loss at each position; the teacher has the rest.
        strand: which of a sample's texts these are.
    """

    documents: tuple[str, ...]
    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    positions: Int[Tensor, "N"]
    labels: Int[Tensor, "N"]
    teacher: TeacherRows | None
    clm_weight: Float[Tensor, "N"]
    strand: int = 0

    @property
    def num_tokens(self) -> int:
        """Return how many tokens are read, padding excluded."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        rows = None if self.teacher is None else self.teacher.to(device)
        names = ("input_ids", "attention_mask", "positions", "labels", "clm_weight")
        return replace(self, teacher=rows, **{name: getattr(self, name).to(device) for name in names})

    def silenced(self) -> Batch:
        """Return the batch with nothing to predict: what a process computes that has no share of a step."""
        return replace(self, positions=self.positions[:0], labels=self.labels[:0], teacher=None, clm_weight=self.clm_weight[:0])


@dataclass(frozen=True)
class Example:
    """One document of a batch as arrays: what is read, which tokens of it are predicted (indices into ``ids``), and their teacher.

    ``joined`` is True where a predicted token begins where the predicted token before it ends.
    """

    document: str
    ids: Integer[np.ndarray, "T"]
    targets: Int[np.ndarray, "N"]
    joined: Bool[np.ndarray, "N"]
    fused: Fused | None
    clm_weight: float


def example(document: Document, encoding: Encoding, fused: Fused | None, clm_weight: float) -> Example:
    """Choose the predicted tokens of a document and their teacher rows.

    A token behind one that is not predicted, in the middle of a span that begins with that one, counts as one of which the teacher's
    probability is not known: the whole span's is never known. The first token of a later answer stands behind the template's words and
    begins where the turn before it ends: it opens a span.
    """
    targets = 1 + np.flatnonzero(encoding.starts[1:] >= 0)
    before = np.append(-1, targets)[:-1]  # the predicted token before
    meets, follows = (encoding.starts[targets] == encoding.ends[place] for place in (targets - 1, before))
    joined = meets & (before == targets - 1)
    if fused is not None:
        opens = (
            joined
            | (encoding.starts[targets] == 0)
            | (meets & fused.boundary[targets - 1])
            | (follows & (before >= 0) & fused.boundary[before])
        )
        truth = np.where(opens, fused.truth_nll_nats[targets], np.nan).astype(np.float32)
        fused = Fused(fused.topk[targets], fused.taught[targets], fused.winner[targets], truth, fused.boundary[targets])
    return Example(document.id, encoding.ids, targets, joined, fused, clm_weight)


def collate(examples: Sequence[Example]) -> Batch:
    """Pad documents to the longest of them. Teacher rows are not padded: there is one per predicted token."""
    width = max(len(e.ids) for e in examples)
    input_ids = np.zeros((len(examples), width), np.int64)
    mask = np.zeros((len(examples), width), bool)
    for row, e in enumerate(examples):
        input_ids[row, : len(e.ids)] = e.ids
        mask[row, : len(e.ids)] = True
    positions = np.concatenate([row * width + e.targets - 1 for row, e in enumerate(examples)])
    labels = np.concatenate([e.ids[e.targets] for e in examples]).astype(np.int64)
    weights = np.repeat(np.array([e.clm_weight for e in examples], np.float32), [len(e.targets) for e in examples])
    return Batch(
        documents=tuple(e.document for e in examples),
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(mask),
        positions=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        teacher=_teacher_rows(examples),
        clm_weight=torch.from_numpy(weights),
    )


def _teacher_rows(examples: Sequence[Example]) -> TeacherRows | None:
    """Return one row per predicted token, untaught where a document has no teacher, or None where no document has one."""
    if all(e.fused is None for e in examples):
        return None
    return TeacherRows.cat([TeacherRows.nothing(len(e.targets)) if e.fused is None else _rows(e.fused, e.joined) for e in examples])


def _rows(fused: Fused, joined: Bool[np.ndarray, "N"]) -> TeacherRows:
    return TeacherRows.from_numpy(fused.topk, fused.taught, fused.truth_nll_nats, fused.boundary, joined)


# --------------------------------------------------------------------------------------------------------------------- prefetch


def prefetch(items: Iterator[Item], depth: int = 2) -> Generator[Item, None, None]:
    """Yield the same items in the same order, up to ``depth`` of them prepared ahead by a thread.

    An exception of the source is raised where its item would have come. Closing the generator ends the thread.
    """
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def offer(item: Item | None, error: BaseException | None = None) -> bool:
        while not closed.is_set():
            try:
                ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not offer(item):
                    return
            offer(None)
        except BaseException as error:  # handed over, whatever it is: the consumer raises it
            offer(None, error)

    thread = threading.Thread(target=produce, name="lmfuse-batches", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        closed.set()
        thread.join()
