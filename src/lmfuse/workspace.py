"""Where a run keeps its things: the folder of the run itself, and the cache that all runs share."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmfuse.artefacts import lock, write_atomic
from lmfuse.errors import InputError
from lmfuse.recipe import Recipe

RUN_FILES = {"recipe.yaml", "plan.json", "events.jsonl", "report", "model", "tracker"}
ARTEFACT_VERSION = 1  # part of every key: raise it when the same inputs would give other bytes


def cache_folder(given: Path | None) -> Path:
    """Return the shared cache: what was given, else ``$LMFUSE_CACHE``, else ``~/.cache/lmfuse``."""
    return given or Path(os.environ.get("LMFUSE_CACHE") or Path.home() / ".cache" / "lmfuse")


@dataclass(frozen=True)
class Workspace:
    """The folders of one run."""

    run: Path
    cache: Path

    def artefact(self, kind: str, key: str) -> Path:
        """Return the folder of an artefact, there or not."""
        return self.cache / kind / key

    def refuse_other(self, recipe: Recipe) -> None:
        """Raise InputError if the folder belongs to the run of another recipe."""
        if self.recipe_file.exists() and self.recipe_file.read_text(encoding="utf-8") != recipe.to_yaml():
            raise InputError(
                f"{self.run} holds the run of another recipe",
                hint="name a new folder with --out; the cache is shared, nothing is computed twice",
            )

    def claim(self, recipe: Recipe) -> None:
        """Write the recipe in full: from now on the folder belongs to it. Done once a plan stands, so that a recipe can be mended before."""
        if not self.recipe_file.exists():
            write_atomic(self.recipe_file, recipe.to_yaml().encode())

    @property
    def recipe_file(self) -> Path:
        """Return where the recipe of the run is written."""
        return self.run / "recipe.yaml"

    def event(self, stage: str, **values: Any) -> None:
        """Append one line to events.jsonl; events are for people and trackers, nothing is computed from them."""
        line = json.dumps({"time": round(time.time(), 3), "stage": stage, **values}, default=str)
        with (self.run / "events.jsonl").open("a", encoding="utf-8") as out:
            out.write(line + "\n")


@contextmanager
def open_workspace(recipe: Recipe, run: Path | None, cache: Path | None) -> Iterator[Workspace]:
    """Hold the run's folder for one process.

    Raises:
        InputError: the folder holds another run, or something that is no run.
        BusyError: another process works in it.
    """
    folder = run or Path("runs") / recipe.name
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file", hint="name a folder with --out")
    if folder.is_dir() and {path.name for path in folder.iterdir()} - RUN_FILES:
        raise InputError(f"{folder} is not empty and holds no run", hint="name a new folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    shared = cache_folder(cache)
    shared.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        space = Workspace(folder, shared)
        space.refuse_other(recipe)
        yield space
