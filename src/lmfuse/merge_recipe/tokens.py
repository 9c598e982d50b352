"""What the models of a merge say of their tokens beside the vocabulary: special ids, chat templates, or nothing at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmfuse.bytes_files import SLOW_FILES
from lmfuse.bytes_turns import chat_template
from lmfuse.errors import TokenizerError
from lmfuse.folder_files import read_object
from lmfuse.weights.files import GENERATION
from lmfuse.weights.plan import OpenedModel, UnitedVocabulary


def with_token_ids(config: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the special ids (``eos_token_id`` and its like) of another."""
    found = {key: value for key, value in config.items() if not key.endswith("_token_id")}
    found |= {key: value for key, value in theirs.items() if key.endswith("_token_id")}
    if isinstance(found.get("text_config"), dict):
        inner = theirs.get("text_config")
        found["text_config"] = with_token_ids(found["text_config"], inner if isinstance(inner, dict) else theirs)
    return found


def template_of(model: OpenedModel) -> str:
    """Return a model's chat template, ``""`` if it has none."""
    config = read_object(model.folder.path, "tokenizer_config.json", TokenizerError) or {}
    return chat_template(model.folder.path, config).strip()


def token_warnings(models: Sequence[OpenedModel], united: UnitedVocabulary) -> list[str]:
    """Return a sentence for each thing in which models differ and of which the result has only one."""
    ground = models[united.ground]
    return [*_without_tokenizer(models, ground), *_other_ends(models, united), *_other_templates(models, ground)]


def _without_tokenizer(models: Sequence[OpenedModel], ground: OpenedModel) -> Iterator[str]:
    for model in models:
        if not any((model.folder.path / name).is_file() for name in ("tokenizer.json", *SLOW_FILES)):
            yield f"{model.label} has no tokenizer files: that its tokens are those of {ground.label} was judged by the number of rows alone"


def _other_ends(models: Sequence[OpenedModel], united: UnitedVocabulary) -> Iterator[str]:
    """Yield which models end their texts with other tokens, ids as they are called in the result."""
    mine = _ends(models[united.ground])
    for model, row_map in zip(models, united.row_maps, strict=True):
        theirs = _ends(model)
        moved = {row: place for place, row in enumerate(row_map) if row >= 0} if row_map else {}
        if theirs and {moved.get(each, each) for each in theirs} != set(mine):
            label = models[united.ground].label
            yield f"eos_token_id is {_spoken(theirs)} in {model.label}, {_spoken(mine)} in {label}; the result has the latter"


def _ends(model: OpenedModel) -> tuple[int, ...]:
    generation = read_object(model.folder.path, GENERATION, TokenizerError) or {}
    inner = model.folder.config.get("text_config")
    for said in (generation, model.folder.config, inner if isinstance(inner, dict) else {}):
        ids = said.get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


def _spoken(ids: Sequence[int]) -> str:
    return " or ".join(map(str, ids)) or "not given"


def _other_templates(models: Sequence[OpenedModel], ground: OpenedModel) -> Iterator[str]:
    mine = template_of(ground)
    others = [model.label for model in models if template_of(model) not in ("", mine)]
    if mine and others:
        yield f"the chat template of {', '.join(others)} is another than that of {ground.label}, which the result has"
