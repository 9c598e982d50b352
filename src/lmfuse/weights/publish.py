"""The folder that a merge is written in, and the step that makes a model of it.

As :func:`lmfuse.artefacts.publish` with ``resume``, and stricter, because what is written could be loaded by anybody: in the working
folder ``<name>.partial`` weights are called ``*.part``, and ``config.json`` gets its name after the manifest is there. So the folder
becomes complete and loadable in one step, a rename, and gets its own name by another. A journal says which tensors are on the disk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmfuse import __version__
from lmfuse.artefacts import MANIFEST, FileEntry, Manifest, is_complete, lock, read_manifest, verify
from lmfuse.disk import full_disk_is_an_error, is_temporary, sync, write_atomic
from lmfuse.errors import InputError, LmfuseError
from lmfuse.model_files import SINGLE
from lmfuse.weights.files import COPIED
from lmfuse.weights.layout import Shard

KIND = "merged model"
CONFIG = "config.json"
JOURNAL = "journal.jsonl"
WAITING = "config.part"  # what config.json is called until the manifest is written
AWAY = "move it away, or choose another place"
OURS = re.compile(  # what merges write, beside the files that they copy
    r"model(-\d{5}-of-\d{5})?\.(part|safetensors)|model\.safetensors\.index\.json|journal\.jsonl|config\.(part|json)|manifest\.json|README\.md"
)
_NOTHING: Mapping[str, Any] = {}


@dataclass
class Working:
    """A merge's working folder.

    Attributes:
        path: the folder.
        out: what it becomes.
        key: of the merge.
        shards: the weight files that are written in it.
        records: of tensors that an interrupted merge finished here.
        manifest: of the finished merge; there from the start if this merge was made before.
        told: what the reader should know of what was found here, in sentences.
    """

    path: Path
    out: Path
    key: str
    shards: Sequence[Shard]
    records: list[Mapping[str, Any]] = field(default_factory=list)
    manifest: Manifest | None = None
    told: list[str] = field(default_factory=list)

    def journal(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Record tensors that are on the disk."""
        with open(self.path / JOURNAL, "ab") as file:
            file.write(b"".join(_line(record) for record in records))
            file.flush()
            os.fsync(file.fileno())
        self.records += records

    def seal(
        self,
        weights: Mapping[str, FileEntry],
        files: Mapping[str, bytes],
        provenance: Mapping[str, Any],
        counters: Mapping[str, int],
    ) -> None:
        """Make a model of the folder.

        Args:
            weights: size and hash of each weight file.
            files: name and content of every other file.
            provenance: what it was made from, with ``plan``, the key.
            counters: fallbacks by name.
        """
        entries = dict(weights)
        for name, data in files.items():
            entries[name] = FileEntry(len(data), hashlib.sha256(data).hexdigest())
            _write(self.path / (WAITING if name == CONFIG else name), data)
        for shard in self.shards:
            os.rename(self.path / shard.part, self.path / shard.name)
        self.manifest = Manifest(KIND, self.out.name, dict(sorted(entries.items())), dict(provenance), dict(counters), __version__)
        text = json.dumps(dataclasses.asdict(self.manifest), sort_keys=True, indent=1, allow_nan=False)
        write_atomic(self.path / MANIFEST, (text + "\n").encode())
        os.rename(self.path / WAITING, self.path / CONFIG)
        sync(self.path)


@contextmanager
def working_folder(out: Path, key: str, shards: Sequence[Shard]) -> Iterator[Working]:
    """Give a folder to merge in; when the body has sealed it, it becomes ``out``.

    Bad input leaves nothing behind. Other failures, and ``kill -9``, leave the working folder if a tensor was finished, and the same
    merge goes on there; another merge to the same place removes it and says so, and one on another kind of processor or with other
    libraries, which round otherwise, does too. Only files of names that merges write are ever removed.

    Args:
        out: as ``place.resolved`` returns it.
        key: of the merge.
        shards: the weight files to write.

    Raises:
        BusyError: another process writes the same folder.
        InputError: ``out`` holds something else, or the working folder's place is taken.
        ResourceError: the disk is full.
        VerificationError: ``out`` is an artefact that is damaged.
    """
    refuse_taken(out, key, shards)
    partial = out.with_name(f"{out.name}.partial")
    working = Working(partial, out, key, shards)
    with full_disk_is_an_error(out), lock(partial):
        working.manifest = _made_before(out, key, shards) or _nearly_published(partial, out, key)
        if working.manifest is not None:
            yield working
            return
        working.records = _opened(working)
        try:
            yield working
            _publish(partial, out)
        except BaseException as error:
            if isinstance(error, InputError) or not working.records:
                with suppress(OSError):
                    _remove(partial)
            raise


def refuse_taken(out: Path, key: str, shards: Sequence[Shard]) -> None:
    """Refuse a place that holds something that this merge would have to replace; hashes are not compared.

    Raises:
        InputError: ``out`` or the working folder beside it holds something else.
        VerificationError: ``out`` is an artefact that is damaged.
    """
    _made_before(out, key, shards, quick=True)
    _refuse_foreign(out.with_name(f"{out.name}.partial"), out)


def _made_before(out: Path, key: str, shards: Sequence[Shard], *, quick: bool = False) -> Manifest | None:
    """Return the manifest of ``out`` if it is this merge's result, None if the place is free.

    Raises:
        InputError: it holds something else.
        VerificationError: it holds a damaged artefact.
    """
    if not out.exists() and not out.is_symlink():
        return None
    if not out.is_dir():
        raise InputError(f"{out} is no folder", "choose another place")
    if (out / MANIFEST).exists():
        manifest = read_manifest(out)
        if manifest.provenance.get("plan") != key:
            verify(out, quick=True)
        elif not quick:
            verify(out)
        if manifest.provenance.get("plan") == key:
            return manifest
        raise InputError(f"{out} holds another artefact ({manifest.kind})", "choose another place, or remove the folder")
    names = sorted(path.name for path in out.iterdir())
    if SINGLE in names and len(shards) > 1:
        raise InputError(
            f"{out} holds a {SINGLE}, which would be loaded in place of the {len(shards)} shards beside it", "choose an empty folder"
        )
    if names:
        raise InputError(f"{out} is not empty: it holds {names[0]}", "choose an empty folder")
    return None


def _nearly_published(partial: Path, out: Path, key: str) -> Manifest | None:
    """Publish what was complete when its process was killed, and return its manifest."""
    if not is_complete(partial):
        return None
    manifest = read_manifest(partial)
    if manifest.kind != KIND or manifest.provenance.get("plan") != key or manifest.key != out.name:
        return None
    _publish(partial, out)
    return manifest


def _opened(working: Working) -> list[Mapping[str, Any]]:
    """Create the working folder, or take up what an interrupted merge left in it; return the records of finished tensors.

    Raises:
        InputError: its place is taken by something that is not ours.
    """
    partial = working.path
    _refuse_foreign(partial, working.out)
    partial.mkdir(exist_ok=True)
    found = _read_journal(partial)
    first, *records = found or [_NOTHING]
    if not found:
        write_atomic(partial / JOURNAL, _line({"kind": KIND}))  # whatever kills us from here on, the folder is known as ours
    for name in (CONFIG, MANIFEST):
        (partial / name).unlink(missing_ok=True)
    mine = {"kind": KIND, "plan": working.key, "arithmetic": arithmetic()}
    if first != mine or not _parts_are_there(working):
        if records:
            whose = "another merge" if first.get("plan") != working.key else f"this merge by {first.get('arithmetic', 'another version')}"
            working.told.append(f"{len(records)} tensors that {whose} had finished in {partial.name} were thrown away")
        _remove(partial)
        partial.mkdir()
        records = []
    write_atomic(partial / JOURNAL, b"".join(_line(line) for line in (mine, *records)))
    return records


def arithmetic() -> str:
    """Return what decides how sums are rounded: the libraries, and which instructions of the processor they use.

    The same merge ends in the same bytes where this is the same.
    """
    return f"torch {torch.__version__}, numpy {np.__version__}, {torch.backends.cpu.get_cpu_capability()} on {platform.machine()}"


def _refuse_foreign(partial: Path, out: Path) -> None:
    """Raise InputError if the working folder's place is taken by anything that no merge has written."""
    taken = f"{partial} is needed to write {out} and"
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise InputError(f"{taken} is {'a link' if partial.is_symlink() else 'no folder'}", AWAY)
    if not partial.exists():
        return
    names = sorted(path.name for path in partial.iterdir() if not is_temporary(path))
    ours = not names or KIND in (_kind(partial), *(line.get("kind") for line in _read_journal(partial)[:1]))
    foreign = [name for name in names if not (OURS.fullmatch(name) or name in COPIED)]
    if foreign or not ours:
        raise InputError(f"{taken} holds something else ({(foreign or names)[0]})", AWAY)


def _remove(partial: Path) -> None:
    """Remove a working folder, the journal last: a folder that is half removed is still known as ours; what is not ours stays."""
    for path in partial.iterdir():
        if path.name != JOURNAL and (OURS.fullmatch(path.name) or path.name in COPIED or is_temporary(path)):
            path.unlink()
    (partial / JOURNAL).unlink(missing_ok=True)
    partial.rmdir()


def _parts_are_there(working: Working) -> bool:
    """Give shards that were renamed already their working names again; return whether all are there in their full size."""
    for shard in working.shards:
        if (working.path / shard.name).exists():
            os.rename(working.path / shard.name, working.path / shard.part)
    parts = [working.path / shard.part for shard in working.shards]
    return all(path.is_file() and path.stat().st_size == shard.num_bytes for path, shard in zip(parts, working.shards, strict=True))


def _read_journal(folder: Path) -> list[Mapping[str, Any]]:
    """Return the journal's lines up to the first that was not written to its end."""
    found: list[Mapping[str, Any]] = []
    with suppress(OSError, ValueError):
        for line in (folder / JOURNAL).read_bytes().splitlines(keepends=True):
            value = json.loads(line) if line.endswith(b"\n") else None
            if not isinstance(value, dict):
                break
            found.append(value)
    return found


def _kind(folder: Path) -> str:
    with suppress(LmfuseError):
        return read_manifest(folder).kind
    return ""


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _publish(partial: Path, out: Path) -> None:
    """Remove what of ours the manifest does not name, and rename the folder into its place."""
    keep = {*read_manifest(partial).files, MANIFEST}
    for path in partial.iterdir():
        if path.name not in keep and (OURS.fullmatch(path.name) or path.name in COPIED or is_temporary(path)):
            path.unlink()
    sync(partial)
    try:
        os.rename(partial, out)
    except OSError as reason:  # somebody put something there meanwhile
        raise LmfuseError(f"{out} cannot be written: {reason.strerror}", f"the finished merge is {partial}: rename it") from reason
    sync(out.parent)
