"""Whether a merged model can be written where it is wanted, judged before anything is read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lmfuse.errors import InputError, ResourceError

ELSEWHERE = "choose another place"


def resolved(out: Path) -> Path:
    """Return the folder that a merge becomes: ``~`` and links followed, so that a link to an empty folder means that folder.

    Raises:
        InputError: it is no place that a finished folder can be renamed to, or one that nobody may write to.
    """
    try:
        if out.is_symlink() and not out.exists():
            raise InputError(f"{out} is no folder, but a link to nothing", "remove the link, or choose another place")
        place = out.expanduser().resolve()
        if os.path.ismount(place) or not place.name:
            raise InputError(f"{out} is where a disk begins, and a finished folder cannot be renamed to it", "name a folder in it")
        if place == Path.cwd():
            raise InputError(f"{out} is the folder that you are in, and it would be replaced", "name a folder in it, or start elsewhere")
        if place.exists() and not place.is_dir():
            raise InputError(f"{out} is no folder", ELSEWHERE)
        place.with_name(f"{place.name}.partial.lock").exists()  # whether the longest name is too long
    except (OSError, RuntimeError) as reason:
        raise InputError(f"{out} cannot be written: {getattr(reason, 'strerror', None) or reason}", ELSEWHERE) from reason
    above = nearest(place.parent)
    if not above.is_dir():
        raise InputError(f"{out} cannot be written: {above} is no folder", ELSEWHERE)
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{out} cannot be written: you may not write to {above}", ELSEWHERE)
    return place


def refuse_too_little_room(out: Path, num_bytes: int) -> None:
    """Raise ResourceError if the disk of a folder has not so many bytes free."""
    free = shutil.disk_usage(nearest(out)).free
    if free < num_bytes:
        raise ResourceError(
            f"{out} needs {num_bytes / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free there",
            "free some space, or choose a folder on another disk",
        )


def nearest(path: Path) -> Path:
    """Return the first of a path and the folders above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())
