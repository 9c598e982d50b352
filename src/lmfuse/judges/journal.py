"""Opinions on disk, batch by batch: what a killed run has heard is not asked again, and what was said can be read afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lmfuse.artefacts import content_key, write_atomic
from lmfuse.disk import full_disk_is_an_error
from lmfuse.errors import InputError
from lmfuse.judges.protocol import Case, Opinion

Opinions = list[list[Opinion]]


class Journal:
    """One scorer's opinions: a header line with its key, then a line for each batch of questions, in the order in which they were judged."""

    def __init__(self, path: Path, key: str) -> None:
        """Open or begin a journal; what a kill left half-written is cut off.

        Raises:
            InputError: it holds opinions of another judge, or under other settings.
            ResourceError: the disk is full.
        """
        self.path = path
        self._known: dict[str, Opinions] = {}
        header = json.dumps({"key": key})
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [header]
        if lines[0] != header:
            raise InputError(f"{path} holds opinions of another judge or of other settings", "remove it, or judge into another folder")
        whole = [header]
        for line in lines[1:]:
            with suppress(ValueError, TypeError, KeyError, AttributeError):  # the last line of a process that was killed
                record = json.loads(line)
                self._known[record["batch"]] = [[Opinion.read(each) for each in case["opinions"]] for case in record["cases"]]
                whole.append(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, ("\n".join(whole) + "\n").encode())  # only whole lines, so that the next one begins a line

    @staticmethod
    def batch_key(cases: Sequence[Case], texts: Sequence[Sequence[str]]) -> str:
        """Return a hash of everything that a batch asks."""
        return content_key([[case, list(answers)] for case, answers in zip(cases, texts, strict=True)])

    def find(self, batch: str) -> Opinions | None:
        """Return a batch's opinions, None where it was not judged."""
        return self._known.get(batch)

    def add(self, batch: str, cases: Sequence[Case], texts: Sequence[Sequence[str]], opinions: Opinions) -> None:
        """Keep the opinions of one batch: all of them or, if the process is killed, none."""
        self._known[batch] = opinions
        told = [
            {"id": case.id, "texts": list(answers), "opinions": [opinion.plain() for opinion in found]}
            for case, answers, found in zip(cases, texts, opinions, strict=True)
        ]
        line = json.dumps({"batch": batch, "cases": told})  # ASCII: half a character of a stranger's text is no trouble
        with full_disk_is_an_error(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
