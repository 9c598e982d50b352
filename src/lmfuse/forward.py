"""Forward passes over documents of mixed lengths: batches of similar length, and logits only where a token with text follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmfuse.errors import InputError
from lmfuse.models import LanguageModel
from lmfuse.types import Encoding

CHUNK_LOGITS = 1 << 25  # logits computed at once: 128 MiB of float32, however large the vocabulary


@dataclass(frozen=True)
class RowPlan:
    """Which tokens of some documents are predicted, and where their rows stand when all documents are laid end to end.

    Attributes:
        positions: for each document the indices of its tokens that have text and a token before them.
        offsets: document ``i`` owns rows ``offsets[i]:offsets[i + 1]``.
    """

    positions: tuple[Int[np.ndarray, U], ...]
    offsets: Int[np.ndarray, B + 1]

    @classmethod
    def of(cls, encodings: Sequence[Encoding]) -> RowPlan:
        """Plan a row for every token with text that the model has something to predict from: at least a start token."""
        positions = tuple(np.flatnonzero(encoding.starts[1:] >= 0).astype(np.int64) + 1 for encoding in encodings)
        return cls(positions, np.concatenate([[0], np.cumsum([len(found) for found in positions])]).astype(np.int64))

    @property
    def num_rows(self) -> int:
        """Return the number of rows of all documents."""
        return int(self.offsets[-1])

    @property
    def lengths(self) -> Int[np.ndarray, B]:
        """Return how many tokens of each document the model must read: those before its last row, or none."""
        return np.array([found[-1] if len(found) else 0 for found in self.positions], np.int64)


@dataclass(frozen=True)
class LogitChunk:
    """Logits of some rows: which rows (see ``RowPlan``), over the real vocabulary in float32, and the tokens that really followed."""

    rows: Int[np.ndarray, N]
    logits: Float[Tensor, "N V"]
    next_ids: Int[Tensor, N]


def length_buckets(lengths: Int[np.ndarray, B], batch_tokens: int) -> list[Int[np.ndarray, N]]:
    """Group documents of similar length into batches of at most ``batch_tokens`` tokens, padding included; longest first.

    A document that is longer than that is a batch of its own; a document of length 0 is in none. The result depends on the
    arguments alone: equal lengths keep their order.

    >>> [bucket.tolist() for bucket in length_buckets(np.array([3, 9, 4, 0, 4]), batch_tokens=8)]
    [[1], [2, 4], [0]]
    """
    order = np.argsort(-lengths, kind="stable")
    order = order[: int((lengths > 0).sum())]
    buckets, first = [], 0
    while first < len(order):
        last = first + max(1, batch_tokens // int(lengths[order[first]]))
        buckets.append(order[first:last])
        first = last
    return buckets


@torch.inference_mode()
def row_logits(model: LanguageModel, encodings: Sequence[Encoding], plan: RowPlan, *, batch_tokens: int) -> Iterator[LogitChunk]:
    """Yield the logits of all planned rows, each row once, in chunks of bounded size.

    Documents are padded on the right, where a causal model cannot see it; hidden states of padding never reach the head.

    Raises:
        InputError: a document is longer than the model's context.
    """
    for index, encoding in enumerate(encodings):
        if len(encoding.ids) > model.context:
            raise InputError(
                f"document {index} has {len(encoding.ids)} tokens, the model reads at most {model.context}",
                "cut the text into shorter windows",
            )
    with _evaluation(model):
        for bucket in length_buckets(plan.lengths, batch_tokens):
            yield from _bucket_logits(model, encodings, plan, bucket)


def _bucket_logits(model: LanguageModel, encodings: Sequence[Encoding], plan: RowPlan, bucket: Int[np.ndarray, N]) -> Iterator[LogitChunk]:
    lengths = plan.lengths[bucket]
    ids = np.zeros((len(bucket), int(lengths.max())), np.int64)
    for line, index in zip(ids, bucket, strict=True):
        line[: plan.lengths[index]] = encodings[index].ids[: plan.lengths[index]]
    mask = torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None]).to(model.device)
    padded = int(lengths.min()) < ids.shape[1]
    hidden = model.hidden(torch.from_numpy(ids).to(model.device), mask.long() if padded else None)
    rows = np.concatenate([np.arange(plan.offsets[i], plan.offsets[i + 1]) for i in bucket])
    where = np.concatenate([line * ids.shape[1] + plan.positions[i] - 1 for line, i in enumerate(bucket)])
    next_ids = torch.from_numpy(np.concatenate([encodings[i].ids[plan.positions[i]] for i in bucket]).astype(np.int64)).to(model.device)
    states = hidden.flatten(0, 1)[torch.from_numpy(where).to(model.device)]
    size = max(1, CHUNK_LOGITS // model.head.vocab_size)
    for first in range(0, len(rows), size):
        part = slice(first, first + size)
        yield LogitChunk(rows[part], model.head.logits(states[part]), next_ids[part])


@contextmanager
def _evaluation(model: LanguageModel) -> Iterator[None]:
    """Switch dropout off while we measure, and leave the module as it was found."""
    training = model.module.training
    model.module.eval()
    try:
        yield
    finally:
        model.module.train(training)
