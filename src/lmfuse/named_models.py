"""Models as the command line names them: what ``generate``, ``chat`` and ``serve`` load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lmfuse.errors import InputError, did_you_mean
from lmfuse.model_files import told_apart
from lmfuse.models import LanguageModel, ModelSpec, load_model, pick_device

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class NamedModels:
    """Which models, and how to hold them.

    Attributes:
        models: folders or hub names, the reference model first.
        chat_template: how they read conversations; ``none``: they continue plain text only.
        dtype: of the weights.
        devices: one for all, or one for each.

    Raises:
        InputError: no model, one twice, an unknown type, or devices that are not one for all or one for each.
    """

    models: tuple[str, ...]
    chat_template: str = "none"
    dtype: str = "bfloat16"
    devices: tuple[str, ...] = ("auto",)

    def __post_init__(self) -> None:
        if not self.models or len(set(self.labels)) < len(self.models):
            raise InputError(f"--models: {', '.join(self.labels) or 'none'}", "give at least one, and each once")
        if self.dtype not in get_args(Dtype):
            raise InputError(f"--dtype: {did_you_mean(self.dtype, get_args(Dtype))}")
        if len(self.devices) not in (1, len(self.models)):
            raise InputError(f"{len(self.models)} models on {len(self.devices)} devices", "give one --device, or one for each model")

    @property
    def labels(self) -> tuple[str, ...]:
        """Return what they are called."""
        return told_apart(self.models)

    def load(self) -> list[LanguageModel]:
        """Load them.

        Raises:
            InputError, ModelError, TokenizerError, ResourceError: see ``load_model``.
        """
        devices = self.devices * len(self.models) if len(self.devices) == 1 else self.devices
        dtype = next(known for known in get_args(Dtype) if known == self.dtype)
        specs = [ModelSpec(model, dtype=dtype, chat_template=self.chat_template) for model in self.models]
        return [load_model(spec, pick_device(device)) for spec, device in zip(specs, devices, strict=True)]
