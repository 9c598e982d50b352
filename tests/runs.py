"""A whole run in miniature: three random models with three kinds of tokenizer, two domains of made-up text, one recipe."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from lmfuse import cli
from lmfuse.errors import LmfuseError
from tests import fakes

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "and",
    "sleeps",
    "on",
    "Anna",
    "has",
    "12",
    "apples",
    "buys",
    "7",
    "more",
    "How",
    "many",
    "does",
    "she",
    "have",
    "now",
]


def write_text(folder: Path, documents: int = 24) -> None:
    """Write train and evaluation text of two domains, sentences of random words."""
    draw = random.Random(0)
    for domain in ("x", "y"):
        for split, count in (("train", documents), ("eval", documents // 2)):
            lines = [json.dumps({"text": " ".join(draw.choices(WORDS, k=40)) + ".\n"}) for _ in range(count)]
            (folder / f"{domain}-{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def recipe(**changes: Any) -> dict[str, Any]:
    """Return a small recipe as plain values; keyword arguments replace whole sections."""
    values: dict[str, Any] = {
        "name": "tiny",
        "target": {"model": "models/target", "dtype": "float32"},
        "sources": [{"model": "models/a", "dtype": "float32"}, {"model": "models/b", "dtype": "float32"}],
        "text": {
            "window_tokens": 200,
            "train": [{"domain": d, "path": f"{d}-train.jsonl"} for d in ("x", "y")],
            "evaluation": [{"domain": d, "path": f"{d}-eval.jsonl"} for d in ("x", "y")],
        },
        "rows": {"k": 8, "batch_tokens": 1024, "shard_documents": 16},
        "train": {"learning_rate": 1e-3, "batch_documents": 8, "accumulation": 1, "precision": "float32", "checkpoint_steps": 2},
        "sources_used": "all",
        "fuse": {"name": "min_ce", "judge": "training_text"},
        "arms": ["clm", "self", "fused"],
        "evaluate": {"bootstrap_samples": 200},
    }
    return values | changes


def lay_out(folder: Path, **changes: Any) -> Path:
    """Write models, text and recipe into a folder; return the recipe's path."""
    for seed, (name, kind) in enumerate((("target", fakes.byte_bpe), ("a", fakes.metaspace_bpe), ("b", fakes.unigram))):
        if not (folder / "models" / name).exists():
            fakes.save_model(folder / "models" / name, kind(), seed=seed)
    write_text(folder)
    return write_recipe(folder, **changes)


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Write only the recipe."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(**changes)), encoding="utf-8")
    return path


def lmfuse(*arguments: object, columns: int | None = None) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and what it printed."""
    found = CliRunner(env={"COLUMNS": str(columns)} if columns else None).invoke(cli.app, [str(argument) for argument in arguments])
    if isinstance(found.exception, LmfuseError):
        return found.exception.exit_code, f"{found.exception} | {found.exception.hint}"
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output
