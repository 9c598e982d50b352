"""Model folders for tests: changed, cut, sharded and spoiled in named ways."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from lmfuse.models import ModelSpec


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def edit_weights(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder: Path, parts: int = 2) -> dict[str, str]:
    """Cut the weights into shards with an index; return its weight_map."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {name: f"model-{i % parts + 1:05d}-of-{parts:05d}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def float32(folder: Path) -> ModelSpec:
    return ModelSpec(str(folder), dtype="float32")


def cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def lie_about_shape(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"shape":[32]', b'"shape":[99]', 1))


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def duplicate(folder: Path) -> None:
    first, second = sorted(set(shard(folder).values()))
    shutil.copy(folder / first, folder / second)
    names = sorted(load_file(folder / first))
    write_index(folder, dict.fromkeys(names, first) | {names[0]: second})


def one_shard_lacks(folder: Path) -> None:
    write_index(folder, shard(folder) | {"model.layers.9.weight": "model-00001-of-00002.safetensors"})


def shard_missing(folder: Path) -> None:
    (folder / sorted(set(shard(folder).values()))[0]).unlink()


def poison(value: float):
    return lambda folder: edit_weights(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].view(-1)[7].fill_(value))
