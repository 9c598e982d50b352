"""The working folder of a merge: what is taken up, what is thrown away, what is left alone, and the steps of publication."""

import json
import os
from contextlib import suppress

import pytest

from lmfuse.artefacts import is_complete, publish, read_manifest, verify
from lmfuse.errors import BusyError, InputError, LmfuseError, ResourceError, VerificationError
from lmfuse.merge.linear import Linear
from lmfuse.weights import publish as publish_module
from lmfuse.weights.layout import lay_out
from lmfuse.weights.plan import OutputTensor
from lmfuse.weights.publish import Working, working_folder
from lmfuse.weights.write import Output

TENSORS = [OutputTensor(f"t{n}", (4,), "F32", Linear(), ()) for n in range(3)]
SHARDS = lay_out(TENSORS, 32)
FILES = {"config.json": b"{}", "README.md": b"card"}


def fill(working: Working, names: list[str]) -> None:
    """Write tensors as a merge does; seal when all are there."""
    with Output(working.path, working.shards, working.records, working.journal) as output:
        for name in names:
            output.write_bytes(name, 0, memoryview(name.encode() * 8))
            output.finish({"tensor": name})
        if {record["tensor"] for record in working.records} | set(names) == {"t0", "t1", "t2"}:
            entries = output.complete()
            working.seal(entries, FILES, {"plan": working.key}, {"fallback": 2})


def begin(out, names: list[str], error: BaseException | None = None) -> None:
    """Finish some tensors, then die: of something that is not the input's fault, by default."""
    with suppress(ZeroDivisionError, InputError), working_folder(out, "k", SHARDS) as working:
        fill(working, names)
        raise error or ZeroDivisionError


def found(out, key: str = "k") -> list[str]:
    """Return the finished tensors that a merge of this key would find; it then goes wrong again."""
    names: list[str] = []
    with suppress(ZeroDivisionError), working_folder(out, key, SHARDS) as working:
        names += [record["tensor"] for record in working.records]
        raise ZeroDivisionError
    return names


def test_a_whole_merge(tmp_path):
    out = tmp_path / "somewhere" / "out"
    with working_folder(out, "k", SHARDS) as working:
        assert working.path.name == "out.partial"
        fill(working, ["t0", "t1", "t2"])
    manifest = verify(out)
    assert (manifest.kind, manifest.key, manifest.counters) == ("merged model", "out", {"fallback": 2})
    assert sorted(manifest.files) == ["README.md", "config.json", *sorted(shard.name for shard in SHARDS)]
    assert {path.name for path in out.iterdir()} == {*manifest.files, "manifest.json"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    with working_folder(out, "k", SHARDS) as working:
        assert working.manifest == manifest


def test_finished_tensors_are_found_again(tmp_path):
    out = tmp_path / "out"
    begin(out, ["t0", "t2"])
    assert sorted(found(out)) == ["t0", "t2"]
    with working_folder(out, "k", SHARDS) as working:
        fill(working, ["t1"])
    other = tmp_path / "undisturbed" / "out"
    with working_folder(other, "k", SHARDS) as working:
        fill(working, ["t0", "t1", "t2"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {path.name: path.read_bytes() for path in other.iterdir()}


def test_a_line_that_was_not_written_to_its_end_is_forgotten(tmp_path):
    out = tmp_path / "out"
    begin(out, ["t0", "t1"])
    journal = tmp_path / "out.partial" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:-4])
    assert found(out) == [json.loads(lines[1])["tensor"]]
    assert found(out) == [json.loads(lines[1])["tensor"]]


@pytest.mark.parametrize("harm", ["cut", "removed", "another key", "no journal head"])
def test_what_cannot_be_believed_is_made_again(tmp_path, harm):
    out, part = tmp_path / "out", tmp_path / "out.partial" / SHARDS[0].part
    begin(out, ["t0", "t1"])
    if harm == "cut":
        os.truncate(part, 5)
    elif harm == "removed":
        part.unlink()
    elif harm == "no journal head":
        (part.parent / "journal.jsonl").write_bytes(b'{"kind": "merged model"}\n')
    assert found(out, "other" if harm == "another key" else "k") == []


def test_nothing_finished_leaves_nothing(tmp_path):
    begin(tmp_path / "out", [])
    assert list(tmp_path.iterdir()) == []


def test_bad_input_leaves_nothing(tmp_path):
    begin(tmp_path / "out", ["t0"], error=InputError("nan"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_what_is_finished(tmp_path):
    with pytest.raises(ResourceError, match="no space left"):
        begin(tmp_path / "out", ["t0"], error=OSError(28, "No space left on device"))
    assert found(tmp_path / "out") == ["t0"]


def test_a_folder_of_that_name_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"out\.partial is needed to write .*out and holds something else"):
        found(tmp_path / "out")
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("key", ["k", "other"])
def test_a_foreign_file_in_an_unfinished_merge_is_never_removed(tmp_path, key):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    begin(out, ["t0"])
    (partial / "mine.txt").write_text("x")
    before = {path.name: path.read_bytes() for path in partial.iterdir()}
    with pytest.raises(InputError, match=r"out\.partial is needed to write .*out and holds something else \(mine\.txt\)"):
        found(out, key)
    assert {path.name: path.read_bytes() for path in partial.iterdir()} == before


@pytest.mark.parametrize("kind", ["link", "file", "dangling"])
def test_a_working_folder_that_is_none_is_one_line(tmp_path, kind):
    partial = tmp_path / "out.partial"
    (tmp_path / "elsewhere").mkdir()
    if kind == "file":
        partial.write_text("x")
    else:
        partial.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    with pytest.raises(InputError, match=rf"out and is {'no folder' if kind == 'file' else 'a link'}$"):
        found(tmp_path / "out")
    assert not (tmp_path / "nowhere").exists()


def test_what_is_thrown_away_is_told(tmp_path):
    out = tmp_path / "out"
    begin(out, ["t0", "t2"])
    with suppress(ZeroDivisionError), working_folder(out, "other", SHARDS) as working:
        assert working.told == ["2 tensors that another merge had finished in out.partial were thrown away"]
        raise ZeroDivisionError


def test_tensors_from_another_kind_of_processor_are_made_again(tmp_path, monkeypatch):
    """Vector units of another width add in another order: half a result of each would be neither."""
    out = tmp_path / "out"
    begin(out, ["t0"])
    head = json.loads((tmp_path / "out.partial" / "journal.jsonl").read_text().splitlines()[0])
    assert head["arithmetic"] == publish_module.arithmetic()
    monkeypatch.setattr(publish_module, "arithmetic", lambda: "torch 9 elsewhere")
    with suppress(ZeroDivisionError), working_folder(out, "k", SHARDS) as working:
        assert working.records == []
        assert working.told == [f"1 tensors that this merge by {head['arithmetic']} had finished in out.partial were thrown away"]
        raise ZeroDivisionError


@pytest.mark.parametrize("whole", [False, True])
def test_killed_anywhere_while_another_merge_is_thrown_away(tmp_path, monkeypatch, whole):
    """The place is never blocked: what is left is known as ours."""

    class Killed(BaseException):
        """Nothing catches it, and nothing is cleaned up."""

    steps = 0

    def watched(real):
        def call(*given, **named):
            nonlocal steps
            if not str(given[0]).endswith(".lock"):  # the system takes the lock from who is killed
                if steps == 0:
                    raise Killed
                steps -= 1
            return real(*given, **named)

        return call

    for point in range(100):
        out = tmp_path / str(point) / "out"
        begin(out, ["t0"])
        if whole:
            with monkeypatch.context() as patch:
                patch.setattr(publish_module, "_publish", lambda *_: 1 / 0)
                begin(out, ["t1", "t2"])
            assert is_complete(out.with_name("out.partial"))
        killed = False
        with monkeypatch.context() as patch:
            steps = point
            for name in ("unlink", "rmdir", "mkdir"):
                patch.setattr(type(out), name, watched(getattr(type(out), name)))
            patch.setattr(os, "replace", watched(os.replace))
            try:
                with working_folder(out, "other", SHARDS):
                    raise Killed
            except Killed:
                killed = steps == 0
        assert found(out, "third") == []
        if not killed:
            break
    assert 5 < point < 99


def test_a_finished_merge_is_compared_with_its_hashes(tmp_path):
    out = tmp_path / "out"
    with working_folder(out, "k", SHARDS) as working:
        fill(working, ["t0", "t1", "t2"])
    path = out / SHARDS[0].name
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes(data)
    with pytest.raises(VerificationError, match="sha256"):
        found(out)


def test_places_that_are_taken(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file is no folder"):
        found(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="link is no folder"):
        found(tmp_path / "link")
    with publish(tmp_path / "rows", kind="rows") as publication:
        (publication.path / "x").write_text("x")
    with pytest.raises(InputError, match=r"rows holds another artefact \(rows\)"):
        found(tmp_path / "rows")
    (tmp_path / "rows" / "x").unlink()
    with pytest.raises(VerificationError, match="missing"):
        found(tmp_path / "rows")


def test_two_at_once(tmp_path):
    with suppress(ZeroDivisionError), working_folder(tmp_path / "out", "k", SHARDS):
        with pytest.raises(BusyError), working_folder(tmp_path / "out", "k", SHARDS):
            pass
        raise ZeroDivisionError


def test_killed_between_the_last_two_renames(tmp_path, monkeypatch):
    """The working folder is whole: only its name is missing."""
    out = tmp_path / "out"
    real = os.rename

    def rename(old, new) -> None:
        if new == out:
            raise KeyboardInterrupt
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt), working_folder(out, "k", SHARDS) as working:
        fill(working, ["t0", "t1", "t2"])
    assert is_complete(tmp_path / "out.partial")
    monkeypatch.undo()
    with working_folder(out, "k", SHARDS) as working:
        assert working.manifest == read_manifest(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_is_taken_meanwhile_is_left_alone(tmp_path):
    out = tmp_path / "out"

    def merge() -> None:
        with working_folder(out, "k", SHARDS) as working:
            fill(working, ["t0", "t1", "t2"])
            out.mkdir()
            (out / "mine").write_text("x")

    with pytest.raises(LmfuseError, match="out cannot be written") as caught:
        merge()
    assert "out.partial: rename it" in caught.value.hint
    assert is_complete(tmp_path / "out.partial")
    assert (out / "mine").read_text() == "x"


@pytest.mark.parametrize("stop_at", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"])
def test_killed_while_names_are_given(tmp_path, monkeypatch, stop_at):
    """Never is there a config.json beside weights of a folder that is not complete."""
    out = tmp_path / "out"
    real = os.rename

    def rename(old, new) -> None:
        if str(new).endswith(stop_at):
            raise KeyboardInterrupt
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt), working_folder(out, "k", SHARDS) as working:
        fill(working, ["t0", "t1", "t2"])
    assert not (tmp_path / "out.partial" / "config.json").exists()
    monkeypatch.undo()
    assert sorted(found(out)) == ["t0", "t1", "t2"]
    with working_folder(out, "k", SHARDS) as working:
        fill(working, [])
    verify(out)
