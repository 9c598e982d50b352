"""Measured values on disk, and their assembly into ``report.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmfuse.artefacts import write_atomic
from lmfuse.errors import VerificationError
from lmfuse.evaluate.paired import bits_per_byte_by_domain, macro_bits_per_byte, paired_bootstrap
from lmfuse.types import DocumentScore

REPORT_SCHEMA = 1


def write_scores(path: Path, scores: Sequence[DocumentScore]) -> None:
    """Write the per-document values of one model on one split."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"scores": [asdict(score) for score in scores]}, indent=0).encode())


def read_scores(path: Path) -> list[DocumentScore]:
    """Read what ``write_scores`` wrote.

    Raises:
        VerificationError: the file is not such a list.
    """
    try:
        return [DocumentScore(**score) for score in json.loads(path.read_text(encoding="utf-8"))["scores"]]
    except (ValueError, KeyError, TypeError):
        raise VerificationError(f"{path}: not a file of document scores", hint="delete it; the next run measures again") from None


def nats_per_byte_by_domain(scores: Sequence[DocumentScore]) -> dict[str, float]:
    """Return cross-entropy in nats per byte for each domain."""
    return {domain: bits * math.log(2) for domain, bits in bits_per_byte_by_domain(scores).items()}


def mean_over_seeds(runs: Sequence[Sequence[DocumentScore]]) -> list[DocumentScore]:
    """Return for each document the mean over seeds of its negative log-likelihood."""
    return [
        DocumentScore(same[0].document, same[0].domain, sum(score.nll_nats for score in same) / len(same), same[0].num_bytes)
        for same in zip(*runs, strict=True)
    ]


@dataclass
class RunResults:
    """Everything a report needs, gathered by a run.

    ``scores`` holds the evaluation scores by arm (``target``, every source, every trained arm); ``sources`` holds coverage, lost mass and win rate.
    """

    scores: dict[str, list[DocumentScore]] = field(default_factory=dict)
    sources: dict[str, dict[str, float]] = field(default_factory=dict)
    counters: dict[str, int | float] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    def report(self, comparisons: Sequence[tuple[str, str]], *, samples: int, seed: int) -> dict[str, Any]:
        """Return ``report.json``: bits per byte by arm and domain, and paired intervals (a minus b; below zero, a is better)."""
        domains = sorted({score.domain for scores in self.scores.values() for score in scores})
        arms = {arm: bits_per_byte_by_domain(scores) | {"macro": macro_bits_per_byte(scores)} for arm, scores in self.scores.items()}
        return {
            "schema": REPORT_SCHEMA,
            "metric": "bits_per_byte",
            "domains": domains,
            "arms": arms,
            "comparisons": [
                self._compare(a, b, domain, samples, seed) for a, b in comparisons for domain in (*domains, None) if a in arms and b in arms
            ],
            "sources": self.sources,
            "counters": self.counters,
            "run": self.run,
        }

    def _compare(self, a: str, b: str, domain: str | None, samples: int, seed: int) -> Mapping[str, Any]:
        found = paired_bootstrap(self.scores[a], self.scores[b], domain=domain, samples=samples, seed=seed)
        return {"a": a, "b": b, "domain": domain or "macro", "mean": found.mean, "ci95": [found.low, found.high], "n": found.n}
