"""mergekit itself, run in this process as an oracle, and small models of one architecture to merge."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.fakes import byte_bpe, save_model
from tests.model_folders import edit_config, edit_weights


def model_family(folder: Path, names: Sequence[str], *, scale: float = 0.05, layers: int = 4, tied: bool = True) -> Path:
    """Write a base model and others that differ from it by noise of the given standard deviation, ``base`` and ``names``."""
    base = save_model(folder / "base", byte_bpe(), layers=layers)
    if not tied:
        untie(base)
    for seed, name in enumerate(names):
        torch.manual_seed(1000 + seed)
        shutil.copytree(base, folder / name)
        edit_weights(folder / name, lambda tensors: [each.add_(torch.randn(each.shape) * scale) for each in tensors.values()])
    return folder


def untie(folder: Path) -> None:
    """Give a model an output of its own."""
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, tie_word_embeddings=False)


def mergekit(text: str, out: Path) -> dict[str, Tensor]:
    """Return the tensors that mergekit makes of a file; skip where it is not installed."""
    pytest.importorskip("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    run_merge(config, str(out), MergeOptions(quiet=True, write_model_card=False, random_seed=0))
    return tensors_of(out)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a model's folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
