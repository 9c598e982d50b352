"""What a training run says about itself: sums while it goes, lines when they are due, and one file at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lmfuse.train.settings import Training

TRAINING_LOG_SCHEMA = 1


@dataclass(frozen=True)
class LogLine:
    """Means over the steps since the line before.

    Attributes:
        step: steps done.
        tokens: tokens read since the start, padding excluded.
        loss: what was minimised, nats per predicted token.
        clm_nats: cross-entropy of the text, nats per predicted token.
        fusion_nats: the fusion loss, nats per taught token; None where nobody taught.
        taught: share of the predicted tokens that had a teacher.
        learning_rate: of the last step.
        gradient_norm: before clipping.
    """

    step: int
    tokens: int
    loss: float
    clm_nats: float
    fusion_nats: float | None
    taught: float
    learning_rate: float
    gradient_norm: float


@dataclass(frozen=True)
class EvaluationLine:
    """What an evaluation between steps returned; None where a value was not finite."""

    step: int
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class StepSums:
    """One step's sums over its predicted tokens: nats of the loss, the text, the fusion loss; tokens read, predicted and taught."""

    loss: float
    clm_nats: float
    fusion_nats: float
    tokens: int
    positions: int
    taught: int


@dataclass(frozen=True)
class TrainingLog:
    """A finished run. Everything in it is the same for the same inputs on a CPU, interrupted or not; speed is no part of it.

    Attributes:
        lines: the training curve.
        evaluations: in order.
        steps, tokens, positions, taught: totals; ``positions`` are predicted tokens, ``taught`` those with a teacher.
        clipped_steps: how often the gradient was longer than ``clip``.
        skipped_steps: how often it was shorter than ``gradient_floor``, so that no weight moved.
    """

    lines: tuple[LogLine, ...]
    evaluations: tuple[EvaluationLine, ...]
    steps: int
    tokens: int
    positions: int
    taught: int
    clipped_steps: int
    skipped_steps: int

    def to_json(self) -> str:
        """Return the text of ``training.json``."""
        return json.dumps({"schema": TRAINING_LOG_SCHEMA, **asdict(self)}, indent=1, allow_nan=False) + "\n"


@dataclass
class Recorder:
    """A run so far, as a checkpoint keeps it: totals, lines, and the sums of the line that is not finished."""

    step: int = 0
    tokens: int = 0
    positions: int = 0
    taught: int = 0
    clipped_steps: int = 0
    skipped_steps: int = 0
    lines: list[LogLine] = field(default_factory=list)
    evaluations: list[EvaluationLine] = field(default_factory=list)
    open_steps: int = 0
    open_positions: int = 0
    open_taught: int = 0
    open_loss: float = 0.0
    open_clm_nats: float = 0.0
    open_fusion_nats: float = 0.0
    open_gradient_norm: float = 0.0

    def add(self, sums: StepSums, gradient_norm: float, settings: Training) -> None:
        """Count one step."""
        self.step += 1
        self.tokens += sums.tokens
        self.positions += sums.positions
        self.taught += sums.taught
        self.clipped_steps += 0 < settings.clip < gradient_norm
        self.skipped_steps += gradient_norm < settings.gradient_floor
        self.open_steps += 1
        self.open_positions += sums.positions
        self.open_taught += sums.taught
        self.open_loss += sums.loss
        self.open_clm_nats += sums.clm_nats
        self.open_fusion_nats += sums.fusion_nats
        self.open_gradient_norm += gradient_norm

    def close_line(self, learning_rate: float) -> LogLine:
        """Finish the line that is open and begin the next."""
        positions, taught = max(self.open_positions, 1), self.open_taught
        line = LogLine(
            step=self.step,
            tokens=self.tokens,
            loss=self.open_loss / positions,
            clm_nats=self.open_clm_nats / positions,
            fusion_nats=self.open_fusion_nats / taught if taught else None,
            taught=taught / positions,
            learning_rate=learning_rate,
            gradient_norm=self.open_gradient_norm / self.open_steps,
        )
        self.lines.append(line)
        self.open_steps = self.open_positions = self.open_taught = 0
        self.open_loss = self.open_clm_nats = self.open_fusion_nats = self.open_gradient_norm = 0.0
        return line

    def finish(self) -> TrainingLog:
        """Return the log of the whole run."""
        totals = (self.step, self.tokens, self.positions, self.taught, self.clipped_steps, self.skipped_steps)
        return TrainingLog(tuple(self.lines), tuple(self.evaluations), *totals)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recorder:
        """Read back what ``asdict`` of a recorder gave; floats survive JSON exactly."""
        known = {f.name: value[f.name] for f in fields(cls)}
        known["lines"] = [LogLine(**line) for line in known["lines"]]
        known["evaluations"] = [EvaluationLine(**line) for line in known["evaluations"]]
        return cls(**known)
