"""The embedded default: three pico specialists and a pico target that ship with the package, fused without network or GPU."""

from __future__ import annotations

import importlib.resources
from pathlib import Path


def recipe_path() -> Path:
    """Return the demo's recipe inside the package."""
    return Path(str(importlib.resources.files("lmfuse") / "recipes" / "demo.yaml"))


def recipe_text() -> str:
    """Return the demo's recipe as YAML, comments included: a start for one's own."""
    return recipe_path().read_text(encoding="utf-8")


def run(out: Path, cache: Path | None) -> Path:
    """Run the demo and return its report page."""
    from lmfuse.pipeline import Pipeline

    with Pipeline.open(recipe_path(), out, cache) as pipeline:
        return pipeline.run()
