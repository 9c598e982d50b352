"""One writer per folder, and who that is."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lmfuse.errors import BusyError, InputError


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Be the only writer of a folder, by an exclusive ``flock`` on its sibling ``<name>.lock``.

    The kernel gives the lock back when the process ends in whatever way, so no lock is ever stale: neither after ``kill -9`` nor
    after a power cut. (A child forked without ``exec`` holds it on until it ends too.) Between hosts it holds on NFS version 3 and 4
    and on cluster file systems with locks switched on; a file system without locks is an error, not a guess. The file names
    holder, host and boot for people and is removed at the end.

    Raises:
        BusyError: another process holds it; names the pid.
        InputError: the file system has no locks, or what stands in the lock's place is no file that may be written.
    """
    path = folder.with_name(f"{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _acquire(path, folder)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "boot": _boot_id()}).encode(), 0)
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while we hold it: whoever waits on this file sees below that it lost its name
        os.close(handle)


def _acquire(path: Path, folder: Path) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:  # a link, a folder, or no right to write there
            raise InputError(
                f"{path}: cannot be opened for writing ({error.strerror})", hint="remove it, or choose another folder"
            ) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:
            pass  # the holder removed it between our open and our look: try the new one
        except BlockingIOError:
            holder = _holder(handle)
            os.close(handle)
            raise BusyError(f"{folder} is being written by {holder}", hint="wait for it to finish, or stop it") from None
        except OSError as error:
            os.close(handle)
            raise InputError(f"{path}: this file system has no locks ({error.strerror})", hint="choose a folder on a local disk") from None
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
        where = "" if holder["host"] == socket.gethostname() else f" on {holder['host']}"
        return f"process {holder['pid']}{where}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def machine() -> str:
    """Return 8 hex digits for this host, boot and process namespace: within it a pid names one process."""
    parts = [socket.gethostname(), _boot_id()]
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def alive(pid: int) -> bool:
    """Return whether a process with this pid runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
