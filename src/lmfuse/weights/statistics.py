"""Statistics of models on disk, handed to a merge method tensor by tensor: what it does not ask for is not read."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from lmfuse.artefacts import Manifest, content_key, verify
from lmfuse.errors import InputError
from lmfuse.merge.family import About, Combine, Look, Merge
from lmfuse.merge.informed import Informed, Kind
from lmfuse.weights.plan import OpenedModel

ARTEFACT = "statistics"


@dataclass(frozen=True)
class StatisticsFolder:
    """What ``lmfuse statistics`` wrote of one model.

    Attributes:
        path: the folder.
        key: a hash of its files.
        kind: of the statistics.
        model: the key of the model that they are of.
    """

    path: Path
    key: str
    kind: Kind
    model: str

    @classmethod
    def open(cls, path: Path) -> StatisticsFolder:
        """Return a folder whose files are what its manifest says.

        Raises:
            InputError: it holds something else.
            VerificationError: it is incomplete or damaged.
        """
        manifest: Manifest = verify(path)
        if manifest.kind != ARTEFACT:
            raise InputError(f"{path} holds {manifest.kind}, expected statistics", "make them with `lmfuse statistics`")
        hashes = {name: entry.sha256 for name, entry in manifest.files.items()}
        return cls(path, content_key(hashes), manifest.provenance["kind"], manifest.provenance["model"])

    @cached_property
    def files(self) -> dict[str, Path]:
        """Return in which file each tensor lies."""
        found: dict[str, Path] = {}
        for path in sorted(self.path.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        return found

    def tensor(self, name: str) -> Float[Tensor, "..."] | None:
        """Return the statistic of a tensor, mapped from the file, or None where there is none."""
        if name not in self.files:
            return None
        with safe_open(self.files[name], "pt") as file:
            found: Tensor = file.get_tensor(name)
        return found


@dataclass(frozen=True)
class WithStatistics(Merge):
    """A method, and the statistics that it asks for.

    Attributes:
        inner: the method.
        keys: of the statistics, one for each source: part of what decides the result.
        folders: the statistics; where they lie decides nothing.
    """

    inner: Informed
    keys: tuple[str, ...] = ()
    folders: tuple[StatisticsFolder, ...] = field(default=(), init=False, compare=False, repr=False)

    @classmethod
    def of(cls, inner: Informed, folders: Sequence[StatisticsFolder]) -> WithStatistics:
        """Return the method with statistics."""
        made = cls(inner, tuple(folder.key for folder in folders))
        object.__setattr__(made, "folders", tuple(folders))
        return made

    @property
    def needs_rows(self) -> bool:  # type: ignore[override]
        """Return what the method needs."""
        return self.inner.needs_rows

    def check(self, num_sources: int, has_base: bool) -> None:
        """Raise ValueError where there are not as many statistics as sources."""
        self.inner.check_sources(num_sources, has_base)
        if num_sources != len(self.keys):
            raise ValueError(f"statistics: {len(self.keys)}, expected those of each of {num_sources} sources")

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit."""
        return self.inner.begin(about, self._of_tensor)

    def _of_tensor(self, name: str) -> list[Tensor] | None:
        """Return the statistics of all sources for a tensor; None where one has none."""
        found = [folder.tensor(name) for folder in self.folders]
        return None if any(each is None for each in found) else [each for each in found if each is not None]


def open_statistics(paths: Sequence[Path], method: Informed, sources: Sequence[OpenedModel]) -> tuple[StatisticsFolder, ...]:
    """Open the statistics of some sources, in their order.

    Raises:
        InputError: of another kind than the method's, of another model, or not one for each.
        VerificationError: a folder is incomplete or damaged.
    """
    name = getattr(method, "name", "")
    if len(paths) != len(sources):
        raise InputError(f"statistics: {len(paths)} folders for {len(sources)} sources", "one for each, in the order of `models`")
    found = tuple(map(StatisticsFolder.open, paths))
    for folder, source in zip(found, sources, strict=True):
        if folder.kind != method.kind:
            raise InputError(f"statistics: {folder.path} is of kind {folder.kind}, {name} asks for {method.kind}", "collect the others")
        if folder.model != source.key:
            raise InputError(
                f"statistics: {folder.path} is not of {source.label}",
                "the order is that of `models`; collect them again if weights changed",
            )
    return found
