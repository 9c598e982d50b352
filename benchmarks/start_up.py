"""What ``lmfuse --help`` costs above an interpreter that does nothing: ``python -m benchmarks.start_up``; the goal is 0.4 s."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time

from benchmarks._timing import timed


def started(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args()
    jobs = {"pass": lambda: started("-c", "pass"), "help": lambda: started("-m", "lmfuse.cli", "--help")}
    seconds = timed(jobs, given.rounds, warm_up=True, clock=time.perf_counter)
    figures = {"help_s": seconds["help"], "pass_s": seconds["pass"], "above_s": seconds["help"] - seconds["pass"]}
    machine = {"python": platform.python_version(), "cores": os.cpu_count()}
    print(json.dumps({"benchmark": "start_up", "figures": figures, "machine": machine, "command": "python -m benchmarks.start_up"}))


if __name__ == "__main__":
    main()
