"""What was judged, on disk as soon as it is known: a search that was killed replays it and repeats nothing that stands there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmfuse.disk import sync
from lmfuse.errors import InputError
from lmfuse.evolution.scores import UnitScore

ANOTHER = "choose another folder, or remove this one"


class Journal:
    """An append-only file of JSON lines. The first says which search it is; a last line that was not written to its end is cut off.

    Attributes:
        known: by genome, the units that it was scored on.
        failed: by genome and first unit (no two splits have it in common), the kind of failure and its message.
        over: the turn before which the search ended by its clock, None where it did not.
        winner: the genome that this search was last about to publish.
        elapsed: seconds that the search had run when the last line was written.

    Raises:
        InputError: the file is of another search, or damaged.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self.known: dict[str, dict[str, UnitScore]] = {}
        self.failed: dict[tuple[str, str], tuple[str, str]] = {}
        self.over: int | None = None
        self.winner: str | None = None
        self.elapsed = 0.0
        lines = self._whole_lines()
        if lines and lines[0].get("search") != identity:
            if len(lines) > 1:
                raise InputError(f"{path} is of another search", ANOTHER)
            path.unlink()  # it had not begun
            lines = []
        for line in lines[1:]:
            self._take(line)
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as reason:
            raise InputError(f"{path} cannot be opened for writing: {reason.strerror}", ANOTHER) from None
        if not lines:
            self._write({"search": identity})
            sync(path.parent)

    def _whole_lines(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as reason:
            raise InputError(f"{self._path} is damaged: {reason}", ANOTHER) from None

    def judged(self, key: str, scores: Mapping[str, UnitScore], elapsed: float) -> None:
        """Write down what a genome scored."""
        plain = {unit: [each.value, each.weight, each.group] for unit, each in scores.items()}
        self._write({"genome": key, "scores": plain, "elapsed": round(elapsed, 3)})

    def failure(self, key: str, unit: str, kind: str, message: str, elapsed: float) -> None:
        """Write down that a genome could not be scored."""
        self._write({"genome": key, "unit": unit, "failed": kind, "message": message, "elapsed": round(elapsed, 3)})

    def ended(self, turn: int, elapsed: float) -> None:
        """Write down that time was up before a turn: a replay must end there too."""
        self._write({"over": turn, "elapsed": round(elapsed, 3)})

    def won(self, key: str, elapsed: float) -> None:
        """Write down which genome is about to be published."""
        self._write({"winner": key, "elapsed": round(elapsed, 3)})

    def _write(self, line: Mapping[str, Any]) -> None:
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        while data:
            data = data[os.write(self._handle, data) :]
        os.fsync(self._handle)
        self._take(line)

    def _take(self, line: Mapping[str, Any]) -> None:
        self.elapsed = max(self.elapsed, float(line.get("elapsed", 0.0)))
        if "over" in line:
            self.over = int(line["over"])
        elif "winner" in line:
            self.winner = line["winner"]
        elif "failed" in line:
            self.failed[line["genome"], line["unit"]] = (line["failed"], line["message"])
        elif "genome" in line:
            scores = {unit: UnitScore(value, weight, group) for unit, (value, weight, group) in line["scores"].items()}
            self.known.setdefault(line["genome"], {}).update(scores)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def finite(scores: Mapping[str, UnitScore]) -> bool:
    """Return whether every score is a number.

    >>> finite({"a": UnitScore(1.0)}), finite({"a": UnitScore(float("nan"))})
    (True, False)
    """
    return all(math.isfinite(each.value) for each in scores.values())
