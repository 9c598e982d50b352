"""A whole run over conversations in miniature: three random chat models that answer sums, and judges that need no model of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests import fakes, runs

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ARMS = ["clm", "training_mode", "inference_mode", "simultaneous", "reversed", "progressive"]


def sums(number: int, first: int = 1) -> str:
    """Return conversations about sums, one a line; every fourth has two questions."""
    lines = []
    for n in range(first, first + number):
        talk = [{"role": "user", "content": f"How much is {n} + 7?"}, {"role": "assistant", "content": f"{n} + 7 = {n + 7}."}]
        if n % 4 == 0:
            talk += [{"role": "user", "content": "And 1 more?"}, {"role": "assistant", "content": f"That is {n + 8}."}]
        lines.append(json.dumps({"messages": talk}))
    return "\n".join(lines) + "\n"


def recipe(**changes: Any) -> dict[str, Any]:
    """Return a small recipe as plain values; keyword arguments replace whole sections."""
    text = {
        "window_tokens": 160, "max_overlap": 1.0,
        "train": [{"domain": "sums", "path": "train.jsonl"}, {"domain": "plain", "path": "plain.jsonl"}],
        "evaluation": [{"domain": "sums", "path": "eval.jsonl"}],
    }  # fmt: skip
    answers = {"judges": [{"name": "verifier", "check": "final_number"}, {"name": "likelihood"}], "max_new_tokens": 12, "batch_prompts": 4, "cut": "keep",
               "batch_questions": 8}  # fmt: skip
    evaluate = {"bootstrap_samples": 200, "tasks": [{"domain": "sums", "max_new_tokens": 6, "limit": 3}]}
    values = runs.recipe(name="chat", evaluate=evaluate, text=text, answers=answers, arms=ARMS, result="progressive")
    values["train"] |= {"batch_documents": 2}
    return values | changes


def lay_out(folder: Path, **changes: Any) -> Path:
    """Write models, text and recipe into a folder; return the recipe's path."""
    for seed, (name, kind) in enumerate((("target", fakes.byte_bpe), ("a", fakes.metaspace_bpe), ("b", fakes.unigram))):
        if not (folder / "models" / name).exists():
            fakes.save_model(folder / "models" / name, kind(), seed=seed)
            (folder / "models" / name / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "train.jsonl").write_text(sums(14))
    (folder / "plain.jsonl").write_text("".join(json.dumps({"text": f"Anna has {n} apples."}) + "\n" for n in range(3)))
    (folder / "eval.jsonl").write_text(sums(4, first=50))
    return write_recipe(folder, **changes)


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Write only the recipe."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(**changes)), encoding="utf-8")
    return path
