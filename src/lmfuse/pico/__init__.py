"""The embedded default: three pico specialists, a pico target and demo text, all inside the package.

``README.md`` beside this file says what they were made of and how well they do; ``scripts/train_pico.py`` makes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).resolve().parent
DOMAINS = ("code", "math", "prose")
SOURCES = DOMAINS  # each specialist is named after its domain
TARGET = "target"


def model_folder(name: Literal["code", "math", "prose", "target"]) -> Path:
    """Return the Hugging Face folder of a pico model.

    >>> sorted(path.name for path in model_folder("target").glob("*.safetensors"))
    ['model.safetensors']
    """
    return FOLDER / "models" / name


def text_file(split: Literal["train", "eval"], domain: Literal["code", "math", "prose"]) -> Path:
    """Return the demo text of a split and a domain: one JSON object a line with ``domain`` and ``text``.

    >>> text_file("eval", "math").name
    'eval-math.jsonl'
    """
    return FOLDER / "text" / f"{split}-{domain}.jsonl"
