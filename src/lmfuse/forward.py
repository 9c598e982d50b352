"""Forward passes over documents of mixed lengths: batches of similar length, and logits only where a token with text follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmfuse.errors import InputError
from lmfuse.memory import out_of_memory_is_an_error
from lmfuse.models import LanguageModel
from lmfuse.types import Document, Encoding

CHUNK_LOGITS = {"cpu": 1 << 22, "other": 1 << 26}  # computed at once; on a CPU so few that memory is reused, not mapped anew
CHUNK_ROWS = 64  # but at least so many, or a large head is read from memory too often


@dataclass(frozen=True)
class RowPlan:
    """Which tokens of some documents are predicted, and where their rows stand when all documents are laid end to end.

    Attributes:
        positions: for each document the indices of its tokens that have text and a token before them.
        offsets: document ``i`` owns rows ``offsets[i]:offsets[i + 1]``.
    """

    positions: tuple[Int[np.ndarray, "_"], ...]
    offsets: Int[np.ndarray, "B1"]

    @classmethod
    def of(cls, encodings: Sequence[Encoding]) -> RowPlan:
        """Plan a row for every token with text that the model has something to predict from: at least a start token."""
        positions = tuple(np.flatnonzero(encoding.starts[1:] >= 0).astype(np.int64) + 1 for encoding in encodings)
        return cls(positions, np.concatenate([[0], np.cumsum([len(found) for found in positions])]).astype(np.int64))

    @property
    def num_rows(self) -> int:
        """Return the number of rows of all documents."""
        return int(self.offsets[-1])

    @cached_property
    def lengths(self) -> Int[np.ndarray, "B"]:
        """Return how many tokens of each document the model must read: those before its last row, or none."""
        return np.array([found[-1] if len(found) else 0 for found in self.positions], np.int64)


@dataclass(frozen=True)
class LogitChunk:
    """Logits of some rows: which rows (see ``RowPlan``), over the real vocabulary in float32, and the tokens that really followed."""

    rows: Int[np.ndarray, "N"]
    logits: Float[Tensor, "N V"]
    next_ids: Int[Tensor, "N"]


def length_buckets(lengths: Int[np.ndarray, "B"], batch_tokens: int) -> list[Int[np.ndarray, "_"]]:
    """Group documents of similar length into batches of at most ``batch_tokens`` tokens, padding included; longest first.

    Once a batch holds an eighth of that, documents of less than three quarters of its longest go into the next one. A document that
    is longer than ``batch_tokens`` is a batch of its own; a document of length 0 is in none. The result depends on the arguments
    alone: equal lengths keep their order.

    >>> [bucket.tolist() for bucket in length_buckets(np.array([3, 9, 4, 0, 4]), batch_tokens=8)]
    [[1], [2, 4], [0]]
    """
    order = np.argsort(-lengths, kind="stable")
    order = order[: int((lengths > 0).sum())]
    buckets, first = [], 0
    while first < len(order):
        longest = int(lengths[order[first]])
        most = first + max(1, batch_tokens // longest)
        enough = first + max(1, batch_tokens // 8 // longest)
        alike = int((4 * lengths[order[first:most]] >= 3 * longest).sum())
        last = min(most, max(first + alike, enough))
        buckets.append(order[first:last])
        first = last
    return buckets


def encode_all(model: LanguageModel, documents: Sequence[Document]) -> list[Encoding]:
    """Encode documents with a model's tokenizer.

    Raises:
        InputError: one is longer than the model's context; names it.
        TokenizerError: the tokenizer cannot encode one.
    """
    encodings = model.tokenizer.encode_many(documents)
    for document, encoding in zip(documents, encodings, strict=True):
        if len(encoding.ids) > model.context:
            raise InputError(
                f"document {document.id}{f' ({document.origin})' if document.origin else ''} has {len(encoding.ids)} tokens, "
                f"the model reads at most {model.context}",
                "cut the text into shorter windows",
            )
    return encodings


def row_logits(model: LanguageModel, encodings: Sequence[Encoding], plan: RowPlan, *, batch_tokens: int) -> Iterator[LogitChunk]:
    """Yield the logits of all planned rows, each row once, in chunks of bounded size.

    Documents are padded on the right, where a causal model cannot see it; hidden states of padding never reach the head.

    Raises:
        ResourceError: memory does not suffice for a batch.
    """
    with _evaluation(model):
        for bucket in length_buckets(plan.lengths, batch_tokens):
            yield from _bucket_logits(model, encodings, plan, bucket)


def _bucket_logits(
    model: LanguageModel, encodings: Sequence[Encoding], plan: RowPlan, bucket: Int[np.ndarray, "B"]
) -> Iterator[LogitChunk]:
    what = f"a batch of {len(bucket)} documents of up to {plan.lengths[bucket].max()} tokens"
    with out_of_memory_is_an_error(what):
        states = _states(model, encodings, plan, bucket)
    rows = np.concatenate([np.arange(plan.offsets[i], plan.offsets[i + 1]) for i in bucket])
    next_ids = torch.from_numpy(np.concatenate([encodings[i].ids[plan.positions[i]] for i in bucket]).astype(np.int64)).to(model.device)
    size = max(CHUNK_ROWS, CHUNK_LOGITS.get(model.device.type, CHUNK_LOGITS["other"]) // model.head.vocab_size)
    for first in range(0, len(rows), size):
        part = slice(first, first + size)
        with out_of_memory_is_an_error(what), torch.inference_mode():  # not across the yield: it would leak into the caller
            logits = model.head.logits(states[part])
        yield LogitChunk(rows[part], logits, next_ids[part])


@torch.inference_mode()
def _states(model: LanguageModel, encodings: Sequence[Encoding], plan: RowPlan, bucket: Int[np.ndarray, "B"]) -> Float[Tensor, "N D"]:
    """Return the final hidden states from which the rows of a bucket are predicted, document after document."""
    lengths = plan.lengths[bucket]
    ids = np.zeros((len(bucket), int(lengths.max())), np.int64)
    for line, index in zip(ids, bucket, strict=True):
        line[: plan.lengths[index]] = encodings[index].ids[: plan.lengths[index]]
    mask = torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)).to(model.device)
    padded = int(lengths.min()) < ids.shape[1]
    hidden = model.hidden(torch.from_numpy(ids).to(model.device), mask if padded else None)
    where = np.concatenate([line * ids.shape[1] + plan.positions[i] - 1 for line, i in enumerate(bucket)])
    return hidden.flatten(0, 1)[torch.from_numpy(where).to(model.device)]


@contextmanager
def _evaluation(model: LanguageModel) -> Iterator[None]:
    """Switch dropout off while we measure, and leave the module as it was found."""
    training = model.module.training
    model.module.eval()
    try:
        yield
    finally:
        model.module.train(training)
