"""A run that is killed at any moment and started again ends in the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import runs

WORKER = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
where, after, recipe, out, cache = sys.argv[1], int(sys.argv[2]), *map(Path, sys.argv[3:])
def killer(function):
    calls = 0
    def wrapped(*given, **named):
        nonlocal calls
        calls += 1
        if calls > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **named)
    return wrapped
if where == "collect":
    import lmfuse.collect as room
    room.write_atomic = killer(room.write_atomic)
elif where == "train":
    import lmfuse.train.loop as room
    room.backward = killer(room.backward)
elif where == "answer":
    import lmfuse.asking as room
    room._add_batch = killer(room._add_batch)
elif where == "answered":
    import lmfuse.asking as room
    room._with_costs = killer(room._with_costs)
elif where == "judge":
    from lmfuse.judges.journal import Journal
    Journal.add = killer(Journal.add)
elif where == "elect":
    import lmfuse.judges.panel as room
    room.write_atomic = killer(room.write_atomic)
elif where == "publish":
    import lmfuse.artefacts as room
    room._move = killer(room._move)
from lmfuse.pipeline import Pipeline
with Pipeline.open(recipe, out, cache) as pipeline:
    pipeline.run()
"""


def run(folder: Path, where: str = "", after: int = 0) -> int:
    """Run the recipe in its own process, killed at the given place; return the exit status."""
    arguments = [sys.executable, "-c", WORKER, where, str(after), *(str(folder / name) for name in ("recipe.yaml", "out", "cache"))]
    return subprocess.run(arguments, check=False, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode


def contents(folder: Path) -> dict[str, bytes]:
    """Return every published byte: the shared artefacts, the report and the model."""
    roots = [folder / "cache", folder / "out" / "report", folder / "out" / "model"]
    files = [path for root in roots for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    runs.lay_out(folder, arms=["clm", "fused"])
    assert run(folder) == 0
    return contents(folder)


@pytest.mark.parametrize(
    ("where", "after"), [("collect", 1), ("collect", 3), ("train", 3), ("train", 7), ("publish", 0), ("publish", 2), ("publish", 5)]
)
def test_killed_and_started_again(tmp_path, undisturbed, where, after):
    runs.lay_out(tmp_path, arms=["clm", "fused"])
    assert run(tmp_path, where, after) == -signal.SIGKILL
    assert not (tmp_path / "out" / "model").exists()
    assert run(tmp_path) == 0
    assert contents(tmp_path) == undisturbed


def test_a_second_run_is_told_that_the_first_is_at_work(tmp_path):
    from lmfuse.errors import BusyError
    from lmfuse.pipeline import Pipeline

    runs.lay_out(tmp_path, arms=["clm", "fused"])
    code = f"""
import time
from pathlib import Path
from lmfuse.pipeline import Pipeline
with Pipeline.open(*(Path({str(tmp_path)!r}) / name for name in ("recipe.yaml", "out", "cache"))):
    print("ready", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        with pytest.raises(BusyError, match=str(first.pid)), Pipeline.open(tmp_path / "recipe.yaml", tmp_path / "out", tmp_path / "cache"):
            pass
        first.kill()
    time.sleep(0.1)
    with Pipeline.open(tmp_path / "recipe.yaml", tmp_path / "out", tmp_path / "cache"):
        pass


def lay_out_pico(folder: Path) -> None:
    """Write a recipe over the models and the text that ship with the package, small enough to be run several times."""
    from lmfuse.demo import recipe_path

    recipe = yaml.safe_load(recipe_path().read_text(encoding="utf-8"))
    for model in (recipe["target"], *recipe["sources"]):
        model["model"] = str((recipe_path().parent / model["model"]).resolve())
    for specs, limit in ((recipe["text"]["train"], 10), (recipe["text"]["evaluation"], 3)):
        for spec in specs:
            spec |= {"path": str((recipe_path().parent / spec["path"]).resolve()), "limit": limit}
    recipe["train"] |= {"epochs": 1, "checkpoint_steps": 1}
    recipe |= {"sources_used": "all", "arms": ["clm", "fused"], "rows": {"k": 16, "shard_documents": 8}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def test_the_pico_models_killed_in_collect_train_and_publish(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        lay_out_pico(folder)
    assert run(whole) == 0
    for where, after in (("collect", 2), ("train", 2), ("publish", 1)):
        assert run(killed, where, after) == -signal.SIGKILL
    assert run(killed) == 0
    assert contents(killed) == contents(whole)
