"""One training run with every decision taken, and what comes out of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmfuse.arms import Arm
from lmfuse.models import ModelSpec


@dataclass(frozen=True)
class Job:
    """One training run with every decision taken: who teaches, and what is known of them on held-out text (nats per byte by domain)."""

    arm: Arm
    learning_rate: float
    seed: int
    teachers: tuple[str, ...] = ()
    held_out: Mapping[str, Mapping[str, float]] | None = None
    to_beat: Mapping[str, float] | None = None


@dataclass(frozen=True)
class TrainedModel:
    """A trained arm on disk, the spec to load it with, and the lesson before, if there was one."""

    folder: Path
    spec: ModelSpec
    before: TrainedModel | None = None

    @property
    def curve(self) -> list[dict[str, Any]]:
        """Return the lines of its training log, behind those of the lessons before."""
        earlier = self.before.curve if self.before else []
        done = earlier[-1]["step"] if earlier else 0
        lines: list[dict[str, Any]] = json.loads((self.folder / "training.json").read_text(encoding="utf-8"))["lines"]
        return [*earlier, *(line | {"step": line["step"] + done} for line in lines)]
