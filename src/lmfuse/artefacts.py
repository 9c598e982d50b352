"""Folders on disk that are either whole or not there at all.

An artefact is a folder with a ``manifest.json``: the size and SHA-256 of every file, what it was made from (provenance), and what
was skipped, capped or replaced on the way (counters). It is written under another name beside its place and renamed into it as the
last step, so that a crash, a full disk or a kill leaves either the whole artefact or none. Its name is a :func:`content_key` of
everything that can change it; its manifest holds no time, host or absolute path, so that equal work gives equal bytes.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import field
from glob import escape
from numbers import Integral
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from lmfuse.disk import full_disk_is_an_error as full_disk_is_an_error
from lmfuse.disk import is_temporary, sync
from lmfuse.disk import write_atomic as write_atomic
from lmfuse.errors import VerificationError
from lmfuse.locks import alive, machine
from lmfuse.locks import lock as lock

MANIFEST = "manifest.json"
_STRICT = ConfigDict(extra="forbid", strict=True)


def content_key(value: Any) -> str:
    """Return 32 hex digits of the SHA-256 of a value's canonical JSON: keys sorted, tuples as lists, floats by ``repr``, ``1.0`` as ``1``.

    Accepts None, bool, int, finite float, str, lists, dicts with string keys, and dataclasses and pydantic models (their fields that
    are given at construction; the class's name is no part of it).

    Raises:
        TypeError: anything else; a path above all, because where a file lies says nothing about what it holds.

    >>> content_key({"k": 16, "sources": ["a", "b"]}) == content_key({"sources": ("a", "b"), "k": 16})
    True
    """
    return hashlib.sha256(_json(value).encode()).hexdigest()[:32]


def _json(value: Any, *, indent: int | None = None) -> str:
    separators = (",", ": ") if indent else (",", ":")
    return json.dumps(_plain(value, "value"), sort_keys=True, separators=separators, indent=indent, allow_nan=False)


def _plain(value: Any, where: str) -> Any:
    """Return the value as JSON types, or raise TypeError that says where the culprit stands."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float and math.isfinite(value):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value) if f.init}
    if hasattr(type(value), "model_fields"):
        return {name: _plain(getattr(value, name), f"{where}.{name}") for name in type(value).model_fields}
    reason = "a path says nothing about content" if isinstance(value, PurePath) else "not plain finite data with string keys"
    raise TypeError(f"{where}: {value!r:.80} ({type(value).__name__}): {reason}")


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name in (".", MANIFEST) or re.search(r"[\\\x00-\x1f]|^\w:", name):
        raise ValueError("a file name must stay inside its folder")
    return name


@dataclass(frozen=True, config=_STRICT)
class FileEntry:
    """What a manifest promises of one file: its size in bytes and the 64 hex digits of its SHA-256."""

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=_STRICT)
class Manifest:
    """The last file of an artefact. ``key`` is the folder's name at publication, ``files`` are relative names with ``/``."""

    kind: str
    key: str
    files: dict[Annotated[str, AfterValidator(_inside)], FileEntry]
    provenance: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, int | float] = field(default_factory=dict)
    lmfuse: str = ""
    schema: Literal[1] = 1


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an artefact, without looking at its files.

    Raises:
        VerificationError: there is none, or it is malformed, or it names a file outside its folder.
    """
    path = folder / MANIFEST
    try:
        return TypeAdapter(Manifest).validate_json(path.read_bytes())
    except OSError as error:
        raise VerificationError(f"{folder}: no complete artefact: {path.name}: {error.strerror}", hint="run the stage again") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VerificationError(f"{path}: malformed: {where}{': ' if where else ''}{first['msg']}", hint=_REMOVE.format(folder)) from None


def verify(folder: Path, *, quick: bool = False) -> Manifest:
    """Compare every file of an artefact with its manifest: size and SHA-256, or sizes only with ``quick``.

    Files that the manifest does not name are not looked at: nobody reads them.

    Raises:
        VerificationError: names the first file that is missing, a link, or different, and both sizes or hashes.
    """
    manifest = read_manifest(folder)
    for name, entry in sorted(manifest.files.items()):
        path = folder / name
        if not path.is_file() or any(part.is_symlink() for part in (path, *path.parents[: name.count("/")])):
            raise VerificationError(f"{path}: missing, or not a plain file", hint=_REMOVE.format(folder))
        if (size := path.stat().st_size) != entry.size:
            raise VerificationError(f"{path}: {size} bytes, the manifest promises {entry.size}", hint=_REMOVE.format(folder))
        if not quick and (digest := _sha256(path)) != entry.sha256:
            raise VerificationError(f"{path}: sha256 {digest}, the manifest promises {entry.sha256}", hint=_REMOVE.format(folder))
    return manifest


_REMOVE = "remove the folder {} and run again: it will be made anew"


def is_complete(folder: Path) -> bool:
    """Return whether a folder holds a whole artefact: a well-formed manifest, and every file in its promised size."""
    try:
        verify(folder, quick=True)
    except VerificationError:
        return False
    return True


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass
class Publication:
    """An artefact that is being written.

    Attributes:
        path: the folder to write in.
        counters: every skip, cap and fallback, by name; they go into the manifest.
        provenance: what the artefact was made from, as JSON types; no times, hosts or absolute paths.
        reused: the artefact was complete already: there is nothing to do, and what is written to ``path`` is thrown away.
    """

    path: Path
    counters: dict[str, int | float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    reused: bool = False
    _dropped: list[str] = field(default_factory=list)

    def drop(self, *names: str) -> None:
        """Leave files or folders (relative names) out of the artefact: they served the way there, such as checkpoints."""
        self._dropped += [_inside(name.rstrip("/")) for name in names]


@contextmanager
def publish(final: Path, *, kind: str, resume: bool = False) -> Iterator[Publication]:
    """Write an artefact: the body fills ``publication.path``, and on success it becomes ``final`` in one step.

    If the body raises, nothing is published. Its files are then removed, unless ``resume``: those are written to the sibling
    ``<name>.partial``, which outlives errors and ``kill -9``, and the next ``publish(..., resume=True)`` finds them there. Counters
    and provenance are not kept: a body that resumes sets them as one that was never interrupted. A complete ``final`` is never
    overwritten: whoever comes second discards its own (and sees ``publication.reused`` if it comes late enough).

    Raises:
        BusyError: with ``resume``, another process is writing the same artefact.
        ResourceError: the disk is full.
        VerificationError: ``final`` exists and is no complete artefact; it may be somebody's data, so it is left alone.
    """
    _refuse_foreign(final)
    with full_disk_is_an_error(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        if resume:
            partial = final.with_name(f"{final.name}.partial")
            with lock(partial):
                if is_complete(partial) and not is_complete(final):  # killed between the manifest and the rename: only that is left to do
                    _discard_unlisted(partial)
                    _move(partial, final)
                yield from _published(final, partial, kind, keep=True)
        else:
            mine = f".{final.name}.{machine()}-{os.getpid()}.{secrets.token_hex(4)}.tmp"
            yield from _published(final, final.with_name(mine), kind, keep=False)


def _published(final: Path, working: Path, kind: str, *, keep: bool) -> Iterator[Publication]:
    reused = is_complete(final)
    if reused and keep:
        shutil.rmtree(working, ignore_errors=True)
    working.mkdir(exist_ok=keep)
    publication = Publication(working, reused=reused)
    try:
        yield publication
        if reused or is_complete(final):
            shutil.rmtree(working)
            return
        _seal(publication, final.name, kind)
        _move(working, final)
    except BaseException:
        if not keep or reused:
            shutil.rmtree(working, ignore_errors=True)
        raise


def _seal(publication: Publication, key: str, kind: str) -> None:
    """Flush everything, write the manifest, then remove what was dropped: a kill in between loses neither."""
    from lmfuse import __version__  # here, because the package's own names may come from this module

    folder, dropped = publication.path, tuple(publication._dropped)
    entries: dict[str, FileEntry] = {}
    for place, folders, names in os.walk(folder, topdown=False):
        for path in (Path(place, name) for name in sorted(names + folders)):
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise VerificationError(f"{path}: an artefact holds plain files only", hint="copy the file instead of linking it")
            dropping = any(f"{relative}/".startswith(f"{name}/") for name in dropped)
            if path.is_dir() or relative == MANIFEST or dropping or is_temporary(path):
                continue
            sync(path)
            entries[_inside(relative)] = FileEntry(path.stat().st_size, _sha256(path))
        sync(Path(place))
    counters = {name: int(n) if isinstance(n, Integral) else float(n) for name, n in publication.counters.items()}
    manifest = Manifest(kind, key, entries, publication.provenance, counters, __version__)
    write_atomic(folder / MANIFEST, (_json(manifest, indent=1) + "\n").encode())
    _discard_unlisted(folder)


def _discard_unlisted(folder: Path) -> None:
    """Remove what the manifest does not name, and folders that are empty then."""
    keep = {*read_manifest(folder).files, MANIFEST}
    for place, folders, names in os.walk(folder, topdown=False):
        for path in (Path(place, name) for name in names):
            if path.relative_to(folder).as_posix() not in keep:
                path.unlink()
        for path in (Path(place, name) for name in folders):
            with suppress(OSError):  # not empty
                path.rmdir()
    sync(folder)


def _move(working: Path, final: Path) -> None:
    """Rename into place; the loser of a race discards its work."""
    try:
        os.rename(working, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _refuse_foreign(final)
        shutil.rmtree(working)
    sync(final.parent)


def _refuse_foreign(final: Path) -> None:
    """Raise if something stands at an artefact's place that is no artefact; an empty folder may be replaced."""
    if final.is_dir() and (not any(final.iterdir()) or is_complete(final)):
        return
    if final.exists() or final.is_symlink():
        verify(final, quick=True)  # says what is wrong with it


def _sweep(final: Path) -> None:
    """Remove what killed writers of the same artefact left, if they ran on this machine and are gone."""
    for path in final.parent.glob(f".{escape(final.name)}.{machine()}-*.tmp"):
        pid = re.fullmatch(r".*-(\d+)\.[0-9a-f]{8}\.tmp", path.name)
        if pid and not alive(int(pid[1])):
            shutil.rmtree(path, ignore_errors=True)
