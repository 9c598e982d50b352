"""Tiny models in memory, a fitness with a known best place, and a search that runs in its own process."""

import hashlib
import itertools
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lmfuse.artefacts import content_key
from lmfuse.evolution.models import MemoryParents
from lmfuse.evolution.run import evolve
from lmfuse.evolution.scores import UnitScore
from lmfuse.evolution.settings import SearchSettings
from lmfuse.evolution.splits import Splits

UNITS = [f"u{n}" for n in range(24)]
SPLITS = Splits.checked(UNITS[:12], UNITS[12:18], UNITS[18:])
SHAPES = {"embed.weight": (5, 4), "layers.0.w": (4, 4), "layers.1.w": (4, 4), "norm.weight": (4,)}


def corners(count: int = 3, base: bool = False) -> MemoryParents:
    """Return parents at the corners of a simplex: coordinate ``d`` of parent ``i`` is 1 if ``d % count == i``, else 0."""

    def model(index: int) -> dict[str, torch.Tensor]:
        found, offset = {}, 0
        for name, shape in SHAPES.items():
            size = torch.Size(shape).numel()
            found[name] = (torch.arange(offset, offset + size) % count == index).float().view(shape)
            offset += size
        return found

    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    return MemoryParents({f"parent-{index}": model(index) for index in range(count)}, zeros if base else None)


def flat(model) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in model.values()])


@dataclass(frozen=True)
class Quadratic:
    """``-(distance to a place)^2``, plus noise of each unit that is the same for all models.

    Attributes:
        target: coordinate ``d`` of the best place is ``target[d % len(target)]``.
        log: a file that gets a line for each call.
        trouble: what to do with children that are no parents: ``raise``, ``nan``, ``all`` (parents too).
        wait: seconds of each call.
        noise: of the interaction between model and unit.
    """

    target: tuple[float, ...]
    log: str = ""
    trouble: str = ""
    wait: float = 0.0
    noise: float = 0.0

    @property
    def key(self) -> str:
        return content_key(["quadratic", self.target, self.trouble, self.noise])

    def __call__(self, model, units):
        weights = flat(model)
        digest = hashlib.sha256(weights.numpy().tobytes()).hexdigest()
        if self.log:
            with open(self.log, "a") as file:
                file.write(json.dumps([digest, sorted(units)]) + "\n")
        time.sleep(self.wait)
        inner = bool(((weights != 0) & (weights != 1)).any())
        if self.trouble == "all" or (inner and self.trouble == "raise"):
            raise RuntimeError("no such luck\nand more lines")
        place = torch.tensor(self.target).repeat(len(weights) // len(self.target) + 1)[: len(weights)]
        score = float("nan") if inner and self.trouble == "nan" else -float(((weights - place) ** 2).mean())
        return [UnitScore((score + self._noise(digest, unit)) * (1 + int(unit[1:]) % 2), 1 + int(unit[1:]) % 2) for unit in units]

    def _noise(self, digest: str, unit: str) -> float:
        own = int(hashlib.sha256(f"{digest}{unit}".encode()).hexdigest()[:8], 16) / 2**32 - 0.5
        return self.noise * own


def calls(log: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Return every call of the fitness: a model, and the units."""
    return [(digest, tuple(units)) for digest, units in map(json.loads, log.read_text().splitlines())] if log.exists() else []


def tree(folder: Path) -> dict[str, bytes]:
    """Return what a search left that does not depend on time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "journal.jsonl"
    }


COUNT = itertools.count()  # calls in this process
SETTINGS = SearchSettings(generations=4, seed=3)


def search(out: str, log: str, kill_at: str, workers: int) -> None:
    """Search, and end like ``kill -9`` at a call of the fitness (``call:7``, its eighth, before it answers) or when a child was settled (``turn:7``)."""
    kind, _, number = kill_at.partition(":")
    fitness = Killer((0.5, 0.25, 0.25), log=log, kill_at=int(number) if kind == "call" else -1)

    def progress(step) -> None:
        if kind == "turn" and step.turn == int(number):
            os.kill(os.getpid(), 9)

    evolve(SETTINGS, corners(), fitness, SPLITS, Path(out), workers=workers, progress=progress)


def main(out: str, log: str, workers: str, *kills: str) -> None:
    """Run one search after the other to the same place, each in a process of its own; print what each ended with."""
    for kill_at in kills:
        child = os.fork()  # before torch has done anything: importing it anew takes longer than the search
        if child == 0:
            search(out, log, kill_at, int(workers))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


@dataclass(frozen=True)
class Killer(Quadratic):
    """A fitness whose process is killed while it works."""

    kill_at: int = -1

    @property
    def key(self) -> str:
        return Quadratic(self.target).key

    def __call__(self, model, units):
        if next(COUNT) == self.kill_at:
            os.kill(os.getpid(), 9)
        return super().__call__(model, units)


if __name__ == "__main__":
    main(*sys.argv[1:])
