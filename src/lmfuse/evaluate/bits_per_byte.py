"""Bits per byte: how many bits a model needs for a byte of text, whatever its tokenizer; the one measure that all models share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lmfuse.errors import InputError, ModelError
from lmfuse.forward import RowPlan, encode_all, row_logits
from lmfuse.models import LanguageModel
from lmfuse.types import Document, DocumentScore


def score_documents(
    model: LanguageModel,
    documents: Sequence[Document],
    *,
    batch_tokens: int,
    turn_ends: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[DocumentScore]:
    """Measure a model on documents, in their order: negative log-likelihood of the bytes it predicts, and how many those are.

    Bytes that the model's tokenizer cannot represent, and those of a first token with nothing before it, are in neither number. Where one
    of the models that are compared has no single token for the end of a turn, ``turn_ends`` leaves these bytes out of all of them.

    Args:
        model: the model; it is put into evaluation mode meanwhile.
        documents: what it is measured on; each must fit its context.
        batch_tokens: padded tokens of a batch.
        turn_ends: whether the ends of turns in conversations count.
        progress: called with the number of tokens just scored.

    Raises:
        InputError: a document is longer than the model's context.
        ModelError: the model gives probabilities that are not finite.
    """
    encodings = encode_all(model, documents)
    plan = RowPlan.of(encodings)
    nll_nats = np.zeros(plan.num_rows, np.float64)
    for chunk in row_logits(model, encodings, plan, batch_tokens=batch_tokens):
        truth = chunk.logits.gather(1, chunk.next_ids[:, None])[:, 0]
        nll_nats[chunk.rows] = (torch.logsumexp(chunk.logits, 1) - truth).cpu().numpy()
        if progress is not None:
            progress(len(chunk.rows))
    scores = []
    ends = -1 if turn_ends or model.tokenizer.chat is None else model.tokenizer.vocabulary.control.get("end_of_turn", -1)
    for index, (document, encoding) in enumerate(zip(documents, encodings, strict=True)):
        counted = encoding.ids[plan.positions[index]] != ends
        total = float(nll_nats[plan.offsets[index] : plan.offsets[index + 1]][counted].sum())
        if not math.isfinite(total):
            raise ModelError(f"document {document.id}: the model's probabilities are not finite", "try dtype float32")
        predicted = plan.positions[index][counted]
        scores.append(
            DocumentScore(document.id, document.domain, total, int((encoding.ends[predicted] - encoding.starts[predicted]).sum()))
        )
    return scores


def bits_per_byte(scores: Sequence[DocumentScore]) -> float:
    """Return the bits of all documents over the bytes of all documents.

    Raises:
        InputError: there is not one byte to measure.

    >>> bits_per_byte([DocumentScore("a", "text", math.log(2) * 6, 4), DocumentScore("b", "text", 0.0, 2)])
    1.0
    """
    num_bytes = sum(score.num_bytes for score in scores)
    if not num_bytes:
        raise InputError("no bytes to measure", "every document is empty, or shorter than two tokens")
    return math.fsum(score.nll_nats for score in scores) / math.log(2) / num_bytes
