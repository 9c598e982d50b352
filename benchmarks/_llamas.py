"""Models to merge: a base and fine-tunes of it, Llama-shaped, of any size, with weights from a seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

MODELS = ("base", "model-1", "model-2", "model-3")
DEVIATIONS = (2e-4, 3e-4, 4e-4)  # of the fine-tunes from the base; the weights' own is 0.02


def shapes_of(megabytes: float) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Return a Llama configuration of about this size in bf16, and its tensors."""
    hidden = max(64, 64 * round(20 * (megabytes / 1000) ** (1 / 3)))
    inner, vocab = 64 * round(2.7 * hidden / 64), 25 * hidden
    per_layer = 2 * hidden * hidden + 2 * hidden * (hidden // 2) + 3 * hidden * inner
    layers = max(1, round((megabytes * 5e5 - 2 * vocab * hidden) / per_layer))
    config = {"hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocab, "num_hidden_layers": layers,
              "num_attention_heads": hidden // 32, "num_key_value_heads": hidden // 64, "head_dim": 32}  # fmt: skip
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        half, name = (hidden // 2, hidden), f"model.layers.{layer}"
        tensors |= {
            f"{name}.self_attn.{one}_proj.weight": shape
            for one, shape in (("q", (hidden, hidden)), ("k", half), ("v", half), ("o", (hidden, hidden)))
        }
        tensors |= {
            f"{name}.mlp.{one}_proj.weight": shape
            for one, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner)))
        }
        tensors |= {f"{name}.{one}_layernorm.weight": (hidden,) for one in ("input", "post_attention")}
    return config, {**tensors, "model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def make_models(folder: Path, megabytes: float, shards: int) -> None:
    """Write the four models, unless they are there."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    config, shapes = shapes_of(megabytes)
    if (folder / "complete").exists():
        return
    names = sorted(shapes)
    parts: list[list[str]] = [[] for _ in range(shards)]
    sizes = [0] * shards
    for name in names:  # each to the shard that is filled least; front to back in each
        least = sizes.index(min(sizes))
        parts[least].append(name)
        sizes[least] += torch.Size(shapes[name]).numel()
    files = [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
    for number, model in enumerate(MODELS):
        place = folder / model
        shutil.rmtree(place, ignore_errors=True)
        LlamaConfig(**config, tie_word_embeddings=False, dtype="bfloat16", architectures=["LlamaForCausalLM"]).save_pretrained(place)
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))).save_pretrained(place)
        weight_map: dict[str, str] = {}
        for file, part in zip(files, parts, strict=True):
            save_file({name: _weights(name, shapes[name], number) for name in part}, place / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    (folder / "complete").write_text("", encoding="utf-8")


def _weights(name: str, shape: tuple[int, ...], model: int) -> Any:
    import torch

    def noise(seed: str) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(seed.encode()[-16:], "little") % 2**63))

    values = 1 + 0.05 * noise(name) if len(shape) == 1 else 0.02 * noise(name)
    if model:
        values += DEVIATIONS[model - 1] * noise(f"{model} {name}")
    return values.bfloat16()
