"""``kill -9`` at every system call of a publication: nothing half, and the same command again ends in the same bytes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from lmfuse.artefacts import is_complete, publish, verify, write_atomic

TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def work(final: Path, *, resume: bool) -> None:
    """Write three pieces, each kept once it is there, and a checkpoint that is dropped at the end; what collecting and training do."""
    with publish(final, kind="test", resume=resume) as publication:
        if publication.reused:
            return
        (publication.path / "checkpoints").mkdir(exist_ok=True)
        for piece in range(3):
            if not (publication.path / f"{piece}.bin").exists():
                write_atomic(publication.path / f"{piece}.bin", bytes([piece]) * 1000)
                write_atomic(publication.path / "checkpoints" / "last", bytes([piece]))
        publication.counters["pieces"] = 3
        publication.drop("checkpoints")


def killed_at(point: int, final: Path, *, resume: bool) -> bool:
    """Do the work in a child that is killed just before its ``point``-th touch of the file system; return whether it was."""
    child = os.fork()
    if child == 0:
        seen = iter(range(point))
        real_fsync = os.fsync

        def touch() -> None:
            if next(seen, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        def fsync(handle: int) -> None:
            touch()
            real_fsync(handle)

        os.fsync = fsync
        sys.addaudithook(lambda event, _: touch() if event in TOUCHES else None)
        work(final, resume=resume)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resume", [False, True])
def test_killed_anywhere_then_run_again(tmp_path, resume):
    work(tmp_path / "undisturbed" / "key", resume=resume)
    expected = contents(tmp_path / "undisturbed")
    assert sorted(expected) == ["key/0.bin", "key/1.bin", "key/2.bin", "key/manifest.json"]
    for point in range(1000):
        final = tmp_path / str(point) / "key"
        if not killed_at(point, final, resume=resume):
            break
        if final.exists():
            verify(final)
        else:
            assert not is_complete(final)
        work(final, resume=resume)
        verify(final)
        found = contents(final.parent)
        assert found == expected, f"after a kill at touch {point}"
    assert point > 30


def test_killed_again_and_again(tmp_path):
    """One run that dies at a later and later point, as on a machine that is taken away every few minutes."""
    work(tmp_path / "undisturbed" / "key", resume=True)
    final = tmp_path / "run" / "key"
    point = 8
    while killed_at(point, final, resume=True):
        point += 1
    assert contents(tmp_path / "run") == contents(tmp_path / "undisturbed")
