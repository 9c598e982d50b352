"""The numbers of a training run, and what follows from them: how many steps, which learning rate at which step."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Share = Annotated[float, Field(ge=0, le=1)]
Moment = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Interval = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Training:
    """How a model is trained. The defaults are FuseLLM's (arXiv:2401.10491, section 4.1 and its released scripts), except where said.

    Attributes:
        learning_rate: of AdamW, at its highest.
        epochs: passes over the documents; a fraction is fine.
        batch_documents: documents of one forward pass (a micro-batch), padded to the longest of them.
        accumulation: micro-batches of one step, over all processes: a step sees ``batch_documents * accumulation`` documents (128, as
            published) however many devices share them. It must be a multiple of the number of processes.
        length_block: steps whose documents are sorted by length together, to limit padding; their order is shuffled again. 1 sorts inside
            a step only, which changes nothing but speed.
        warmup_ratio: share of all steps in which the learning rate rises.
        schedule: of the learning rate after that.
        min_ratio: the learning rate that the schedule falls to, as a share of the highest.
        weight_decay: per unit of learning rate, on every matrix (embeddings included), never on norms and biases, as published.
        beta1, beta2, epsilon: of AdamW.
        clip: largest norm of the gradient; 0 clips nothing.
        gradient_floor: a step with a shorter gradient is not taken, and counted. AdamW divides a gradient by its own size, so rounding noise,
            which is all that is left where the teacher says what the student says, would move every weight by a whole learning rate.
        precision: of the forward and backward pass (``bfloat16`` by autocast). Weights and optimizer state are always float32.
        gradient_checkpointing: compute activations twice and keep few of them. Published: on. It changes memory and time only.
        seed: of the data order and of dropout, where the model has any.
        checkpoint_steps: steps between checkpoints; 0 keeps one at the end only.
        evaluate_steps: steps between evaluations on held-out text; 0: none while training.
        log_steps: steps averaged in one line of the training log.
        chunk: positions whose logits exist at one time.
        tracker: where metrics are also sent, through accelerate; each but ``none`` is a package of its own.

    >>> Training(batch_documents=2, accumulation=4, epochs=3).num_steps(num_documents=10)
    4
    >>> quick = Training(learning_rate=1.0, warmup_ratio=0.5, schedule="linear")
    >>> [round(quick.learning_rate_at(step, num_steps=4), 2) for step in range(4)]
    [0.33, 0.67, 1.0, 0.5]
    """

    learning_rate: Positive = 1e-5
    epochs: Positive = 1.0
    batch_documents: Count = 16
    accumulation: Count = 8
    length_block: Count = 1
    warmup_ratio: Share = 0.008
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    min_ratio: Share = 0.0
    weight_decay: NotNegative = 0.1
    beta1: Moment = 0.9
    beta2: Moment = 0.95
    epsilon: Positive = 1e-8
    clip: NotNegative = 1.0
    gradient_floor: NotNegative = 1e-5
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_checkpointing: bool = False
    seed: Interval = 42
    checkpoint_steps: Interval = 100
    evaluate_steps: Interval = 0
    log_steps: Count = 10
    chunk: Count = 256
    tracker: Literal["none", "tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "aim", "clearml", "swanlab"] = "none"

    @property
    def step_documents(self) -> int:
        """Return the documents of one step."""
        return self.batch_documents * self.accumulation

    def read_documents(self, num_documents: int) -> int:
        """Return how many documents the whole run reads, repetitions counted."""
        return max(1, round(self.epochs * num_documents))

    def num_steps(self, num_documents: int) -> int:
        """Return the steps of the whole run; the last one may be smaller."""
        return -(-self.read_documents(num_documents) // self.step_documents)

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """Return the learning rate of a step, counted from 0. No step has learning rate 0: one that did nothing would be a waste."""
        warmup = min(math.ceil(self.warmup_ratio * num_steps), num_steps - 1)
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        done = (step - warmup) / (num_steps - warmup)
        share = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[self.schedule]
        return self.learning_rate * (self.min_ratio + (1 - self.min_ratio) * share)
