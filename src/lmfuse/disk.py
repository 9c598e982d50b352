"""Writing so that it lasts, and saying so when the disk is full."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lmfuse.errors import ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_WORDS = re.compile(r"no space left on device|disk quota exceeded|file too large|os error (28|122|27)\b", re.IGNORECASE)


@contextmanager
def full_disk_is_an_error(path: Path) -> Iterator[None]:
    """Turn a full disk or quota, met by us or inside a library, into a ``ResourceError`` that says how much is free at ``path``."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        place = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
        free = shutil.disk_usage(place).free / 2**30
        message = f"no space left while writing {path} ({free:.2f} GiB free there: disk, quota or file size limit)"
        raise ResourceError(message, hint="free some space, or choose a folder on another disk") from error


def is_full(error: BaseException | None) -> bool:
    """Return whether an exception, or one that led to it, speaks of a full disk (safetensors and torch have only words for it)."""
    while error is not None:
        if isinstance(error, ResourceError):
            return False
        if getattr(error, "errno", None) in _FULL or (not isinstance(error, OSError) and _FULL_WORDS.search(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers, and the disk after a crash, see either the old content or the whole new one.

    Raises:
        ResourceError: no space left; the old content stays.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    with full_disk_is_an_error(path):
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():  # some file systems cannot flush a folder
            raise
    finally:
        os.close(handle)


def is_temporary(path: Path) -> bool:
    """Return whether a file is what :func:`write_atomic` leaves behind when it is killed."""
    return re.fullmatch(r"\..*\.[0-9a-f]{8}\.tmp", path.name) is not None
