"""A sequence classifier from a model's folder: loaded as strictly as a language model, its outputs in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmfuse.artefacts import content_key
from lmfuse.errors import InputError, ModelError
from lmfuse.folder_files import read_object
from lmfuse.forward import length_buckets
from lmfuse.judges.protocol import VERSION
from lmfuse.memory import is_out_of_memory, out_of_memory_is_an_error
from lmfuse.model_facts import context_of, load_config, model_key
from lmfuse.model_files import LocalWeights, ModelFolder, ModelSpec, _read_json, _weight_files, local_folder
from lmfuse.models import _quiet_transformers, _refuse_non_finite, _refuse_too_large, checked_device

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")


def check_classifier(folder: Any) -> ModelFolder:
    """Check everything about a classifier's folder that can be known without reading weights.

    Raises:
        ModelError: the configuration is missing or broken, of a kind that transformers has no classifier for, or wants remote code; or the
            weights are missing, pickled, quantized, truncated or named outside the folder.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder} is an adapter, not a whole model", "merge it into its base model and save that")
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in KNOWN:
        what = "wants remote code" if config.get("auto_map") else f"has model_type {kind!r}, for which transformers has no classifier"
        raise ModelError(f"{folder} {what}", "use a reward model that transformers knows as a sequence classifier")
    if any("_implementation" in key and "/" in str(value) for key, value in config.items()):
        raise ModelError(f"{folder} wants remote code", "remove the _implementation keys from config.json")
    if config.get("quantization_config"):
        raise ModelError(f"{folder} is quantized", "use the unquantized model, or dequantize and save it")
    weights = LocalWeights(folder)
    return ModelFolder(folder, config, {folder / name: weights.header(name) for name in _weight_files(folder, weights)})


def classifier_key(spec: ModelSpec) -> str:
    """Return a hash of a classifier's weights, configuration and tokenizer files, and of the type that it computes in.

    Raises:
        ModelError: see ``check_classifier``.
    """
    checked = check_classifier(local_folder(spec))
    files = [(checked.path / name) for name in TOKENIZER_FILES]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}
    return content_key([VERSION, model_key(checked), hashes, spec.dtype])


class Classifier:
    """A sequence classifier and what it needs of its folder."""

    def __init__(self, spec: ModelSpec, device: str) -> None:
        """Load it.

        Raises:
            ModelError: see ``check_classifier``; or weights are missing (a language model without a trained head), unexpected, misshapen or
                not finite.
            ResourceError: memory does not suffice.
            InputError: there is no such device.
        """
        place, self.spec = checked_device(device), spec
        self.checked = check_classifier(local_folder(spec))
        self.config = load_config(self.checked)
        _refuse_too_large(self.checked, spec)
        with out_of_memory_is_an_error(f"loading {self.checked.path} as {spec.dtype} on {place}"):
            self.module = _load(self.checked, self.config, getattr(torch, spec.dtype)).to(place).eval()
            _refuse_non_finite(self.checked, self.module, spec.dtype)
        _float32_head(self.module)
        self.context = _context(self.module)
        listed = (read_object(self.checked.path, "tokenizer_config.json", ModelError) or {}).get("model_input_names")
        knows_types = (getattr(self.config.get_text_config(), "type_vocab_size", 0) or 0) > 1
        self.has_types = knows_types and (not isinstance(listed, list) or "token_type_ids" in listed)

    def column(self, output: str) -> int | None:
        """Return which output is wanted, None where there is only one.

        Raises:
            InputError: there is no such output, or there are several and none is named; lists them.
        """
        labels = {int(place): str(label) for place, label in dict(self.config.id2label).items()}
        if not output and len(labels) == 1:
            return None
        found = [place for place, label in labels.items() if label == output]
        if len(found) != 1 or len(labels) == 1:
            names = ", ".join(labels.values()) if len(labels) > 1 else "one output without a name of its own"
            raise InputError(
                f"judge {self.spec.label}: output {output!r}: the model has {names}", "name the label that says which answer is good"
            )
        return found[0]

    def logits(self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None, batch_tokens: int) -> Float[np.ndarray, "N L"]:
        """Return the L outputs for each of N inputs, none of them empty.

        Raises:
            ResourceError: memory does not suffice for a batch.
        """
        found: dict[int, Tensor] = {}
        for bucket in length_buckets(np.array([len(each) for each in ids], np.int64), batch_tokens):
            with out_of_memory_is_an_error(f"a batch of {len(bucket)} inputs of up to {max(len(ids[i]) for i in bucket)} tokens"):
                some = self._batch([ids[i] for i in bucket], [types[i] for i in bucket] if types and self.has_types else None)
            found |= dict(zip(bucket.tolist(), some, strict=True))
        return torch.stack([found[i] for i in range(len(ids))]).numpy() if ids else np.zeros((0, self.config.num_labels), np.float32)

    @torch.inference_mode()
    def _batch(self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None) -> Float[Tensor, "B L"]:
        """Run one batch; where the model names no padding, an id that none of the inputs has stands for it meanwhile: models look for the last
        token that is no padding, and their own choice of one is part of them."""
        config = self.module.config.get_text_config()
        own = config.pad_token_id
        pad = own if own is not None else next(i for i in range(config.vocab_size) if all(i not in each for each in ids))
        width, device = max(map(len, ids)), next(self.module.parameters()).device
        given = {
            "input_ids": torch.tensor([[*each, *[pad] * (width - len(each))] for each in ids]),
            "attention_mask": torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in ids]),
        }
        if types is not None:
            given["token_type_ids"] = torch.tensor([[*each, *[0] * (width - len(each))] for each in types])
        configs: Mapping[int, Any] = {id(each): each for each in (config, self.module.config)}
        before = {key: getattr(each, "pad_token_id", None) for key, each in configs.items()}
        try:
            for each in configs.values():
                each.pad_token_id = pad
            found: Tensor = self.module(**{name: value.to(device) for name, value in given.items()}).logits
        finally:
            for key, each in configs.items():
                each.pad_token_id = before[key]
        return found.float().cpu()


def _load(checked: ModelFolder, config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForSequenceClassification

    try:
        with _quiet_transformers():
            module, report = AutoModelForSequenceClassification.from_pretrained(
                str(checked.path), config=config, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False,
                output_loading_info=True, ignore_mismatched_sizes=True,  # reported below, by name
            )  # fmt: skip
    except MemoryError:
        raise
    except Exception as reason:  # a configuration that passes validation and builds no model
        if is_out_of_memory(reason):
            raise
        what = next(iter(str(reason).splitlines()), type(reason).__name__)
        raise ModelError(f"{checked.path} cannot be loaded: {what}", "is config.json that of these weights?") from reason
    wrong = {kind: sorted(map(str, report[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    for kind, names in wrong.items():
        if names:
            raise ModelError(
                f"{checked.path}: {len(names)} {kind} tensors, first {names[0]}", "a reward model's folder holds its trained head"
            )
    return module


def _float32_head(module: nn.Module) -> None:
    """Let the last layer compute in float32: in bfloat16 rewards of 2.501 and 2.506 are the same."""
    head = getattr(module, "score", None)
    if isinstance(head, nn.Linear):
        head.float()
        head.register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))


def _context(module: nn.Module) -> int:
    """Return the most tokens that a classifier reads; some count their positions from behind the id of the padding."""
    most = context_of(module.config.get_text_config())  # type: ignore[union-attr, operator]
    tables = [each for name, each in module.named_modules() if name.endswith("position_embeddings") and isinstance(each, nn.Embedding)]
    return min([most, *(each.num_embeddings - (0 if each.padding_idx is None else each.padding_idx + 1) for each in tables)])
