"""Places for a result: what can be renamed to, what is followed, what is refused before anything is read."""

import os
import shutil

import pytest

from lmfuse.artefacts import verify
from lmfuse.errors import InputError, ResourceError
from lmfuse.merge.linear import Linear
from lmfuse.weights.engine import execute
from lmfuse.weights.place import refuse_too_little_room, resolved
from tests.weights.plans import contents, family, plan_of


def test_a_link_to_an_empty_folder_means_that_folder(tmp_path):
    folders = family(tmp_path / "models")
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "large-disk")
    merged = execute(plan_of(folders, Linear()), tmp_path / "link")
    assert merged.path == tmp_path / "large-disk"
    verify(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    execute(plan_of(folders, Linear()), tmp_path / "plain")
    different = {name for name, data in contents(tmp_path / "plain").items() if contents(tmp_path / "link")[name] != data}
    assert different == {"README.md", "manifest.json"}  # they have the folder's name


def test_dots_links_and_home_are_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert resolved(tmp_path / "a" / ".." / "b") == tmp_path / "b"
    assert [resolved(type(tmp_path)(text)) for text in ("~/out", "out", "./out/", "new/out")] == [
        tmp_path / "out", tmp_path / "out", tmp_path / "out", tmp_path / "new" / "out",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", "is the folder that you are in"),
        ("/", "is where a disk begins"),
        ("/proc", "is where a disk begins"),
        ("file", "is no folder"),
        ("file/out", "file is no folder|Not a directory"),
        ("dangling", "a link to nothing"),
        ("loop/out", "cannot be written"),
        ("x" * 250, "File name too long"),
        ("/proc/nothing/out", "you may not write to /proc|cannot be written"),
    ],
)
def test_places_that_cannot_be_are_one_line(tmp_path, monkeypatch, out, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, _: not str(path).startswith("/proc"))  # root may write anywhere
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=message) as caught:
        resolved(type(tmp_path)(out))
    assert "\n" not in str(caught.value)


def test_too_little_room(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    refuse_too_little_room(tmp_path / "not" / "there", free // 2)
    with pytest.raises(ResourceError, match=r"out needs \d+\.\d\d GiB, and \d+\.\d\d GiB are free there"):
        refuse_too_little_room(tmp_path / "out", free * 2)
