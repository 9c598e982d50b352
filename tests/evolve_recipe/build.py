"""Fine-tunes of the pico target in seconds, and small searches over models of noise."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from lmfuse.models import ModelSpec, load_model
from lmfuse.pico import DOMAINS, FOLDER, model_folder, text_file
from lmfuse.types import Document
from lmfuse.windows import fit_windows
from tests.runs import WORDS
from tests.weights.plans import family

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def pico_tunes(folder: Path, steps: int = 10) -> Path:
    """Write the pico target, and copies of it that learnt a little of one domain's text, or of all."""
    base = shutil.copytree(model_folder("target"), folder / "models" / "base")
    for number, name in enumerate((*DOMAINS, "all")):
        _tune(base, folder / "models" / name, DOMAINS if name == "all" else (name,), steps, number)
    shutil.copytree(FOLDER / "text", folder / "text")
    return folder


def _tune(base: Path, out: Path, domains: tuple[str, ...], steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = load_model(ModelSpec(str(base), dtype="float32"))
    lines = [json.loads(line)["text"] for domain in domains for line in text_file("train", domain).read_text().splitlines()]
    random.Random(seed).shuffle(lines)
    windows = fit_windows([Document.plain(text) for text in lines[: 4 * steps]], [model.tokenizer], [128]).documents[: 4 * steps]
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-3)
    for step in range(steps):
        for window in windows[4 * step : 4 * step + 4]:
            ids = torch.from_numpy(model.tokenizer.encode(window).ids).long()[None]
            model.module(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors"))
    own = {name: tensor.detach().bfloat16().contiguous() for name, tensor in model.module.named_parameters()}
    save_file(own, out / "model.safetensors", metadata={"format": "pt"})


def lay_out(folder: Path, **changes: Any) -> Path:
    """Write a base, three tunes of it, text of two domains, questions, and a recipe; return the recipe's path."""
    if not (folder / "models").exists():
        made = family(folder / "made", 4)
        shutil.copytree(folder / "made", folder / "models")
        shutil.rmtree(folder / "made")
        assert [each.name for each in made] == ["base", "tune-1", "tune-2", "tune-3"]
        draw = random.Random(0)
        for domain in ("x", "y"):
            lines = [json.dumps({"text": " ".join(draw.choices(WORDS, k=30)) + ".\n"}) for _ in range(24)]
            (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        asked = [
            {"question": " ".join(draw.choices(WORDS, k=8)), "choices": draw.sample(WORDS, 3), "answer": draw.randrange(3)}
            for _ in range(24)
        ]
        (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)) + "\n", encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(**changes)), encoding="utf-8")
    return path


def recipe(**changes: Any) -> dict[str, Any]:
    """Return a small recipe as plain values; keyword arguments replace whole sections, None removes one."""
    values: dict[str, Any] = {
        "name": "tiny",
        "parents": [{"model": f"models/tune-{n}", "dtype": "float32"} for n in (1, 2, 3)],
        "base": {"model": "models/base", "dtype": "float32"},
        "text": {"divided": [{"domain": d, "path": f"{d}.jsonl"} for d in ("x", "y")], "window_tokens": 128},
        "generations": 2,
        "evaluate": {"bootstrap_samples": 200},
        "resident": True,
        "seed": 1,
    }
    return {key: value for key, value in (values | changes).items() if value is not None}
