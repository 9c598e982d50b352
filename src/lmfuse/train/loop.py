"""The training loop: ground truth and a teacher's rows, one weighted loss, one optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from lmfuse.errors import ModelError
from lmfuse.losses.aids import Aids
from lmfuse.losses.family import Loss
from lmfuse.losses.objective import Objective, objective
from lmfuse.models import LanguageModel
from lmfuse.train.batches import Batch, prefetch
from lmfuse.train.log import StepSums, TrainingLog
from lmfuse.train.reader import DocumentWeight, Reader, Step, Strand, check_strands
from lmfuse.train.run import (
    Evaluate,
    Event,
    Progress,
    Run,
    checked_steps,
    memory_is_a_resource,
    prepare_model,
    run_identity,
    start_accelerator,
)
from lmfuse.train.settings import Training


def train(
    model: LanguageModel,
    strands: Sequence[Strand],
    loss: Loss,
    settings: Training,
    folder: Path,
    *,
    first: int = 0,
    aids: Aids | None = None,
    document_weight: DocumentWeight | None = None,
    evaluate: Evaluate | None = None,
    progress: Progress | None = None,
    on_event: Event | None = None,
    tracker_folder: Path | None = None,
) -> TrainingLog:
    """Train a model in place on documents and, where there is a teacher, on its rows; continue from the newest checkpoint in ``folder``.

    The loss of a step is the mean over all its predicted tokens of ``clm_weight * cross-entropy + (1 - clm_weight) * fusion loss``; a
    token without a teacher has plain cross-entropy, so every token weighs 1, however the step is split into micro-batches or over
    processes. With several strands it is the sum of their means, each times the strand's weight. Weights are float32 while training and
    afterwards (``save_model`` writes another type). The model is in training mode:
    dropout, where its configuration asks for it, is drawn from (seed, step, process). On a CPU with the same number of threads a
    run that was killed and started again ends in the same bytes.

    Under ``accelerate launch`` each process takes its share of a step's micro-batches (DDP). Tested: one process, and two processes on
    CPU (gloo). Several GPUs go the same way but are not tested; sharded weights (FSDP, DeepSpeed) are not supported.

    Args:
        strands: the texts, usually one strand of them, and who teaches: a teacher gives a row per token of a document's encoding, or None
            where it has nothing to say; a strand without a teacher is plain continued training.
        loss: how the teacher's rows are compared, and ``clm_weight``, which moves linearly to ``clm_weight_end`` where that is set.
        folder: holds ``checkpoints/`` and, at the end, ``training.json``.
        first: the samples that a training before this one has read: this one goes on in the same order.
        aids: what the loss wants to know of vocabularies (``loss.wants``).
        document_weight: ``clm_weight`` for one document, instead of the loss's own.
        evaluate: called every ``evaluate_steps`` steps and after the last, with the model in evaluation mode; its values are logged.
        progress: called with the number of tokens just read.
        on_event: called with JSON-like dicts: ``kind`` is ``resume``, ``train``, ``evaluate`` or ``checkpoint``.
        tracker_folder: where a tracker writes; by default ``tracker/`` in ``folder``. Its files hold times and differ from run to run.

    Raises:
        InputError: no documents, or strands that do not fit; ``folder`` holds another run; accumulation that the processes cannot share.
        TextError: a document has more tokens than the model can read.
        ModelError: the loss or its gradient is not finite.
        ResourceError: out of memory or disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = start_accelerator(model, settings, tracker_folder or folder / "tracker")
    num_steps = checked_steps(check_strands(strands), settings, accelerator.num_processes)
    prepare_model(model, settings)
    known = None if aids is None else aids.to(accelerator.device)
    forward, optimizer = accelerator.prepare(Forward(model, loss, settings.chunk, known), adamw(model.module, settings))
    before = [first] if first else []
    identity = run_identity(model, settings, loss, [_identity(strand, document_weight) for strand in strands], *before)
    run = Run(model, optimizer, accelerator, settings, folder, num_steps, identity, evaluate, progress, on_event)
    recorder = run.resume()
    reader = Reader(
        strands, model.tokenizer, settings, lambda step: loss.clm_weight_at(step / num_steps), document_weight, model.context, first,
        process=accelerator.process_index, num_processes=accelerator.num_processes,
    )  # fmt: skip
    with memory_is_a_resource(), closing(prefetch(reader.steps(start=recorder.step))) as steps:
        for step in steps:
            learning_rate = settings.learning_rate_at(step.index, num_steps)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            _seed_dropout(settings.seed, step.index, accelerator.process_index)
            sums = backward(step, forward, accelerator)
            norm = float(accelerator.clip_grad_norm_(model.module.parameters(), settings.clip or math.inf))
            _refuse_non_finite(step, sums, norm)
            if norm >= settings.gradient_floor:
                optimizer.step()
            optimizer.zero_grad()
            recorder.add(sums, norm, settings)
            run.after_step(recorder, sums, learning_rate)
    return run.finish(recorder)


def _identity(strand: Strand, document_weight: DocumentWeight | None) -> list[object]:
    """Return what of a strand decides over the result."""
    weights = [document_weight(document) for document in strand.documents if document is not None] if document_weight else []
    ids = [document.id if document is not None else None for document in strand.documents]
    return [ids, strand.teacher is not None, strand.weight, weights]


class Forward(nn.Module):
    """Token ids in, losses out: one module, so that autocast and data parallelism see the whole pass and no logits leave it."""

    def __init__(self, model: LanguageModel, loss: Loss, chunk: int, aids: Aids | None = None) -> None:
        super().__init__()
        self.module = model.module
        self.model, self.loss, self.chunk, self.aids = model, loss, chunk, aids

    def forward(self, batch: Batch) -> Objective:
        """Return the loss of a batch; 0 where nothing is predicted, with a gradient of zeros, because other processes wait for one."""
        if not len(batch.labels):
            nothing = torch.stack([parameter.sum() for parameter in self.module.parameters()]).sum() * 0
            return Objective(nothing, nothing.detach(), nothing.detach(), 0, 0)
        hidden = self.model.hidden(batch.input_ids)  # no mask: padding stands behind the text, where causal attention never looks
        hidden = hidden.flatten(0, 1).index_select(0, batch.positions)
        return objective(
            hidden, self.model.head, batch.labels, batch.teacher, batch.clm_weight, self.loss, aids=self.aids, chunk=self.chunk
        )


def adamw(module: nn.Module, settings: Training) -> torch.optim.AdamW:
    """Return the optimizer: weight decay on matrices, none on norms and biases (everything with one axis)."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.epsilon, fused=fused)


def backward(step: Step, forward: nn.Module, accelerator: Accelerator) -> StepSums:
    """Add up the gradient of a step's mean loss over its micro-batches and processes; every predicted token of a strand weighs the same."""
    positions = [int(count) for count in _summed(accelerator, [float(count) for count in step.num_positions])]
    sums = torch.zeros(3, device=accelerator.device)
    taught = 0
    for number, batch in enumerate(step.batches, 1):
        with nullcontext() if number == len(step.batches) else accelerator.no_sync(forward):
            found: Objective = forward(batch.to(accelerator.device))
            share = len(batch.labels) * accelerator.num_processes / max(positions[batch.strand], 1)  # DDP takes the mean over processes
            accelerator.backward(found.loss * (share * step.weights[batch.strand]))
        sums += torch.stack([found.loss.detach() * len(batch.labels), found.clm_nats, found.fusion_nats]).float()
        taught += found.num_taught
    tokens = sum(batch.num_tokens for batch in step.batches)
    loss, clm_nats, fusion_nats, *counts = _summed(accelerator, [*sums.tolist(), float(tokens), float(taught)])
    return StepSums(loss, clm_nats, fusion_nats, int(counts[0]), sum(positions), int(counts[1]))


def _summed(accelerator: Accelerator, values: list[float]) -> list[float]:
    """Return the sums of some numbers over all processes."""
    if accelerator.num_processes == 1:
        return values
    summed: list[float] = accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=accelerator.device)).tolist()
    return summed


def _refuse_non_finite(step: Step, sums: StepSums, norm: float) -> None:
    if math.isfinite(sums.loss) and math.isfinite(norm):
        return
    documents = [document for batch in step.batches for document in batch.documents]
    more = f" and {len(documents) - 8} more" if len(documents) > 8 else ""
    loss = sums.loss / max(sums.positions, 1)
    raise ModelError(
        f"step {step.index + 1}: loss {loss:g} nats, gradient norm {norm:g}; documents {', '.join(documents[:8])}{more}",
        hint="lower the learning rate; if this is the first step, look at these documents and the teacher's rows for them",
    )


def _seed_dropout(seed: int, step: int, process: int) -> None:
    """Seed torch's own generator so that a step draws the same whether or not the run was interrupted before it."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0]))
