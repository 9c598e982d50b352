"""``kill -9`` at every touch of the file system during a merge: nothing loadable, and the same merge again ends in the same bytes."""

import json
import subprocess
import sys

import pytest

from tests.weights.plans import family

WORKER = """
import json, os, shutil, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import lmfuse.weights.write
from lmfuse.artefacts import is_complete, verify
from lmfuse.errors import LmfuseError
from lmfuse.merge.ties import Ties
from lmfuse.merge.varm import Varm
from lmfuse.model_files import check_folder
from lmfuse.weights.engine import execute
from tests.weights.plans import contents, plan_of

what, root, folders = sys.argv[1], Path(sys.argv[2]), [Path(each) for each in sys.argv[3:]]
TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
counter = [0]
CALLS = ("pwrite", "fsync", "fdatasync", "posix_fallocate")
method = Varm(granularity="layer") if what == "units" else Ties()
plan = plan_of(folders, method, base=0, max_shard_bytes=60_000)

def killed_at(point, out):
    "Merge in a child that is killed just before its point-th touch of the file system; return whether it was."
    child = os.fork()
    if child == 0:
        seen = iter(range(point))  # next() is one step for all threads
        def touch():
            if next(seen, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            counter[0] += 1
        def watched(real):
            def call(*given):
                touch()
                return real(*given)
            return call
        for name in CALLS:
            setattr(os, name, watched(getattr(os, name)))
        lmfuse.weights.write._flush_data = os.fdatasync
        lmfuse.weights.write.FLUSH_SECONDS = 0.001  # a journal entry for nearly every tensor
        sys.addaudithook(lambda event, _: touch() if event in TOUCHES else None)
        execute(plan, out, threads=2)
        (root / "touches").write_text(str(counter[0]))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0

def refuse_loadable(place):
    "Nothing under this folder is taken for a model, unless it is the whole one."
    for folder in [place, *(each for each in place.rglob("*") if each.is_dir())]:
        try:
            check_folder(folder)
        except LmfuseError:
            assert not (folder / "config.json").exists(), folder
            continue
        verify(folder)

execute(plan, root / "undisturbed" / "out", threads=1)
expected = contents(root / "undisturbed" / "out")
assert [name for name in expected if name.startswith("model-00002-of-")], sorted(expected)
resumed = point = kills = 0
if what == "again":
    out = root / "again" / "out"
    point = 20
    while killed_at(point, out):
        refuse_loadable(out.parent)
        kills += 1
        point += 5
    assert contents(out) == expected
    assert [each.name for each in out.parent.iterdir()] == ["out"]
else:
    assert not killed_at(10**9, root / "counted" / "out")
    touches = int((root / "touches").read_text())
    start, end = (12, touches - 40) if what == "everywhere" else (0, touches)  # the steps to and from the merge itself one by one
    for point in [*range(start), *range(start, end, 9), *range(end, touches - 5)]:
        out = root / str(point) / "out"
        if not killed_at(point, out):  # the journal is flushed by the clock, so a run may have fewer steps than the one that was counted
            assert point > end - 60, f"no kill at touch {point} of {touches}"
            assert contents(out) == expected
            shutil.rmtree(out.parent)
            continue
        kills += 1
        refuse_loadable(out.parent)
        journal = out.with_name("out.partial") / "journal.jsonl"
        resumed += journal.exists() and len(journal.read_bytes().splitlines()) > 1
        execute(plan, out, threads=2)
        assert contents(out) == expected, f"after a kill at touch {point}"
        assert [each.name for each in out.parent.iterdir()] == ["out"], point
        shutil.rmtree(out.parent)
print(json.dumps({"points": point, "kills": kills, "resumed": resumed}))
"""


def work(what, tmp_path) -> dict[str, int]:
    folders = family(tmp_path / "models")
    command = [sys.executable, "-c", WORKER, what, str(tmp_path), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_anywhere_then_run_again(tmp_path):
    found = work("everywhere", tmp_path)
    assert found["kills"] > 25
    assert found["resumed"] > 5  # kills after which finished tensors were found and kept


def test_killed_where_tensors_are_looked_at_together(tmp_path):
    """A layer's tensors are one unit: some are finished, all are looked at again."""
    assert work("units", tmp_path)["resumed"] >= 1


def test_killed_again_and_again(tmp_path):
    """One merge that dies at a later and later point, as on a machine that is taken away every few minutes."""
    assert work("again", tmp_path)["points"] > 20


def test_transformers_cannot_load_what_is_half_done(tmp_path):
    from transformers import AutoModelForCausalLM

    from lmfuse.merge.linear import Linear
    from lmfuse.weights.engine import execute
    from tests.weights.plans import plan_of

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan_of(family(tmp_path / "models"), Linear()), tmp_path / "out", progress=interrupt)
    assert (tmp_path / "out.partial").is_dir()
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out.partial")
