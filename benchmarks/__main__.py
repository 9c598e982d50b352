"""``lmfuse-bench NAME [ARGUMENTS]`` runs one benchmark and prints one JSON object; ``lmfuse-bench all`` runs each and keeps what it printed."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

from lmfuse.errors import did_you_mean

HERE = Path(__file__).resolve().parent
NEED_MODELS = {"real", "fidelity"}  # their models are not to be had without a download


def main() -> None:
    """Run ``benchmarks.NAME`` as a script."""
    names = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    if len(sys.argv) < 2:
        print("benchmarks:", ", ".join(names))
        return
    name = sys.argv[1].replace("-", "_")
    if name == "all":
        for each in sorted(set(names) - NEED_MODELS):
            keep(each, sys.argv[2:])
        return
    if name not in names:
        raise SystemExit(f"benchmark: {did_you_mean(name, [*names, 'all'])}")
    del sys.argv[1]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")


def keep(name: str, arguments: list[str]) -> None:
    """Run one benchmark in a process of its own, so that none warms up another, and write its figures into ``results/``."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    printed = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = json.loads(printed.strip().splitlines()[-1])
    (HERE / "results" / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{name}: {json.dumps(found.get('figures', found))}")


if __name__ == "__main__":
    main()
