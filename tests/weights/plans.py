"""Small models to merge, and plans of merges, without recipes."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from lmfuse.merge.dare import Dare
from lmfuse.merge.family import Merge
from lmfuse.merge.linear import Linear
from lmfuse.merge.sce import Sce
from lmfuse.merge.slerp import Slerp
from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.merge.ties import Ties
from lmfuse.merge.varm import Varm
from lmfuse.model_files import ModelSpec
from lmfuse.weights.check import check_models
from lmfuse.weights.files import result_config
from lmfuse.weights.plan import MergePlan, OpenedModel, OutputTensor, TensorRef, open_models
from tests.fakes import byte_bpe, save_model
from tests.model_folders import edit_weights

SEVERAL_PIECES = 320  # a hidden size at which matrices have more elements than a piece
METHODS = [  # of every kind: without looks, with one or several, over a tensor or more; and the index of the base
    (Linear(weights=(1.0, 3.0)), None),
    (Slerp(t=0.3), None),
    (TaskArithmetic(weights=0.7), 0),
    (Ties(density=0.4), 0),
    (Dare(density=0.5, seed=1), 0),
    (Sce(tau=0.2), 0),
    (Varm(), 0),
    (Varm(granularity="layer"), 0),
    (Varm(granularity="model"), 0),
]


def family(folder: Path, count: int = 3, *, hidden: int = 32, size: float = 0.05) -> list[Path]:
    """Write a base and fine-tunes of it: all weights changed by ``size`` times their own."""
    base = save_model(folder / "base", byte_bpe(), hidden=hidden)
    return [base, *(fine_tune(base, folder / f"tune-{seed}", seed, size) for seed in range(1, count))]


def fine_tune(base: Path, folder: Path, seed: int, size: float = 0.05) -> Path:
    """Write a copy of a model with other weights."""
    shutil.copytree(base, folder)
    random = torch.Generator().manual_seed(seed)

    def change(tensors):
        for tensor in tensors.values():
            tensor += size * tensor.abs().mean() * torch.randn(tensor.shape, generator=random)

    edit_weights(folder, change)
    return folder


def opened(folders: list[Path]) -> tuple[OpenedModel, ...]:
    return open_models([ModelSpec(str(folder)) for folder in folders], folders[0].parent / "cache")


def plan_of(folders: list[Path], method: Merge, *, base: int | None = None, dtype: str = "F32", **more) -> MergePlan:
    """Return the plan of one method for all tensors; every model but the base is a source."""
    models = opened(folders)
    sources = [index for index in range(len(models)) if index != base]
    tensors = []
    for name in check_models(models).names:
        entry = models[0].entry(name)
        kept = dtype if entry.dtype in ("F32", "F16", "BF16") else entry.dtype
        refs = tuple(TensorRef(index, name) for index in sources)
        tensors.append(OutputTensor(name, entry.shape, kept, method, refs, None if base is None else TensorRef(base, name)))
    config = more.pop("config", None) or result_config(models[0], dtype)
    return MergePlan(models, tuple(tensors), config, base=base, recipe_text=f"method: {method!r}", **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a model, of however many shards."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
