"""``lmfuse demo`` as a newcomer runs it: seconds on the wall and the peak of memory; the goals are 120 s and 2 GB on two cores.

    python -m benchmarks.demo_cost

Runs in an empty folder with an empty cache. The report is kept as ``benchmarks/results/demo.json``.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        load = os.getloadavg()[0]
        begin = time.perf_counter()
        command = [sys.executable, "-m", "lmfuse.cli", "demo", "--out", f"{place}/demo", "--cache", f"{place}/cache"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        seconds = time.perf_counter() - begin
        shutil.copy(f"{place}/demo/report/report.json", RESULTS / "demo.json")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    figures = {"seconds": round(seconds, 1), "peak_bytes": peak, "load_before": load}
    machine = {"python": platform.python_version(), "cores": os.cpu_count()}
    found = {"benchmark": "demo_cost", "figures": figures, "machine": machine, "command": "python -m benchmarks.demo_cost"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
