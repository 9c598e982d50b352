"""What stands around the loop: device and precision, going on from a checkpoint, and what follows a step: log, evaluation, checkpoint."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers

from lmfuse.artefacts import content_key, write_atomic
from lmfuse.errors import InputError, ModelError, ResourceError
from lmfuse.memory import is_out_of_memory
from lmfuse.models import LanguageModel
from lmfuse.train.checkpoint import load_checkpoint, save_checkpoint
from lmfuse.train.log import EvaluationLine, Recorder, StepSums, TrainingLog
from lmfuse.train.settings import Training

Evaluate = Callable[[LanguageModel], dict[str, float]]
Progress = Callable[[int], None]
Event = Callable[[dict[str, Any]], None]


@dataclass
class Run:
    """One training run as its loop needs it.

    Attributes:
        identity: a hash of what the run is made of; a checkpoint of another one is refused.
        clock: when the line of the log that is open was begun, and the tokens read by then.
    """

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    settings: Training
    folder: Path
    num_steps: int
    identity: str
    evaluate: Evaluate | None
    progress: Progress | None
    on_event: Event | None
    clock: tuple[float, int] = field(default_factory=lambda: (time.perf_counter(), 0))

    def tell(self, kind: str, **values: Any) -> None:
        """Report an event, from one process only."""
        if self.on_event and self.accelerator.is_main_process:
            self.on_event({"kind": kind, **values})

    def resume(self) -> Recorder:
        """Return the run so far: from the newest checkpoint, whose weights and moments are put in place, or from nothing."""
        state = load_checkpoint(self.folder, self.model.module, self.optimizer, run=self.identity)
        if state is None:
            return Recorder()
        recorder = Recorder.from_json(state)
        self.clock = (time.perf_counter(), recorder.tokens)
        self.tell("resume", step=recorder.step, num_steps=self.num_steps)
        if self.progress and self.accelerator.is_main_process:
            self.progress(recorder.tokens)
        return recorder

    def after_step(self, recorder: Recorder, sums: StepSums, learning_rate: float) -> None:
        """Log, evaluate and save, where due. The last step does all three."""
        if self.progress and self.accelerator.is_main_process:
            self.progress(sums.tokens)
        last = recorder.step == self.num_steps
        if last or _due(recorder.step, self.settings.log_steps):
            self._log(recorder, learning_rate)
        evaluated = self.evaluate is not None and (last or _due(recorder.step, self.settings.evaluate_steps))
        if evaluated:
            self._evaluate(recorder)
        if last or evaluated or _due(recorder.step, self.settings.checkpoint_steps):
            self._save(recorder)

    def finish(self, recorder: Recorder) -> TrainingLog:
        """Write ``training.json`` and leave the model in evaluation mode."""
        log = recorder.finish()
        if self.settings.gradient_checkpointing:
            _switch(self.model.module, "disable")()
        self.model.module.eval()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self.accelerator.is_main_process:
            write_atomic(self.folder / "training.json", log.to_json().encode())
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        return log

    def _log(self, recorder: Recorder, learning_rate: float) -> None:
        line = asdict(recorder.close_line(learning_rate))
        begun, tokens = self.clock
        self.clock = (time.perf_counter(), recorder.tokens)
        self.tell("train", **line, num_steps=self.num_steps, tokens_per_s=(recorder.tokens - tokens) / (self.clock[0] - begun))
        self.accelerator.log({name: value for name, value in line.items() if value is not None}, step=recorder.step)

    def _evaluate(self, recorder: Recorder) -> None:
        if self.evaluate is not None and self.accelerator.is_main_process:
            self.model.module.eval()
            with torch.no_grad(), self.accelerator.autocast():
                values = {name: value if math.isfinite(value) else None for name, value in self.evaluate(self.model).items()}
            self.model.module.train()
            recorder.evaluations.append(EvaluationLine(recorder.step, values))
            self.tell("evaluate", step=recorder.step, values=values)
            self.accelerator.log({f"evaluate/{name}": value for name, value in values.items() if value is not None}, step=recorder.step)

    def _save(self, recorder: Recorder) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder, recorder.step, self.model.module, self.optimizer, asdict(recorder), run=self.identity)
            self.tell("checkpoint", step=recorder.step)


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


# ----------------------------------------------------------------------------------------------------------------------- set-up


def start_accelerator(model: LanguageModel, settings: Training, tracker_folder: Path) -> Accelerator:
    """Return the door to devices and precision. One process stays on the model's device; of several, each has its own.

    Raises:
        InputError: the tracker is not installed.
    """
    if settings.tracker != "none" and settings.tracker not in {tracker.value for tracker in get_available_trackers()}:
        raise InputError(f"tracker: {settings.tracker} is not installed", hint=f"pip install {settings.tracker}, or tracker: none")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    AcceleratorState._reset_state(reset_partial_state=not several)  # it is global; a run before in this process had its own precision
    accelerator = Accelerator(
        cpu=not several and model.device.type == "cpu",
        mixed_precision="bf16" if settings.precision == "bfloat16" else "no",
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_dir=tracker_folder,
    )
    if settings.tracker != "none":
        accelerator.init_trackers("lmfuse")
    return accelerator


def prepare_model(model: LanguageModel, settings: Training) -> None:
    """Put a model into training mode with float32 weights.

    Raises:
        ModelError: it cannot recompute activations, and should.
    """
    model.module.float().train()
    if settings.gradient_checkpointing:
        if not getattr(model.module, "supports_gradient_checkpointing", False):
            raise ModelError(f"{type(model.module).__name__} has no gradient checkpointing", hint="set gradient_checkpointing to false")
        _switch(model.module, "enable")({"use_reentrant": False})


def _switch(module: Any, what: str) -> Callable[..., None]:
    """Return the method that switches recomputation on or off, by its new name (transformers 5.20) or its old one."""
    found: Callable[..., None] = getattr(module, f"activation_checkpointing_{what}", None) or getattr(
        module, f"gradient_checkpointing_{what}"
    )
    return found


def checked_steps(num_samples: int, settings: Training, num_processes: int) -> int:
    """Return the number of steps of a run.

    Raises:
        InputError: the processes cannot share a step evenly.
    """
    if settings.accumulation % num_processes:
        raise InputError(
            f"accumulation {settings.accumulation} is no multiple of the {num_processes} processes",
            hint="a step's micro-batches are dealt out to the processes: choose a multiple",
        )
    return settings.num_steps(num_samples)


def run_identity(model: LanguageModel, settings: Training, *parts: Any) -> str:
    """Return a hash of a run: model, settings, and whatever else decides over its result."""
    return content_key([model.key, model.tokenizer.key, settings, list(parts)])


@contextmanager
def memory_is_a_resource() -> Iterator[None]:
    """Turn out-of-memory, on any device, into a ``ResourceError`` that says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and not is_out_of_memory(error):
            raise
        what = next(iter(str(error).splitlines()), "no details")
        raise ResourceError(
            f"out of memory while training: {what}",
            hint="lower batch_documents and raise accumulation by the same factor: the result stays the same",
        ) from error
