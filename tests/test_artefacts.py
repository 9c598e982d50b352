"""Artefacts: names by content, manifests that are checked, one writer, nothing half published."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.dataclasses import dataclass as validated

from lmfuse.artefacts import content_key, is_complete, lock, publish, read_manifest, verify, write_atomic
from lmfuse.disk import full_disk_is_an_error
from lmfuse.errors import BusyError, ResourceError, VerificationError


def make(final: Path, content: str = "hello", **options: bool) -> Path:
    with publish(final, kind="test", **options) as publication:
        (publication.path / "a").mkdir(exist_ok=True)
        (publication.path / "a" / "b.txt").write_text(content)
        (publication.path / "c.bin").write_bytes(bytes(range(256)))
        publication.counters["skipped"] = 2
        publication.provenance["inputs"] = ["x", "y"]
    return final


def fail_half_way(final: Path, *, resume: bool) -> None:
    with pytest.raises(KeyError), publish(final, kind="test", resume=resume) as publication:  # noqa: PT012
        (publication.path / "checkpoints").mkdir()
        (publication.path / "checkpoints" / "1").write_text("half way")
        raise KeyError


# ------------------------------------------------------------------------------------------------------------- content_key


@validated(frozen=True)
class Method:
    name: Literal["m"] = "m"
    weight: float = 1


@dataclass
class Plain:
    a: tuple[int, ...]
    secret: int = field(default=0, init=False)


class Model(BaseModel):
    method: Method = Method()
    note: str | None = None


def test_a_key_is_the_hash_of_canonical_json():
    text = '{"a":[1,2.5,true,null],"b":"\\u00e9"}'
    assert content_key({"b": "é", "a": (1, 2.5, True, None)}) == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_dataclasses_and_models_count_with_their_fields():
    assert content_key(Method(weight=1)) == content_key({"name": "m", "weight": 1.0})
    assert content_key(Plain((1, 2))) == content_key({"a": [1, 2]})
    assert content_key(Method()) == content_key(Method(weight=1))  # a default written as 1 and a validated 1.0 are one setting
    assert content_key(Model()) == content_key({"method": {"name": "m", "weight": 1.0}, "note": None})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_a_key_survives_json_and_the_order_of_keys(value):
    again = json.loads(json.dumps(value))
    shuffled = dict(reversed(again.items())) if isinstance(again, dict) else again
    assert content_key(value) == content_key(shuffled)


def test_a_key_is_the_same_in_another_process():
    code = "from lmfuse.artefacts import content_key; print(content_key({'b': 0.1, 'a': ['é', 3]}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert run.stdout.strip() == content_key({"a": ["é", 3], "b": 0.1})


@pytest.mark.parametrize("value", [{"x": Path("/a")}, {1: 2}, float("nan"), float("inf"), {3}, b"x", np.float32(1), Method], ids=str)
def test_what_has_no_canonical_form_is_refused_and_named(value):
    with pytest.raises(TypeError, match="value"):
        content_key(value)


# ----------------------------------------------------------------------------------------------------------------- publish


def test_a_publication_is_whole_and_its_manifest_can_be_checked_by_hand(tmp_path):
    final = make(tmp_path / "deep" / "key")
    manifest = json.loads((final / "manifest.json").read_text())
    assert manifest["files"] == {
        "a/b.txt": {"size": 5, "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"},
        "c.bin": {"size": 256, "sha256": hashlib.sha256(bytes(range(256))).hexdigest()},
    }
    assert (manifest["schema"], manifest["kind"], manifest["key"]) == (1, "test", "key")
    assert manifest["counters"] == {"skipped": 2}
    assert manifest["provenance"] == {"inputs": ["x", "y"]}
    assert sorted(path.name for path in final.parent.iterdir()) == ["key"]  # no lock, no temporary folder
    assert verify(final) == read_manifest(final)
    assert is_complete(final)


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed: set[int] = set()
    flush, rename = os.fsync, os.rename

    def remembered_fsync(handle: int) -> None:
        flushed.add(os.fstat(handle).st_ino)
        flush(handle)

    def checked_rename(source: Path, target: Path) -> None:
        assert flushed >= {path.stat().st_ino for path in (source, *source.rglob("*"))}
        flushed.clear()
        rename(source, target)

    monkeypatch.setattr(os, "fsync", remembered_fsync)
    monkeypatch.setattr(os, "rename", checked_rename)
    make(tmp_path / "key")
    assert flushed == {tmp_path.stat().st_ino}


@pytest.mark.parametrize("resume", [False, True])
def test_equal_work_gives_equal_bytes(tmp_path, resume):
    one, two = make(tmp_path / "1" / "key", resume=resume), make(tmp_path / "2" / "key")
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()


def test_numpy_counters_become_numbers(tmp_path):
    with publish(tmp_path / "key", kind="test") as publication:
        publication.counters |= {"int": np.int64(3), "float": np.float32(0.5), "bool": True}
    assert read_manifest(tmp_path / "key").counters == {"int": 3, "float": 0.5, "bool": 1}


def test_an_error_publishes_nothing_and_leaves_nothing(tmp_path):
    fail_half_way(tmp_path / "key", resume=False)
    assert list(tmp_path.iterdir()) == []


def test_a_complete_artefact_is_never_overwritten(tmp_path):
    final = make(tmp_path / "key")
    with publish(final, kind="test") as publication:
        assert publication.reused
        (publication.path / "c.bin").write_bytes(b"other")
    assert verify(final).files["c.bin"].size == 256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key"]


def test_the_loser_of_a_race_discards(tmp_path):
    with publish(tmp_path / "key", kind="test") as slow:
        make(tmp_path / "key", "fast")
        (slow.path / "c.bin").write_bytes(b"slow")
        assert not slow.reused
    assert (tmp_path / "key" / "a" / "b.txt").read_text() == "fast"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key"]


def test_an_empty_folder_may_be_replaced_but_not_somebodys_data(tmp_path):
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years")
    with pytest.raises(VerificationError, match="no complete artefact"), publish(tmp_path / "thesis", kind="test"):
        pytest.fail("refused before any work is done")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years"


def test_links_are_not_published(tmp_path):
    with pytest.raises(VerificationError, match="plain files"), publish(tmp_path / "key", kind="test") as publication:
        (publication.path / "passwd").symlink_to("/etc/passwd")


# ------------------------------------------------------------------------------------------------------------------ resume


def test_a_resumable_publication_keeps_its_pieces_and_drops_what_only_served_the_way(tmp_path):
    final = tmp_path / "key"
    fail_half_way(final, resume=True)
    assert not final.exists()
    with publish(final, kind="test", resume=True) as publication:
        assert (publication.path / "checkpoints" / "1").read_text() == "half way"
        (publication.path / "model").write_text("done")
        publication.drop("checkpoints/")
    assert list(verify(final).files) == ["model"]
    assert sorted(path.name for path in final.iterdir()) == ["manifest.json", "model"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key"]


def test_a_kill_between_manifest_and_rename_costs_no_work_even_if_the_checkpoints_are_gone(tmp_path, monkeypatch):
    final = tmp_path / "key"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt), publish(final, kind="test", resume=True) as publication:  # noqa: PT012
        (publication.path / "model").write_text("hours of work")
        (publication.path / "checkpoint").write_text("x")
        publication.drop("checkpoint")
    monkeypatch.undo()
    assert not final.exists()
    with publish(final, kind="test", resume=True) as publication:
        assert publication.reused
    assert (final / "model").read_text() == "hours of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key"]


def test_a_resumable_publication_has_one_writer(tmp_path):
    with publish(tmp_path / "key", kind="test", resume=True) as publication:
        with pytest.raises(BusyError, match=f"process {os.getpid()}"), publish(tmp_path / "key", kind="test", resume=True):
            pass
        (publication.path / "x").write_text("x")
    assert is_complete(tmp_path / "key")


def test_what_a_killed_writer_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    child = os.fork()
    if child == 0:
        with publish(tmp_path / "key", kind="test"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 1
    with publish(tmp_path / "key", kind="test"):
        make(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


# ------------------------------------------------------------------------------------------------------------------ verify


def test_every_flipped_byte_is_found(tmp_path):
    final = make(tmp_path / "key")
    for position in (0, 100, 255):
        data = bytearray(range(256))
        data[position] ^= 1
        (final / "c.bin").write_bytes(data)
        assert is_complete(final)  # by its sizes
        with pytest.raises(VerificationError, match=r"c\.bin: sha256 [0-9a-f]{64}, the manifest promises [0-9a-f]{64}"):
            verify(final)


def test_a_missing_or_shorter_or_linked_file_is_found(tmp_path):
    final = make(tmp_path / "key")
    (final / "c.bin").write_bytes(b"short")
    with pytest.raises(VerificationError, match=r"c\.bin: 5 bytes, the manifest promises 256"):
        verify(final, quick=True)
    (final / "c.bin").unlink()
    with pytest.raises(VerificationError, match=r"c\.bin: missing"):
        verify(final)
    (tmp_path / "elsewhere").write_bytes(bytes(range(256)))
    (final / "c.bin").symlink_to(tmp_path / "elsewhere")
    assert not is_complete(final)


def entry_named(name: str) -> dict[str, object]:
    return {"files": {name: {"size": 0, "sha256": "0" * 64}}}


@pytest.mark.parametrize(
    "change",
    [
        *(
            entry_named(name)
            for name in ("../x", "/etc/passwd", "a/../../x", "a\\..\\x", "C:x", "", ".", "a//b", "a/", "x\0y", "manifest.json")
        ),
        {"files": {"x": {"size": -1, "sha256": "0" * 64}}},
        {"files": {"x": {"size": 1, "sha256": "zz"}}},
        {"files": {"x": {"size": "1", "sha256": "0" * 64}}},
        {"schema": 2},
        {"kind": None},
        {"more": 1},
        {"counters": {"x": "many"}},
    ],
    ids=str,
)
def test_a_malformed_manifest_is_refused(tmp_path, change):
    final = make(tmp_path / "key")
    good = json.loads((final / "manifest.json").read_text())
    (final / "manifest.json").write_text(json.dumps(good | change))
    with pytest.raises(VerificationError, match="malformed"):
        read_manifest(final)
    assert not is_complete(final)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"schema":1'])
def test_a_broken_manifest_is_refused(tmp_path, data):
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(VerificationError, match="malformed"):
        read_manifest(tmp_path)


# -------------------------------------------------------------------------------------------------------------------- lock


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with lock(tmp_path / "run"):
            os.write(writing, b"x")
            signal.pause()
    os.read(reading, 1)
    with pytest.raises(BusyError, match=rf"run is being written by process {child}$"), lock(tmp_path / "run"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with lock(tmp_path / "run"):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_only_one_of_many_holds_a_lock(tmp_path):
    """Eight processes add 1 to a file under the lock, 25 times each: no addition is lost."""
    (tmp_path / "count").write_text("0")
    children = []
    for _ in range(8):
        children.append(os.fork())
        if children[-1] == 0:
            done = 0
            while done < 25:
                try:
                    with lock(tmp_path / "run"):
                        (tmp_path / "count").write_text(str(int((tmp_path / "count").read_text()) + 1))
                        done += 1
                except BusyError:
                    pass
            os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert (tmp_path / "count").read_text() == "200"


# --------------------------------------------------------------------------------------------------------------- full disk


def test_write_atomic_replaces_or_leaves(tmp_path, monkeypatch):
    write_atomic(tmp_path / "x", b"old")
    write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"no space left while writing .*x \(\d+\.\d\d GiB free"):
        write_atomic(tmp_path / "x", b"newer")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"new")]


def test_a_real_file_size_limit_is_a_resource_error(tmp_path):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with publish(tmp_path / "key", kind="test") as publication:
                (publication.path / "big").write_bytes(bytes(2000))
        except ResourceError as error:
            os._exit(0 if "no space left" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_any_flush_publishes_nothing(tmp_path, monkeypatch):
    true_fsync = os.fsync
    for point in range(20):
        calls = iter(range(1000))

        def fsync(handle: int, calls: object = calls, point: int = point) -> None:
            if next(calls) == point:
                raise OSError(errno.EDQUOT, "Disk quota exceeded")
            true_fsync(handle)

        monkeypatch.setattr(os, "fsync", fsync)
        try:
            make(tmp_path / str(point))
        except ResourceError:
            assert not (tmp_path / str(point)).exists() or is_complete(tmp_path / str(point))
        else:
            break
    assert point > 5
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_words_of_libraries_that_hide_the_number_are_understood(tmp_path):
    with pytest.raises(ResourceError), full_disk_is_an_error(tmp_path / "not" / "there"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(ResourceError), full_disk_is_an_error(tmp_path):
        raise RuntimeError("writer failed") from OSError(errno.ENOSPC, "x")
    with pytest.raises(ValueError, match="os"), full_disk_is_an_error(tmp_path):
        raise ValueError("os error 280")
