"""The one place that loads models and tokenizers: strict, from safetensors only, and never running code that a model brings along."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lmfuse.artefacts import content_key
from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import InputError, LmfuseError, ModelError, ResourceError
from lmfuse.losses.head import Head
from lmfuse.memory import available_memory, is_out_of_memory, out_of_memory_is_an_error
from lmfuse.model_facts import ModelFacts as ModelFacts
from lmfuse.model_facts import check_embedding, check_vocabulary, context_of, load_bytes, load_config, model_key, rows_of
from lmfuse.model_facts import inspect_model as inspect_model
from lmfuse.model_facts import inspect_with_tokenizer as inspect_with_tokenizer
from lmfuse.model_files import ModelFolder, check_folder, local_folder
from lmfuse.model_files import ModelSpec as ModelSpec
from lmfuse.model_head import find_head
from lmfuse.types import Document


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer, taken apart where the rest of the house needs it.

    Attributes:
        module: the transformers model, head included.
        body: the part of it that gives the final hidden states, after the last norm.
        tokenizer: its tokenizer, as bytes.
        head: what turns final hidden states into logits; shares its weights with ``module``.
        context: the most tokens it reads at once.
        key: identifies the weights as they were loaded; ``""`` for a module that did not come from a folder.
    """

    module: Any
    body: nn.Module
    tokenizer: ByteTokenizer
    head: Head
    context: int
    key: str = ""

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return next(iter(self.module.parameters())).device

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the weights."""
        return next(iter(self.module.parameters())).dtype

    def hidden(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return the final hidden states; ``head.logits`` of state ``t`` is the prediction of token ``t + 1``."""
        found: Tensor = self.body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return found

    def count_tokens(self, documents: Iterable[Document]) -> int:
        """Return how many tokens of these documents the model predicts: what collecting and scoring report as progress."""
        return sum(int((encoding.starts[1:] >= 0).sum()) for encoding in self.tokenizer.encode_many(list(documents)))


def load_tokenizer(spec: ModelSpec) -> ByteTokenizer:
    """Load a model's tokenizer alone.

    Raises:
        ModelError: there is no such folder or hub name, or its config.json cannot be used, or the tokenizer has ids without a row.
        TokenizerError: the tokenizer cannot be read as bytes.
        InputError: there is no such chat template, or it is at fault.
    """
    folder = local_folder(spec, weights=False)
    rows = rows_of(folder)
    tokenizer = load_bytes(folder, spec, rows)
    if rows is not None:
        check_vocabulary(folder, tokenizer.vocabulary, rows)
    return tokenizer


def load_model(spec: ModelSpec, device: str | torch.device = "cpu") -> LanguageModel:
    """Load a model for reading: evaluation mode, every weight there and finite, logits checked against the model's own.

    Raises:
        ModelError: see ``check_folder`` and ``wrap_module``; or weights are missing, unexpected, misshapen or not finite.
        TokenizerError: the tokenizer cannot be read as bytes.
        ResourceError: memory does not suffice.
        InputError: there is no such device, or no such chat template.
    """
    place = checked_device(device)
    checked = check_folder(local_folder(spec))
    config = load_config(checked)
    rows = config.get_text_config(decoder=True).vocab_size
    check_embedding(checked, rows)
    tokenizer = load_bytes(checked.path, spec, rows)
    check_vocabulary(checked.path, tokenizer.vocabulary, rows)
    _refuse_too_large(checked, spec)
    with out_of_memory_is_an_error(f"loading {checked.path} as {spec.dtype} on {place}"):
        module = _load_module(checked, config, getattr(torch, spec.dtype)).to(place)
        _refuse_non_finite(checked, module, spec.dtype)
        return wrap_module(module, tokenizer, key=content_key([model_key(checked), tokenizer.key]))


def wrap_module(module: Any, tokenizer: ByteTokenizer, key: str = "") -> LanguageModel:
    """Make a language model of a transformers module in memory; puts it in evaluation mode.

    Raises:
        ModelError: the tokenizer has more ids than the model, the model is not causal, or its head is unknown.
    """
    module.eval()
    config = module.config.get_text_config(decoder=True)
    check_vocabulary(type(module).__name__, tokenizer.vocabulary, module.get_input_embeddings().num_embeddings)
    body, head = find_head(module, tokenizer.vocabulary.size)
    return LanguageModel(module, body, tokenizer, head, context_of(config), key)


def _load_module(checked: ModelFolder, config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with _quiet_transformers():
            module, report = AutoModelForCausalLM.from_pretrained(
                str(checked.path), config=config, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False,
                output_loading_info=True, ignore_mismatched_sizes=True,  # reported below, by name
            )  # fmt: skip
    except (MemoryError, LmfuseError):
        raise
    except Exception as reason:  # a configuration that passes validation and builds no model
        if is_out_of_memory(reason):
            raise
        what = next(iter(str(reason).splitlines()), type(reason).__name__)
        raise ModelError(f"{checked.path} cannot be loaded: {what}", "is config.json that of these weights?") from reason
    for kind, names in (("missing", report["missing_keys"]), ("unexpected", report["unexpected_keys"])):
        if names:
            raise ModelError(f"{checked.path}: {len(names)} {kind} tensors, first {min(names)}", "is config.json that of these weights?")
    if report["mismatched_keys"]:
        name, found, expected = min(report["mismatched_keys"], key=lambda entry: str(entry[0]))
        raise ModelError(
            f"{checked.path}: tensor {name} has shape {list(found)}, expected {list(expected)}", "is config.json that of these weights?"
        )
    return module


def _refuse_non_finite(checked: ModelFolder, module: nn.Module, dtype: str) -> None:
    """Refuse NaN and infinity; a sum finds them without a copy of the weights, and only a suspicious one is looked at closely."""
    for name, weight in module.named_parameters():
        if not torch.isfinite(weight.detach().sum(dtype=torch.float32)):
            bad = int((~torch.isfinite(weight)).sum())
            if bad:
                raise ModelError(
                    f"{checked.path}: tensor {name} holds {bad} values that are not finite (as {dtype})",
                    "the weights are damaged" if dtype != "float16" else "the weights are damaged, or too large for float16: try bfloat16",
                )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' load report off the terminal: what it says is an error here and said in one line."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def pick_device(wanted: str) -> str:
    """Return ``cuda`` or ``cpu`` for ``auto``, else what was asked for."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def checked_device(device: str | torch.device) -> torch.device:
    """Return a device that can be used.

    Raises:
        InputError: it is unknown or not there.
    """
    try:
        place = torch.device(device)
        if place.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ImportError) as reason:
        what = next(iter(str(reason).splitlines()), "")
        raise InputError(
            f"device {str(device)!r} cannot be used: {what}", "use cpu, cuda, cuda:0 or mps, whichever this machine has"
        ) from reason
    return place


def _refuse_too_large(checked: ModelFolder, spec: ModelSpec) -> None:
    """Refuse a model that cannot fit into what the system says is free; Linux would kill the process without a word."""
    numbers = sum(entry.size for header in checked.headers.values() for entry in header.tensors.values())
    needed = numbers * torch.empty(0, dtype=getattr(torch, spec.dtype)).element_size()
    available = available_memory()
    if available is not None and needed > available:
        raise ResourceError(
            f"{checked.path} needs {needed / 2**30:.1f} GiB as {spec.dtype}, {available / 2**30:.1f} GiB are free",
            "close other programs, or use a smaller dtype or model",
        )
