"""Kill -9 in the middle of training, then the same call: the same bytes as a run that nobody disturbed.

The kills happen in forks of one process that has imported everything and computed nothing yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = {
    "undisturbed": [],
    "while the teacher is asked": ["teacher 11"],
    "before the first checkpoint": ["teacher 3"],
    "in the middle of a file": ["save_file 3"],
    "before a checkpoint is renamed": ["rename before 2"],
    "after a checkpoint is renamed": ["rename after 2"],
    "while old checkpoints are removed": ["rmtree 1"],
    "before the log is written": ["training.json 1"],
    "twice": ["save_file 5", "rename before 1", "teacher 4"],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults.test_train", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_and_started_again_ends_in_the_same_bytes(results, name):
    found = results[name]
    assert found["exits"] == [-signal.SIGKILL] * len(SCENARIOS[name]) + [0]
    assert found["files"] == results["undisturbed"]["files"]
    assert {"model/model.safetensors", "training.json"} <= found["files"].keys()


# ------------------------------------------------------------------------------------------------------------------- the driver


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(original: Callable, number: int, before: Callable[..., None] | None, after: Callable[..., None] | None = None) -> Callable:
    """Return a function that calls something around its n-th call."""
    calls = []

    def wrapper(*args, **options):
        calls.append(1)
        if len(calls) == number and before:
            before(*args)
        result = original(*args, **options)
        if len(calls) == number and after:
            after(*args)
        return result

    return wrapper


def arm(kill: str, teacher: Callable) -> Callable:
    """Plant a kill; return the teacher, which may carry it."""
    from lmfuse import artefacts
    from lmfuse.train import checkpoint, run

    what, _, number = kill.rpartition(" ")
    if what == "teacher":
        return counted(teacher, int(number), lambda *_: die())
    if what == "save_file":

        def half(tensors, path):
            path.write_bytes(b"\x10\x00")
            die()

        checkpoint.save_file = counted(checkpoint.save_file, int(number), half)
    elif what == "rename before":
        artefacts.os.rename = counted(os.rename, int(number), lambda *_: die())
    elif what == "rename after":
        artefacts.os.rename = counted(os.rename, int(number), None, lambda *_: die())
    elif what == "rmtree":

        def some(path, **_):
            next(Path(path).iterdir()).unlink()
            die()

        checkpoint.shutil.rmtree = counted(checkpoint.shutil.rmtree, int(number), some)
    elif what == "training.json":
        run.write_atomic = counted(run.write_atomic, int(number), lambda *_: die())
    return teacher


def attempt(folder: Path, model_folder: Path, kill: str | None) -> None:
    """Train and save, perhaps until the kill."""
    import torch

    from lmfuse.losses.kl import KL
    from lmfuse.models import ModelSpec, load_model
    from lmfuse.train.checkpoint import save_model
    from tests.train.setups import quick, texts, train
    from tests.train.test_loop import random_teacher

    torch.set_num_threads(1)
    model = load_model(ModelSpec(model=str(model_folder), dtype="bfloat16"))
    teacher = arm(kill, random_teacher) if kill else random_teacher
    settings = quick(checkpoint_steps=2, log_steps=3, epochs=1.5, weight_decay=0.1)
    train(model, texts(14), teacher, KL(), settings, folder)
    save_model(model, folder / "model", dtype="bfloat16", source=model_folder)


def forked(work: Callable[[], None]) -> int:
    """Run something in a fork and return how it ended: 0, an exit status, or minus a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    import transformers.models.llama.modeling_llama  # noqa: F401  (once, here, instead of in every fork)

    import tests.train.test_loop  # noqa: F401
    from tests import fakes

    model_folder = folder / "target"
    assert forked(lambda: fakes.save_model(model_folder, fakes.byte_bpe()) and None) == 0
    results = {}
    for index, (name, kills) in enumerate(SCENARIOS.items()):
        place = folder / str(index)
        exits = [forked(lambda kill=kill, place=place: attempt(place, model_folder, kill)) for kill in [*kills, None]]
        kept = [path for path in sorted(place.rglob("*")) if path.is_file() and "checkpoints" not in path.parts]
        files = {path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
        results[name] = {"exits": exits, "files": files}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
