"""Small models, texts and teachers that the training tests share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmfuse.models import LanguageModel, ModelSpec, load_model
from lmfuse.train import loop
from lmfuse.train.log import TrainingLog
from lmfuse.train.reader import Strand, Teacher
from lmfuse.train.settings import Training
from lmfuse.types import Document, Encoding, Fused, TopK
from tests import fakes

WORDS = "".join(fakes.TEXT).split()


def texts(num_documents: int = 8, seed: int = 0) -> list[Document]:
    """Return documents of 3 to 40 words of the fakes' text."""
    rng = np.random.default_rng(seed)
    return [Document.plain(" ".join(rng.choice(WORDS, rng.integers(3, 40)))) for _ in range(num_documents)]


def tiny(folder: Path, *, seed: int = 0, dtype: str = "float32", tokenizer: str = "byte_bpe") -> LanguageModel:
    """Write a tiny Llama and load it."""
    fakes.save_model(folder, fakes.KINDS[tokenizer](), seed=seed)
    return load_model(ModelSpec(model=str(folder), dtype=dtype))


def quick(**options: object) -> Training:
    """Return settings for a few steps in float32 without surprises."""
    given = {"learning_rate": 1e-3, "batch_documents": 2, "accumulation": 1, "precision": "float32", "warmup_ratio": 0.0, "seed": 1}
    return Training(**given | options)


def train(model: LanguageModel, documents: Sequence[Document], teacher: Teacher | None, *given: Any, **options: Any) -> TrainingLog:
    """Train on one strand."""
    return loop.train(model, [Strand(documents, teacher)], *given, **options)


def weights_of(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.module.named_parameters()}


def whole_rows(model: LanguageModel, encoding: Encoding) -> TopK:
    """Return a model's own full distributions: row t is what it says of token t, so row 0 knows nothing."""
    with torch.no_grad():
        hidden = model.hidden(torch.from_numpy(encoding.ids)[None])[0]
        log_probs = model.head.logits(hidden).log_softmax(-1).numpy()
    vocab_size = log_probs.shape[1]
    ids = np.tile(np.arange(vocab_size), (len(encoding.ids), 1))
    shifted = np.concatenate([np.full_like(log_probs[:1], -np.log(vocab_size)), log_probs[:-1]])
    return TopK(ids, shifted, np.full(len(ids), -np.inf, np.float32), vocab_size)


def taught(topk: TopK) -> Fused:
    size = len(topk)
    return Fused(topk, np.ones(size, bool), np.zeros(size, np.int64), np.full(size, np.nan), np.zeros(size, bool))
