"""Kill -9 while collecting, then the same command: the same bytes as an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.fakes import KINDS, save_model

COLLECT = """
import sys, time
import torch
torch.set_num_threads(1)
from pathlib import Path
from lmfuse import collect
from lmfuse.models import ModelSpec, load_model
from lmfuse.types import Document
from tests.fakes import TEXT

model_folder, folder, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
plain = collect.write_atomic

def slow(path, data):  # leaves time for the kill, before and after a shard
    time.sleep(pause)
    plain(path, data)
    time.sleep(pause)

collect.write_atomic = slow
documents = [Document.plain(f"{i}: {text}") for i in range(4) for text in TEXT]
store = collect.collect(load_model(ModelSpec(str(model_folder), dtype="float32")), documents, folder, k=4, batch_tokens=200, shard_documents=5)
print(len(store))
"""
ROOT = Path(__file__).resolve().parents[2]


def start(model: Path, folder: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COLLECT, str(model), str(folder), str(pause)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)


def finish(model: Path, folder: Path) -> dict[str, bytes]:
    process = start(model, folder, 0)
    out, _ = process.communicate(timeout=300)
    assert (process.returncode, out.split()) == (0, ["32"])
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def kill_after(model: Path, folder: Path, shards: int) -> None:
    """Start a slow collection and kill it once it has written so many shards (and its plan)."""
    partial = folder.with_name(f"{folder.name}.partial")
    process = start(model, folder, 0.3)
    deadline = time.monotonic() + 300
    while len(list(partial.glob("rows-*"))) < shards or not (partial / "plan.key").exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def test_kill_9_twice_then_again_gives_the_same_bytes(tmp_path):
    model = save_model(tmp_path / "model", KINDS["metaspace_bpe"]())
    calm = finish(model, tmp_path / "calm" / "rows")
    assert len(calm) == 8  # 32 documents in shards of 5, and the manifest
    folder = tmp_path / "rough" / "rows"
    partial = folder.with_name("rows.partial")
    kill_after(model, folder, 0)
    kill_after(model, folder, 2)
    assert not folder.exists()
    done = {path.name: path.stat().st_mtime_ns for path in partial.glob("rows-*.safetensors")}
    assert len(done) >= 2
    assert finish(model, folder) == calm
    assert not partial.exists()
    for name, written in done.items():
        assert (folder / name).stat().st_mtime_ns == written, "a finished shard was written again"
