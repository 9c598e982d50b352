"""Alignments for the tests of fusion: written by hand, or drawn at random."""

import numpy as np

from lmfuse.types import Alignment, TopK

EMPTY = -np.inf


def alignment(rows: list[dict[int, float] | None], vocab_size: int = 9, k: int = 3, truth: list[float] | None = None) -> Alignment:
    """Return one source's rows, each a mapping from id to probability; what is missing from 1 is the tail, None is no row."""
    topk = TopK.unknown(len(rows), k, vocab_size)
    for token, row in enumerate(rows):
        for slot, (name, prob) in enumerate((row or {}).items()):
            topk.ids[token, slot], topk.log_probs[token, slot] = name, np.log(prob)
        with np.errstate(divide="ignore"):
            topk.tail[token] = np.log(max(1 - sum((row or {}).values()), 0))
    source_row = np.array([-1 if row is None else token for token, row in enumerate(rows)], dtype=np.int64)
    nll = np.full(len(rows), np.nan) if truth is None else np.array(truth, dtype=np.float64)
    return Alignment(source_row, topk, nll, np.zeros(len(rows)), np.zeros(len(rows), bool), source_row >= 0)


def random_alignment(rng: np.random.Generator, num_tokens: int, vocab_size: int, k: int) -> Alignment:
    """Return rows over up to k distinct ids; about a fifth of the tokens have none."""
    rows: list[dict[int, float] | None] = []
    for _ in range(num_tokens):
        kept = int(rng.integers(1, k + 1))
        ids = rng.choice(vocab_size, kept, replace=False)
        rows.append(dict(zip(ids.tolist(), rng.dirichlet(np.ones(kept + 1))[:kept].tolist(), strict=True)) if rng.random() > 0.2 else None)
    return alignment(rows, vocab_size, k, truth=rng.exponential(size=num_tokens).tolist())


def as_dict(topk: TopK, token: int) -> dict[int, float]:
    """Return one row as a mapping from id to probability, empty slots left out."""
    kept = topk.log_probs[token] > EMPTY
    return dict(zip(topk.ids[token][kept].tolist(), np.exp(topk.log_probs[token][kept]).tolist(), strict=True))


def mass(topk: TopK) -> np.ndarray:
    """Return the probability that each row accounts for."""
    return np.exp(topk.log_probs).sum(-1) + np.exp(topk.tail)
