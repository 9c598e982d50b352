"""Merging weights against mergekit on the same files, and against the disk.

    python -m benchmarks.merge [--folder DIR] [--megabytes 1000] [--shards 4] [--threads N] [--rounds 3] [--cold-rounds 3]

A base and three models of about ``--megabytes`` each, bf16 in shards, Llama-shaped, the models fine-tunes of the base (differences of
s.d. 2, 3 and 4e-4), are written under ``--folder`` if they are not there (6 times ``--megabytes`` on the disk). Every merge is a process of
its own, started by turns: ours and mergekit's, SCE with tau 0.1 and linear, files in the page cache.

- ``mergekit_over_ours_sce``, ``mergekit_over_ours_linear``: medians of the merge alone, from the same file in mergekit's dialect to the
  finished folder, imports of neither side counted. Ours includes all checks, flushing to the disk, and the hashes of what it writes; the
  sources were hashed before (once for each file there ever is: ``first_hash_s``). mergekit neither flushes nor hashes. ``*_command`` are
  whole processes, imports and all.
- ``mergekit_over_floor_linear``: what no merger that flushes could exceed: mergekit's linear over reading the three models and writing and
  flushing one, with nothing computed, files in the page cache, one thread.
- ``anon_mb``: the most anonymous memory of our process (RssAnon), imports and all; files mapped into memory are the page cache's.
- ``over_io_floor``: ours, SCE, over reading the four models and writing and flushing one with plain reads and writes of 8 MB, both with
  cold files: written out, then posix_fadvise(DONTNEED) on each, which clears this machine's page cache and not that of a host beneath.
- ``identical_to_oracle``: every tensor of both merges is, bit for bit, what ``merge_tensors`` makes of the whole tensors.
- ``off_by_a_step``: of a few tensors the share of numbers that are more than one step of bf16 away from the method as one would write it
  down, in float64 over whole tensors, with a sort; those at the threshold may be selected otherwise.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._llamas import MODELS, make_models

METHODS = ("sce", "linear")
TAU = 0.1
BLOCK = 8 << 20


def write_configurations(folder: Path) -> None:
    """Write what both sides are given: a file in mergekit's dialect for each method."""
    for method in METHODS:
        parameters = {"select_topk": TAU} if method == "sce" else {"weight": 1.0}
        config = {"models": [{"model": str(folder.resolve() / name)} for name in MODELS[1:]], "merge_method": method,
                  "dtype": "bfloat16", "parameters": parameters}  # fmt: skip
        if method == "sce":
            config["base_model"] = str(folder.resolve() / MODELS[0])
        (folder / f"{method}.yml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML


def _import_transformers() -> None:
    """Import what either side asks transformers for, before its time is taken."""
    import transformers.models.auto.modeling_auto  # noqa: F401
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401


def merge_ours(folder: Path, method: str, out: Path, threads: int | None) -> dict[str, Any]:
    """Merge with lmfuse in this process; return what it took, in seconds."""
    _import_transformers()
    from lmfuse.merge_recipe.command import Short, load_merge
    from lmfuse.merge_recipe.plan import make_merge_plan
    from lmfuse.weights.engine import execute

    begin = time.perf_counter()
    plan = make_merge_plan(*load_merge(str(folder / f"{method}.yml"), Short())[:2], folder / "cache")
    plan_s = time.perf_counter() - begin
    execute(plan, out, threads=threads)
    return {"seconds": time.perf_counter() - begin, "plan_s": plan_s}


def merge_theirs(folder: Path, method: str, out: Path, threads: int | None) -> dict[str, Any]:
    """Merge with mergekit in this process, as ``mergekit-yaml --no-cuda`` does; return what it took, in seconds."""
    import torch
    import yaml

    _import_transformers()
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    torch.set_num_threads(threads or os.cpu_count() or 1)
    begin = time.perf_counter()
    settings = MergeConfiguration.model_validate(yaml.safe_load((folder / f"{method}.yml").read_text(encoding="utf-8")))
    run_merge(settings, str(out), MergeOptions(device="cpu", quiet=True))
    return {"seconds": time.perf_counter() - begin}


def child(side: str, given: argparse.Namespace, method: str, out: Path) -> dict[str, Any]:
    """Run one merge in a process of its own, watching its anonymous memory; return what it printed, its wall time and that memory."""
    command = [sys.executable, "-m", "benchmarks.merge", "--folder", str(given.folder), "--child", side, method, str(out)]
    command += ["--threads", str(given.threads)] if given.threads else []
    shutil.rmtree(out, ignore_errors=True)
    begin, most = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            most = max(most, _anonymous_kb(process.pid))
            time.sleep(0.01)
        wall = time.perf_counter() - begin
        printed, trouble = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{trouble[-2000:]}")
    return {**json.loads(printed.strip().splitlines()[-1]), "command_s": wall, "anon_mb": most / 1000}


def _anonymous_kb(pid: int) -> int:
    try:
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    except OSError:
        return 0
    return int(found[1]) if found else 0


def weight_files(folder: Path, models: Sequence[str] = MODELS) -> list[Path]:
    """Return the weight files of models."""
    return [path for name in models for path in sorted((folder / name).glob("*.safetensors"))]


def make_cold(folder: Path) -> None:
    """Have the system forget the content of the models' files."""
    os.sync()
    for path in weight_files(folder):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def io_floor(folder: Path, out: Path, models: Sequence[str] = MODELS) -> float:
    """Read models, write and flush one, in large blocks; return seconds."""
    block = memoryview(bytearray(BLOCK))
    begin = time.perf_counter()
    for path in weight_files(folder, models):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    size = sum(path.stat().st_size for path in (folder / MODELS[0]).glob("*.safetensors"))
    with out.open("wb", buffering=0) as file:
        for start in range(0, size, BLOCK):
            file.write(block[: min(BLOCK, size - start)])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begin
    out.unlink()
    return seconds


def reader(folder: Path, out: Path) -> tuple[list[str], Callable[[Path, str], Any]]:
    """Return the names of all tensors, and what reads one of a model or of the result."""
    from safetensors import safe_open

    def files(place: Path) -> dict[str, str]:
        path = place / "model.safetensors.index.json"
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        return dict.fromkeys(files(folder / MODELS[0]), "model.safetensors")

    places = {place: files(place) for place in (*(folder / name for name in MODELS), out)}

    def read(place: Path, name: str) -> Any:
        with safe_open(str(place / places[place][name]), framework="pt") as file:
            return file.get_tensor(name)

    return sorted(places[out]), read


def off_by_a_step(folder: Path, out: Path, method: str) -> float:
    """Return the share of numbers of a few tensors that differ by more than a step of bf16 from float64, whole tensors and a sort."""
    import torch

    names, read = reader(folder, out)
    far = count = 0
    inner = [name for name in names if ".layers.0." in name and not name.endswith("norm.weight")]
    for name in inner[:: max(1, len(inner) // 3)]:
        sources = torch.stack([read(folder / model, name).double().flatten() for model in MODELS[1:]])
        expected = sources.mean(0)
        if method == "sce":
            base = read(folder / MODELS[0], name).double().flatten()
            changes, variance = sources - base, sources.var(0, correction=0)
            top = variance.argsort(descending=True, stable=True)[: int(TAU * int((variance > 0).sum()))]
            changes *= torch.zeros_like(variance).index_fill_(0, top, 1.0)
            squares = (changes**2).sum(1)
            share = squares / squares.sum() if float(squares.sum()) / len(base) >= 1e-6 else torch.full_like(squares, 1 / len(squares))
            kept = (changes * torch.where(changes.sum(0) < 0, -1.0, 1.0) > 0) * share[:, None]
            expected = base + (kept * changes).sum(0) / kept.sum(0).clamp(min=1e-6)
        found = read(out, name).double().flatten()
        far += int(((found - expected).abs() > 2**-8 * expected.abs() + 1e-12).sum())
        count += len(found)
    return far / count


def identical(folder: Path, out: Path, method: str) -> bool:
    """Return whether every tensor of a merge is what ``merge_tensors`` makes of the whole tensors."""
    import torch

    from lmfuse.merge.linear import Linear
    from lmfuse.merge.sce import Sce
    from lmfuse.merge.whole import merge_tensors

    how = Sce(tau=TAU, variant="mergekit") if method == "sce" else Linear()
    names, read = reader(folder, out)
    return all(
        torch.equal(
            merge_tensors(
                how, [read(folder / model, name) for model in MODELS[1:]], read(folder / MODELS[0], name) if method == "sce" else None, name
            ),
            read(out, name),
        )
        for name in names
    )


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run everything by turns; return the figures."""
    make_models(given.folder, given.megabytes, given.shards)
    write_configurations(given.folder)
    shutil.rmtree(given.folder / "cache", ignore_errors=True)
    outs = {side: given.folder / f"out-{side}" for side in ("ours", "mergekit")}
    first = child("ours", given, "sce", outs["ours"])  # hashes every source, brings every file into the page cache
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    same, far, warm_floor = True, dict[str, float](), list[float]()
    for turn in range(given.rounds):
        warm_floor.append(io_floor(given.folder, given.folder / "floor.bin", MODELS[1:]))
        for method in METHODS:
            for side, out in outs.items():
                runs.setdefault((side, method), []).append(child(side, given, method, out))
            if turn == 0:
                same &= identical(given.folder, outs["ours"], method)
                far[method] = off_by_a_step(given.folder, outs["ours"], method)
    cold: dict[str, list[float]] = {"ours": [], "floor": []}
    for _ in range(given.cold_rounds):
        make_cold(given.folder)
        cold["ours"].append(child("ours", given, "sce", outs["ours"])["seconds"])
        make_cold(given.folder)
        cold["floor"].append(io_floor(given.folder, given.folder / "floor.bin"))
    for out in outs.values():
        shutil.rmtree(out, ignore_errors=True)

    def median(side: str, method: str, what: str = "seconds") -> float:
        return statistics.median(run[what] for run in runs[side, method])

    ratios = {f"mergekit_over_ours_{m}{end}": round(median("mergekit", m, what) / median("ours", m, what), 2)
              for end, what in (("", "seconds"), ("_command", "command_s")) for m in METHODS}  # fmt: skip
    of_ours = [run for (side, _), found in runs.items() if side == "ours" for run in found]
    return ratios | {
        "mergekit_over_floor_linear": round(median("mergekit", "linear") / statistics.median(warm_floor), 2),
        "anon_mb": round(max(run["anon_mb"] for run in of_ours)),
        "mergekit_anon_mb": round(max(run["anon_mb"] for (side, _), found in runs.items() if side == "mergekit" for run in found)),
        "over_io_floor": round(statistics.median(cold["ours"]) / statistics.median(cold["floor"]), 2) if given.cold_rounds else None,
        "identical_to_oracle": same,
        "off_by_a_step": {method: float(f"{share:.2g}") for method, share in far.items()},
        "seconds": {f"{side}_{method}": [round(run["seconds"], 2) for run in found] for (side, method), found in runs.items()},
        "warm_floor_seconds": [round(value, 2) for value in warm_floor],
        "cold_seconds": {name: [round(value, 2) for value in values] for name, values in cold.items()},
        "first_hash_s": round(first["plan_s"] - statistics.median(run["plan_s"] for run in of_ours), 2),
        "model_mb": round(sum(path.stat().st_size for path in weight_files(given.folder)) / 4e6),
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "lmfuse-merge-benchmark")
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--threads", type=int, default=None, help="of both sides; by default as many as there are cores")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold-rounds", type=int, default=3)
    parser.add_argument("--child", nargs=3, metavar=("SIDE", "METHOD", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        side, method, out = given.child
        print(json.dumps((merge_ours if side == "ours" else merge_theirs)(given.folder, method, Path(out), given.threads)))
        return
    if importlib.util.find_spec("mergekit") is None:
        raise SystemExit("mergekit is not installed, and there is nothing to compare with: pip install mergekit==0.1.5")
    given.folder.mkdir(parents=True, exist_ok=True)
    found = measure(given)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": given.threads}
    goals = {"mergekit_over_ours_sce": 20, "mergekit_over_ours_linear": 4, "anon_mb": 500, "over_io_floor": 1.5}
    print(json.dumps({"benchmark": "merge", **found, "goals": goals, "cold_by": "sync, then posix_fadvise(POSIX_FADV_DONTNEED) on each file",
                      "machine": machine, "commit": commit, "command": " ".join(["python -m benchmarks.merge", *sys.argv[1:]])}))  # fmt: skip


if __name__ == "__main__":
    main()
