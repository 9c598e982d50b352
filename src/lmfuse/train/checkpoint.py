"""What survives a kill: float32 weights, the optimizer's moments, and how far the run was. And the finished model.

A checkpoint is an artefact of its own, ``checkpoints/step-N``: it is either whole or not there. Only safetensors and JSON, no pickle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmfuse.artefacts import MANIFEST, publish, verify
from lmfuse.errors import InputError, VerificationError
from lmfuse.models import LanguageModel

FOLDER = "checkpoints"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save_checkpoint(
    folder: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], *, run: str
) -> Path:
    """Publish a checkpoint under ``folder`` and remove the ones before it.

    Args:
        folder: the run's folder; the checkpoint goes to ``checkpoints/step-N``.
        step: steps done.
        module: its parameters are kept as they are (float32 while training).
        optimizer: AdamW over these parameters.
        state: JSON types, given back by :func:`load_checkpoint`.
        run: what the run is made of (a hash); only the same run continues from here.

    Raises:
        ResourceError: no space left; the checkpoint before stays.
    """
    final = folder / FOLDER / f"step-{step:08d}"
    with publish(final, kind="checkpoint") as publication:
        weights = {name: parameter.detach().contiguous() for name, parameter in module.named_parameters()}
        save_file(weights, publication.path / WEIGHTS)
        save_file(_moments(module, optimizer), publication.path / OPTIMIZER)
        (publication.path / STATE).write_text(json.dumps({"run": run, "state": state}), encoding="utf-8")
    for other in final.parent.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)
    return final


def load_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, *, run: str) -> dict[str, Any] | None:
    """Put the newest checkpoint under ``folder`` into the module and the optimizer and return its state; None where there is none.

    Raises:
        VerificationError: its files are not what its manifest promises.
        InputError: it belongs to another run.
    """
    found = sorted(path.parent for path in (folder / FOLDER).glob(f"step-*/{MANIFEST}"))
    if not found:
        return None
    newest = found[-1]
    verify(newest)
    kept = json.loads((newest / STATE).read_text(encoding="utf-8"))
    if kept["run"] != run:
        raise InputError(
            f"{newest} belongs to another run: other settings, documents, loss or model",
            hint=f"use another folder, or remove {folder / FOLDER}",
        )
    weights = load_file(newest / WEIGHTS)
    parameters = dict(module.named_parameters())
    if weights.keys() != parameters.keys():
        raise VerificationError(f"{newest}: its weights have other names than the model's", hint=f"remove {folder / FOLDER}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    _restore_moments(module, optimizer, load_file(newest / OPTIMIZER))
    state: dict[str, Any] = kept["state"]
    return state


def _moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return AdamW's state by parameter name; a parameter that never had a gradient has none."""
    return {
        f"{moment}/{name}": optimizer.state[parameter][moment].contiguous()
        for name, parameter in module.named_parameters()
        if optimizer.state.get(parameter)
        for moment in MOMENTS
    }


def _restore_moments(module: nn.Module, optimizer: torch.optim.Optimizer, kept: Mapping[str, Tensor]) -> None:
    names = {parameter: name for name, parameter in module.named_parameters()}
    state = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state["state"] = {
        index: {moment: kept[f"{moment}/{names[parameter]}"] for moment in MOMENTS}
        for index, parameter in enumerate(parameters)
        if f"step/{names[parameter]}" in kept
    }
    optimizer.load_state_dict(state)


# ------------------------------------------------------------------------------------------------------------- the finished model

COPIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "LICENSE*",
)  # fmt: skip


def save_model(model: LanguageModel, folder: Path, *, dtype: str, source: Path) -> None:
    """Write a model as a Hugging Face folder that transformers loads; the model in memory stays as it is.

    Args:
        model: usually float32 after training.
        folder: where to; made if it does not exist.
        dtype: of the weights on disk, such as ``bfloat16``; ``config.json`` says the same.
        source: the folder that the model came from: its configuration, tokenizer files and licence are copied. The chat template is that
            which the model reads conversations with, if it does.
    """
    wanted: torch.dtype = getattr(torch, dtype)
    state = model.module.state_dict(keep_vars=True)
    cast = {id(tensor): tensor.detach().to(wanted) if tensor.is_floating_point() else tensor.detach() for tensor in state.values()}
    with _no_progress_bar():  # tied weights stay one tensor: save_pretrained knows them by that
        model.module.save_pretrained(folder, state_dict={name: cast[id(tensor)] for name, tensor in state.items()})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(_with_dtype(config, dtype), indent=2) + "\n", encoding="utf-8")
    for path in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", path)  # safetensors makes files that only their owner can read
    for pattern in COPIED:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    if model.tokenizer.chat is not None:  # the one that it was trained with, whosever it is
        (folder / "chat_template.jinja").write_text(model.tokenizer.chat.source, encoding="utf-8")


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return a configuration that says this type, nested parts included; before transformers 5 the key was ``torch_dtype``."""
    kept = {
        key: _with_dtype(value, dtype) if isinstance(value, dict) and key.endswith("config") else value
        for key, value in config.items()
        if key != "torch_dtype"
    }
    return kept | ({"dtype": dtype} if "dtype" in config or "torch_dtype" in config or "model_type" in config else {})


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
