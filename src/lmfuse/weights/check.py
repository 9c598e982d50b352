"""Whether some models can be merged, by their configurations and the headers of their files, before a byte is written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lmfuse.errors import InputError, ModelError
from lmfuse.merge.piece import PIECE_ELEMENTS
from lmfuse.model_facts import EMBEDDING, load_config
from lmfuse.safetensors_header import TensorEntry
from lmfuse.weights.plan import MergePlan, OpenedModel, OutputTensor, TensorRef
from lmfuse.weights.read import DTYPES, OpenFiles

HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.(weight|bias)$")
_COMPUTED = re.compile(r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|(attn|attention)\.masked_bias|attn\.causal_mask)$")
_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")  # of GPT-2, GPT-Neo, GPT-J and GPT-NeoX, of four dimensions
INTEGERS = ("BOOL", "U8", "I8", "I16", "I32", "I64")
UNSAID = re.compile(  # configuration that says nothing about what the weights mean
    r"(^_|_token_id$|drop|^id2label|^label2id|^task_|^transformers|^unsloth|initializer|^output_|^return_|^problem_|^auto_map)|"
    r"(^|\.)(architectures|dtype|torch_dtype|use_cache|vocab_size|tie_word_embeddings|name_or_path|pretraining_tp|chunk_size_feed_forward)$"
)
REACH = re.compile(r"position|window|rope|length|ctx")  # numbers that change what a model computes, not what its weights are
SAME = "merge models of one architecture"


@dataclass(frozen=True)
class Agreement:
    """What models that can be merged have in common.

    Attributes:
        names: of the tensors to merge, as they lie in the reference's files.
        notes: what is left out, in sentences.
        warnings: configurations that differ in what may matter.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def is_vocabulary_tensor(name: str) -> bool:
    """Return whether a tensor has one row per token: the embedding of tokens, or the output's weight or bias.

    >>> is_vocabulary_tensor("model.embed_tokens.weight"), is_vocabulary_tensor("lm_head.weight"), is_vocabulary_tensor("model.norm.weight")
    (True, True, False)
    """
    return bool(EMBEDDING.search(name) or HEAD.search(name))


def is_computed(name: str, entry: TensorEntry) -> bool:
    """Return whether a tensor, as old files hold some, is one that models compute themselves: masks, and angles of positions."""
    return bool(_COMPUTED.search(name) or (_MASK.search(name) and len(entry.shape) == 4))


def check_models(models: Sequence[OpenedModel], reference: int = 0, *, layers_may_differ: bool = False) -> Agreement:
    """Check that models are of one architecture: configurations, tied embeddings, names, shapes and types of tensors.

    Args:
        models: opened.
        reference: index of the model that the others are compared with.
        layers_may_differ: layers are picked from models of different depths: only what is no layer is compared.

    Raises:
        ModelError: they are not; names model, tensor, what was found and what expected.
    """
    first = models[reference]
    warnings, left_out = [], {id(model): dict(_left_out(model)) for model in models}
    for model in models:
        if model is not first:
            warnings += _compare_configs(model, first, layers_may_differ)
    _refuse_mixed_heads(models, first)
    names = [name for name in first.tensors if name not in left_out[id(first)]]
    for model in models:
        kept = {name for name in model.tensors if name not in left_out[id(model)]}
        wanted = set(names)
        if layers_may_differ:
            kept, wanted = ({name for name in each if not re.search(r"\.\d+\.", name)} for each in (kept, wanted))
        _compare_names(model, first, kept, wanted)
        for name in sorted(kept):
            check_tensor(model, name, first)
    notes = [f"{model.label}: left out {name}: {why}" for model in models for name, why in left_out[id(model)].items()]
    return Agreement(tuple(names), tuple(notes), tuple(warnings))


def check_tensor(model: OpenedModel, name: str, like: OpenedModel) -> None:
    """Check type and shape of a model's tensor against those of another's; the number of tokens may differ.

    Raises:
        ModelError: they do not fit; says so if it is the same tensor transposed.
    """
    entry, expected = model.entry(name), like.entry(name)
    if entry.dtype not in DTYPES and not (entry.dtype in INTEGERS and entry.dtype == expected.dtype):
        raise ModelError(
            f"{model.label}: tensor {name} is {entry.dtype}, expected one of {', '.join(DTYPES)}", "convert the model and save it again"
        )
    by_token = is_vocabulary_tensor(name)
    if entry.shape[by_token:] != expected.shape[by_token:] or len(entry.shape) != len(expected.shape):
        raise ModelError(f"{model.label}: tensor {name} {_misfit(entry, expected.shape, like.label)}", SAME)


def _misfit(entry: TensorEntry, expected: tuple[int, ...], label: str) -> str:
    if len(expected) == 2 and entry.shape == expected[::-1]:
        return f"is transposed: it has shape {list(entry.shape)}, in {label} it has {list(expected)}"
    return f"has shape {list(entry.shape)}, in {label} it has {list(expected)}"


def _left_out(model: OpenedModel) -> Iterator[tuple[str, str]]:
    for name, (_, entry) in model.tensors.items():
        if is_computed(name, entry):
            yield name, "models compute it themselves"
        elif HEAD.search(name) and _ties(model):
            yield name, "it is tied to the embedding"


def _ties(model: OpenedModel) -> bool:
    """Return whether a model's output shares the weights of its embedding.

    Raises:
        ModelError: its configuration says so, but it holds two different tensors.
    """
    said = model.folder.config.get("tie_word_embeddings")
    if not (getattr(load_config(model.folder), "tie_word_embeddings", False) if said is None else said):
        return False
    files = OpenFiles([model])
    heads = [name for name in model.tensors if HEAD.search(name) and name.endswith("weight")]
    embeddings = [name for name in model.tensors if EMBEDDING.search(name)]
    for head in heads:
        if embeddings and not any(_equal(model, files, head, name) for name in embeddings):
            raise ModelError(
                f"{model.label}: config.json ties {head} to {embeddings[0]}, but they differ", "set tie_word_embeddings to false there"
            )
    return True


def _equal(model: OpenedModel, files: OpenFiles, one: str, other: str) -> bool:
    mine, yours = model.entry(one), model.entry(other)
    return (mine.dtype, mine.shape) == (yours.dtype, yours.shape) and torch.equal(files.data(0, one), files.data(0, other))


def _refuse_mixed_heads(models: Sequence[OpenedModel], first: OpenedModel) -> None:
    tied = {id(model): _ties(model) for model in models}
    for model in models:
        if tied[id(model)] != tied[id(first)]:
            one, other = (model, first) if tied[id(model)] else (first, model)
            raise ModelError(
                f"{one.label} ties its output to its embedding, {other.label} has a tensor of its own for it",
                "save both tied or both untied (tie_word_embeddings)",
            )


def _compare_names(model: OpenedModel, first: OpenedModel, kept: set[str], wanted: set[str]) -> None:
    for one, other, names in ((model, first, wanted - kept), (first, model, kept - wanted)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"{one.label}: tensor {min(names)}{more} is missing, {other.label} has it", SAME)


def _compare_configs(model: OpenedModel, first: OpenedModel, layers_may_differ: bool) -> list[str]:
    """Return differences that may matter; sizes that differ are an error.

    Raises:
        ModelError: another architecture, or other sizes.
    """
    kinds = [str(each.folder.config.get("model_type")) for each in (model, first)]
    if kinds[0] != kinds[1]:
        raise ModelError(f"{model.label} is a {kinds[0]}, {first.label} a {kinds[1]} (model_type)", SAME)
    if _meaning(model.folder.config) == _meaning(first.folder.config):
        return []  # without asking transformers for the defaults, which takes seconds
    mine, yours = (dict(_flat(load_config(each.folder).to_dict())) for each in (model, first))
    warnings = []
    for key in sorted(mine.keys() & yours.keys()):
        if mine[key] == yours[key] or UNSAID.search(key) or (layers_may_differ and "layer" in key):
            continue
        what = f"{key} is {mine[key]} in {model.label}, {yours[key]} in {first.label}"
        if all(type(value) is int for value in (mine[key], yours[key])) and not REACH.search(key):
            raise ModelError(f"{what} (config.json)", SAME)
        warnings.append(f"{what}; the result has the latter")
    return warnings


def _meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in _flat(config) if not UNSAID.search(key)}


def _flat(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_plan(plan: MergePlan) -> None:
    """Check every tensor of a plan: that what it is made of is there, has its shape, and can be merged by its method.

    Raises:
        InputError: a method cannot merge so many sources, or not without a base; a name stands twice; an unknown type.
        ModelError: a tensor is missing, or of another shape or type.
    """
    seen: set[str] = set()
    for output in plan.tensors:
        if output.name in seen:
            raise InputError(f"the result would hold tensor {output.name} twice", "correct the merge's slices")
        seen.add(output.name)
        try:
            output.method.check(len(output.sources), output.base is not None)
        except ValueError as reason:
            raise InputError(f"{output.name}: {reason}", "correct the merge's recipe") from reason
        for ref in output.refs:
            _check_ref(plan.models[ref.model], ref, output)


def _check_ref(model: OpenedModel, ref: TensorRef, output: OutputTensor) -> None:
    entry = model.entry(ref.name)
    integers = entry.dtype in INTEGERS and entry.dtype == output.dtype
    if not integers and not {entry.dtype, output.dtype} <= DTYPES.keys():
        raise ModelError(
            f"{model.label}: tensor {ref.name} is {entry.dtype}, the result's {output.dtype}", "convert the model and save it again"
        )
    shape = entry.shape if ref.rows is None else (len(ref.rows), *entry.shape[1:])
    if shape != output.shape or (ref.rows is not None and len(shape) > 2):
        raise ModelError(f"{model.label}: tensor {ref.name} {_misfit(entry, output.shape, 'the result')}", SAME)
    if ref.rows is not None and math.prod(shape[1:]) > PIECE_ELEMENTS:
        raise ModelError(f"{model.label}: rows of tensor {ref.name} have {math.prod(shape[1:])} numbers and cannot be moved", SAME)
    if ref.rows is not None and not -1 <= min(ref.rows, default=-1) <= max(ref.rows, default=-1) < entry.shape[0]:
        raise ModelError(f"{model.label}: tensor {ref.name} has {entry.shape[0]} rows, row {max(ref.rows)} was asked for", SAME)
