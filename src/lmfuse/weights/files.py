"""The small files of a merged model: configuration, generation defaults, tokenizer, chat template. Known names only, and no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmfuse.errors import ModelError
from lmfuse.folder_files import AGAIN, MOST_BYTES, link_root, parse_object
from lmfuse.safetensors_header import SPELLED
from lmfuse.weights.plan import MergePlan, OpenedModel, UnitedVocabulary
from lmfuse.weights.vocabulary import united_tokenizer

GENERATION = "generation_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
OLDER = (  # other forms of the same tokenizer; they know nothing of tokens that a merge adds
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tekken.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
COPIED = frozenset((GENERATION, *TEMPLATES, *TOKENIZER, *OLDER))
SPOKEN = {spelled: name for name, spelled in SPELLED.items()}
NOT_OURS = ("_name_or_path", "auto_map", "quantization_config", "transformers_version")


def result_config(model: OpenedModel, dtype: str, *, num_rows: int | None = None, num_layers: int | None = None) -> dict[str, Any]:
    """Return ``config.json`` of a result like this model.

    Args:
        model: whose configuration it is.
        dtype: of the weights, as safetensors spells it.
        num_rows: of the embedding, where that is not the model's.
        num_layers: where that is not the model's.
    """
    config: dict[str, Any] = json.loads(json.dumps(dict(model.folder.config)))
    for key in NOT_OURS:
        config.pop(key, None)
    inner = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    for part in (config, inner):
        part["dtype"] = SPOKEN[dtype]
        if "torch_dtype" in part:
            part["torch_dtype"] = SPOKEN[dtype]
    if num_rows is not None:
        inner["vocab_size"] = num_rows
    if num_layers is not None:
        inner[next((key for key in ("n_layer", "n_layers", "num_layers") if key in inner), "num_hidden_layers")] = num_layers
    return config


def result_files(plan: MergePlan) -> dict[str, bytes]:
    """Return name and content of every file beside the weights, except the card.

    Raises:
        ModelError: a file is too large, no regular file, a link out of its folder, or broken.
        TokenizerError: the united vocabulary does not fit the ground's tokenizer.
    """
    united = plan.tokenizer_from if isinstance(plan.tokenizer_from, UnitedVocabulary) else None
    ground = plan.models[united.ground if united else plan.tokenizer_from]  # type: ignore[index]
    folder = ground.folder.path
    names = (GENERATION, *TEMPLATES, *TOKENIZER, *(() if united and united.added else OLDER))
    files = {name: data for name in names if (data := _read(folder, name)) is not None}
    if united and united.added:
        files |= united_tokenizer(ground, united)
    for name in (GENERATION, "tokenizer_config.json"):
        if name in files:
            files[name] = _without_code(files[name], folder / name)
    files["config.json"] = _json(plan.config)
    return files


def template_warnings(plan: MergePlan) -> list[str]:
    """Return a sentence if models have a chat template and the result has none."""
    united = plan.tokenizer_from
    ground = united.ground if isinstance(united, UnitedVocabulary) else united
    having = [model.label for model in plan.models if _has_template(model.folder.path)]
    if not having or plan.models[ground].label in having:
        return []
    return [
        f"the result has no chat template, as {plan.models[ground].label} has none; {having[0]} has one: take its tokenizer (tokenizer:)"
    ]


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in TEMPLATES):
        return True
    data = _read(folder, "tokenizer_config.json")
    return data is not None and bool(_object(data, folder / "tokenizer_config.json").get("chat_template"))


def _without_code(data: bytes, path: Path) -> bytes:
    """Return a configuration without its reference to code, if it has one; else as it is."""
    config = _object(data, path)
    if "auto_map" not in config:
        return data
    return _json({key: value for key, value in config.items() if key != "auto_map"})


def _object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        text = data.decode()
    except UnicodeDecodeError as reason:
        raise ModelError(f"{path} is broken: {reason}", AGAIN) from reason
    return parse_object(text, path, ModelError)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def _read(folder: Path, name: str) -> bytes | None:
    path = folder / name
    if not path.exists():
        return None
    real = path.resolve()
    if not real.is_relative_to(link_root(folder)):
        raise ModelError(f"{path} is a link outside its folder", "copy the file into the folder if you trust it")
    if not real.is_file():
        raise ModelError(f"{path} is no regular file", AGAIN)
    if real.stat().st_size > MOST_BYTES:
        raise ModelError(f"{path} has {real.stat().st_size:,} bytes, expected at most {MOST_BYTES:,}", AGAIN)
    return real.read_bytes()
