"""What the benchmarks share: jobs that take turns, and the median of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def timed(
    jobs: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: bool, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Return the median seconds of each job; jobs take turns. With ``warm_up`` one more turn comes first and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + warm_up):
        for name, job in jobs.items():
            begin = clock()
            job()
            if turn >= warm_up:
                seconds[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}
