"""A model's folder, judged before any weight is read: that it is whole, and that nothing in it can run or point elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.errors import ModelError
from lmfuse.folder_files import link_root, read_object
from lmfuse.hub import HubWeights, fetch_snapshot
from lmfuse.safetensors_header import SafetensorsHeader, read_header

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelSpec:
    """Which model, and how to hold it.

    Attributes:
        model: a folder, or a name on the Hugging Face hub.
        revision: a branch, tag or commit on the hub.
        dtype: the type of the weights in memory.
        document_start: what stands before a plain text: ``auto``, or a token as the tokenizer spells it.
        chat_template: how it reads conversations: ``none`` (it does not), ``own``, ``openchat`` (FuseChat's one for all) or the path of a
            jinja file. In a recipe ``text.chat_template`` is for all models that do not name theirs.
        name: how reports call it; by default the last part of ``model``.
    """

    model: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    document_start: str = "auto"
    chat_template: str = "none"
    name: str = ""

    @property
    def label(self) -> str:
        """Return the name in reports.

        >>> ModelSpec("HuggingFaceTB/SmolLM2-135M").label
        'SmolLM2-135M'
        """
        return self.name or Path(self.model).name


def told_apart(models: Sequence[str]) -> tuple[str, ...]:
    """Return what models are called beside each other: the last part of their names, or all of it where that is not enough.

    >>> told_apart(["org/a", "x/b", "y/b"])
    ('a', 'x/b', 'y/b')
    """
    short = [ModelSpec(model).label for model in models]
    return tuple(label if short.count(label) == 1 else model for label, model in zip(short, models, strict=True))


@plain_dataclass(frozen=True)
class ModelFolder:
    """A folder that passed every check: its parsed ``config.json`` and the headers of its weight files.

    Of a hub model that was only looked at, ``hashes`` has the SHA-256 of its weight files, and ``bytes_to_fetch`` says how much of
    them is not here yet.
    """

    path: Path
    config: Mapping[str, Any]
    headers: Mapping[Path, SafetensorsHeader]
    hashes: Mapping[Path, str] = field(default_factory=dict)
    bytes_to_fetch: int = 0


@runtime_checkable
class WeightFiles(Protocol):
    """Where a model's weight files are: in its folder, or still on the hub."""

    def holds(self, name: str) -> bool:
        """Return whether there is such a file."""
        ...

    def names(self) -> list[str]:
        """Return the names of the files that lie beside ``config.json``, sorted."""
        ...

    def header(self, name: str) -> SafetensorsHeader:
        """Return what a file holds."""
        ...


@plain_dataclass(frozen=True)
class LocalWeights:
    """Weight files in a folder."""

    folder: Path

    def holds(self, name: str) -> bool:
        """Return whether there is such a file."""
        return _is_file(self.folder / name)

    def names(self) -> list[str]:
        """Return the names of the files in the folder, sorted."""
        return sorted(path.name for path in self.folder.iterdir())

    def header(self, name: str) -> SafetensorsHeader:
        """Return what a file holds, from its first bytes."""
        return read_header(self.folder / name)


def local_folder(spec: ModelSpec, *, weights: bool = True) -> Path:
    """Return the folder of a model, fetched from the hub if it is none here: weights (if wanted), JSON and tokenizer files, never code.

    Raises:
        ModelError: there is no such folder or hub name.
        ResourceError: the disk is full.
    """
    folder = Path(spec.model).expanduser()
    if folder.is_dir():
        if spec.revision:
            raise ModelError(
                f"{folder} is a folder, but revision {spec.revision!r} was asked for", "drop the revision; only hub names have one"
            )
        return folder
    if folder.exists() or not HUB_NAME.fullmatch(spec.model) or spec.model.startswith("."):
        raise ModelError(f"{spec.model!r} is neither a folder nor a hub name", "give a model's folder, or owner/name as on the hub")
    return fetch_snapshot(spec.model, spec.revision, weights=weights)


def look_at(spec: ModelSpec) -> ModelFolder:
    """Check a model as far as possible without its weights: of a hub model that is not here yet, only small files are fetched.

    Raises:
        ModelError: see ``local_folder`` and ``check_folder``.
        ResourceError: the disk is full.
    """
    folder = local_folder(spec, weights=False)
    if Path(spec.model).expanduser().is_dir() or _whole(folder):
        return check_folder(folder)
    remote = HubWeights(spec.model, folder.name, folder)
    checked = check_folder(folder, remote)
    hashes = {path: remote.sha256(path.relative_to(folder).as_posix()) for path in checked.headers}
    return replace(checked, hashes=hashes, bytes_to_fetch=remote.bytes_to_fetch)


def pinned(spec: ModelSpec) -> ModelSpec:
    """Return the spec with the commit that a hub model stands at now, so that a run that takes days reads one model throughout.

    Raises:
        ModelError, ResourceError: see ``local_folder``.
    """
    if Path(spec.model).expanduser().is_dir():
        return spec
    return replace(spec, revision=local_folder(spec, weights=False).name)


def _whole(folder: Path) -> bool:
    """Return whether all weights that a folder should hold are in it."""
    if (folder / SINGLE).exists() or not (folder / INDEX).exists():
        return (folder / SINGLE).exists()
    shards = _read_json(folder / INDEX).get("weight_map")
    return isinstance(shards, dict) and all(_is_file(folder / str(name)) for name in shards.values())


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def check_folder(folder: Path, weights: WeightFiles | None = None) -> ModelFolder:
    """Check everything about a model's folder that can be known without reading weights.

    Args:
        folder: holds at least ``config.json``.
        weights: where the weight files are; by default in the folder.

    Raises:
        ModelError: the configuration is missing, broken, of an unknown or unfit architecture or wants remote code; the weights
            are missing, pickled, quantized, truncated, incomplete, or named outside the folder.
    """
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder} is an adapter, not a whole model", "merge it into its base model and save that")
    config = _read_json(folder / "config.json")
    _check_architecture(folder, config)
    weights = weights or LocalWeights(folder)
    headers = {folder / name: weights.header(name) for name in _weight_files(folder, weights)}
    seen: dict[str, Path] = {}
    for path, header in headers.items():
        for name in header.tensors:
            if name in seen:
                raise ModelError(f"{folder}: tensor {name} stands in {seen[name].name} and in {path.name}", "save the model again")
            seen[name] = path
    return ModelFolder(folder, config, headers)


def _read_json(path: Path) -> dict[str, Any]:
    value = read_object(path.parent, path.name, ModelError)
    if value is None:
        raise ModelError(f"{path} is missing", "a model's folder holds config.json, model.safetensors and tokenizer.json")
    return value


def _check_architecture(folder: Path, config: Mapping[str, Any]) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and config.get("auto_map"):
        raise ModelError(
            f"{folder} wants remote code (auto_map, model_type {kind!r})", "lmfuse never runs it; use a model that transformers knows"
        )
    for key, value in _strings(config):
        if "_implementation" in key and "/" in value:
            raise ModelError(f"{folder} wants remote code ({key} = {value!r})", "remove the key from config.json")
    if not isinstance(kind, str):
        raise ModelError(f"{folder / 'config.json'} names no model_type", "is this the folder of a transformers model?")
    if kind not in CONFIG_MAPPING_NAMES:
        close = get_close_matches(kind, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, n=1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        raise ModelError(f"{folder}: unknown model_type {kind!r}{guess}", "a newer transformers may know it")
    if config.get("is_encoder_decoder") or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        what = "is an encoder-decoder" if config.get("is_encoder_decoder") else "has no causal language model"
        raise ModelError(f"{folder}: model_type {kind!r} {what}", "use a decoder-only language model")
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method", "unknown")
        raise ModelError(f"{folder} is quantized ({method})", "use the unquantized model, or dequantize and save it")


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of a nested configuration with the path of keys that leads to it."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _strings(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)


def _weight_files(folder: Path, weights: WeightFiles) -> list[str]:
    if weights.holds(SINGLE):  # the order in which transformers looks
        return [SINGLE]
    if (folder / INDEX).exists():
        return _shards(folder, weights)
    pickled = [name for name in weights.names() if Path(name).suffix in PICKLES]
    if pickled:
        raise ModelError(f"{folder} holds only pickled weights ({pickled[0]})", "pickles can run code; save the model as safetensors")
    raise ModelError(f"{folder} holds no {SINGLE} and no {INDEX}", "save the model with save_pretrained")


def _shards(folder: Path, weights: WeightFiles) -> list[str]:
    """Return the files that an index names, once it is certain that all of them lie in its folder and hold what it promises."""
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError(f"{folder / INDEX} has no weight_map", "save the model again")
    root = link_root(folder)
    names = sorted(set(weight_map.values()))
    for name in names:
        path = folder / name
        if "\\" in name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts or not path.resolve().is_relative_to(root):
            raise ModelError(f"{folder / INDEX} points outside its folder: {name!r}", "do not use this model; tell whoever published it")
        if path.suffix != ".safetensors":
            raise ModelError(f"{folder / INDEX} names {name!r}, which is no .safetensors file", "save the model as safetensors")
        if not weights.holds(name):
            raise ModelError(f"{path} is missing, but the index names it", "fetch the model again")
    held = {name: weights.header(name).tensors for name in names}
    for tensor, name in weight_map.items():
        if tensor not in held[name]:
            raise ModelError(f"{folder / name} does not hold {tensor}, which the index promises", "fetch the model again")
    return names
