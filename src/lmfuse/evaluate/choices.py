"""Questions with several answers: which of them does a model find the likeliest? No text is written.

An answer's log-likelihood is the sum over the tokens that write at least one of its bytes, given everything before them; so a token that
writes the end of the question and the beginning of the answer counts, as it must: it is where the model decides.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from lmfuse.errors import InputError, ModelError
from lmfuse.forward import RowPlan, encode_all, row_logits
from lmfuse.models import LanguageModel
from lmfuse.types import Document


@dataclass(frozen=True)
class Question:
    """A question, its possible answers as they stand behind it, and which one is right.

    Attributes:
        text: what stands before every answer.
        choices: at least two, none of them empty.
        answer: index of the right one.
        domain: what it counts for.
        origin: where it came from, for messages.
    """

    text: str
    choices: tuple[str, ...]
    answer: int
    domain: str = "choices"
    origin: str = ""

    @cached_property
    def id(self) -> str:
        """Return a hash of its content; equal questions have the same."""
        return hashlib.sha256(json.dumps([self.text, self.choices, self.answer]).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ChoiceScore:
    """What a model thinks of each answer to a question: nats, and the bytes that they are for."""

    question: Question
    nll_nats: tuple[float, ...]
    num_bytes: tuple[int, ...]

    def chosen(self, by: Literal["bytes", "sum"] = "bytes") -> int:
        """Return the likeliest answer, of equals the first.

        >>> score = ChoiceScore(Question("?", ("a", "abc"), 1), (2.0, 3.0), (1, 3))
        >>> score.chosen("sum"), score.chosen("bytes")
        (0, 1)
        """
        sizes = self.num_bytes if by == "bytes" else (1,) * len(self.num_bytes)
        costs = [nats / size for nats, size in zip(self.nll_nats, sizes, strict=True)]
        return costs.index(min(costs))

    def is_right(self, by: Literal["bytes", "sum"] = "bytes") -> bool:
        """Return whether that is the right one."""
        return self.chosen(by) == self.question.answer


def score_choices(model: LanguageModel, questions: Sequence[Question], *, batch_tokens: int) -> list[ChoiceScore]:
    """Measure the answers to questions, in their order.

    Args:
        model: the model; it is put into evaluation mode meanwhile.
        questions: each with every answer must fit its context.
        batch_tokens: padded tokens of a batch.

    Raises:
        InputError: a question with an answer is longer than the model's context, or the model can represent no byte of an answer.
        ModelError: the model gives probabilities that are not finite.
    """
    pairs = [(question, choice) for question in questions for choice in question.choices]
    documents = [Document.plain(question.text + choice, question.domain, question.origin) for question, choice in pairs]
    encodings = encode_all(model, documents)
    plan = RowPlan.of(encodings)
    nll_nats: Float[np.ndarray, "N"] = np.zeros(plan.num_rows, np.float64)
    for chunk in row_logits(model, encodings, plan, batch_tokens=batch_tokens):
        truth = chunk.logits.gather(1, chunk.next_ids[:, None])[:, 0]
        nll_nats[chunk.rows] = (torch.logsumexp(chunk.logits, 1) - truth).cpu().numpy()
    found: list[tuple[float, int]] = []
    for index, ((question, choice), encoding) in enumerate(zip(pairs, encodings, strict=True)):
        begin = len(question.text.encode())
        ends = encoding.ends[plan.positions[index]]
        starts = np.maximum(encoding.starts[plan.positions[index]], begin)
        counted = ends > begin
        nats = float(nll_nats[plan.offsets[index] : plan.offsets[index + 1]][counted].sum())
        if not math.isfinite(nats):
            raise ModelError(f"question {question.origin or question.id}: the model's probabilities are not finite", "try dtype float32")
        size = int((ends - starts)[counted].sum())
        if not size:
            raise InputError(f"question {question.origin or question.id}: the model can represent no byte of {choice!r}", "leave it out")
        found.append((nats, size))
    each = iter(found)
    scores = []
    for question in questions:
        nats_and_bytes = [next(each) for _ in question.choices]
        scores.append(ChoiceScore(question, tuple(n for n, _ in nats_and_bytes), tuple(b for _, b in nats_and_bytes)))
    return scores
