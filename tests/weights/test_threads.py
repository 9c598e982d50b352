"""Merges by several threads: the same bytes, progress, interrupts, bounded memory."""

import os
import subprocess
import sys

import pytest

from lmfuse.merge.sce import Sce
from lmfuse.merge.ties import Ties
from lmfuse.weights.engine import execute
from tests.weights.plans import METHODS, SEVERAL_PIECES, contents, family, plan_of


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A base and two fine-tunes, with tensors of several pieces."""
    return family(tmp_path_factory.mktemp("large"), hidden=SEVERAL_PIECES)


@pytest.mark.parametrize(("method", "base"), METHODS, ids=lambda value: repr(value)[:60])
def test_threads_leave_no_trace(large, tmp_path, method, base):
    plan = plan_of(large if base is not None else large[1:], method, base=base, dtype="BF16")
    for threads in (1, 4):
        execute(plan, tmp_path / str(threads) / "out", threads=threads)
    assert contents(tmp_path / "1" / "out") == contents(tmp_path / "4" / "out")


def test_progress_goes_from_nothing_to_everything(large, tmp_path):
    seen: list[tuple[int, int]] = []
    merged = execute(plan_of(large, Sce(), base=0), tmp_path / "out", threads=1, progress=lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert seen[-1] == (merged.bytes_written, merged.bytes_written)


def test_an_interrupt_stops_the_work_and_keeps_what_is_finished(large, tmp_path):
    plan = plan_of(large, Ties(), base=0)

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan, tmp_path / "out", threads=1, progress=interrupt)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial" / "journal.jsonl").exists()
    seen: list[int] = []
    execute(plan, tmp_path / "out", progress=lambda done, total: seen.append(done))
    assert seen[0] > 0  # it went on where it was
    execute(plan, tmp_path / "undisturbed" / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed" / "out")
    assert not (tmp_path / "out.partial").exists()


def test_memory_is_bounded_by_pieces_not_by_tensors(tmp_path):
    """Three tensors of 32 MB each are merged in less memory than half of one of them, beside what torch itself takes."""
    code = """
import re, sys, threading, time
from pathlib import Path
import torch
from safetensors.torch import save_file
from lmfuse.merge import piece
from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.weights.engine import execute
from tests.fakes import byte_bpe, save_model
from tests.weights.plans import plan_of
torch.set_num_threads(1)
piece.PIECE_ELEMENTS = 2**17
folders = []
for seed in range(3):
    folders.append(save_model(Path(sys.argv[1]) / str(seed), byte_bpe(), seed=seed))
    tensors = {"model.big.weight": torch.full((16384, 1024), 1.0 + seed).bfloat16()}
    save_file(tensors, folders[-1] / "model.safetensors", metadata={"format": "pt"})
    del tensors
plan = plan_of(folders, TaskArithmetic(weights=0.5), base=0, dtype="BF16")
anonymous = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000
before, most, done = anonymous(), 0, False
def watch():
    global most
    while not done:
        most = max(most, anonymous())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
execute(plan, Path(sys.argv[1]) / "out", threads=2)
done = True
watcher.join()
print(most - before)
"""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs Linux to see anonymous memory")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 25
