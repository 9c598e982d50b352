"""``lmfuse-bench NAME [ARGUMENTS]`` runs one benchmark; without a name it lists them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from lmfuse.errors import did_you_mean


def main() -> None:
    """Run ``benchmarks.NAME`` as a script."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    if len(sys.argv) < 2:
        print("benchmarks:", ", ".join(names))
        return
    name = sys.argv[1].replace("-", "_")
    if name not in names:
        raise SystemExit(f"benchmark: {did_you_mean(name, names)}")
    del sys.argv[1]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
