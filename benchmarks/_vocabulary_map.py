"""What the MinED vocabulary map costs: against rapidfuzz's ``cdist`` over the misses and an argmin, on one thread. Part of ``align``.

Both sides find exact matches by dictionary first; the clock runs over everything after the tokenizers are loaded. The peer compares every
miss with the whole target vocabulary, in blocks of rows so that it needs little memory, and takes the first minimum: its answers must be
ours on strings. On bytes, where ties go to the longest shared prefix, ours are checked against all distances and all prefixes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein, Prefix
from rapidfuzz.process import cdist

from benchmarks._timing import timed
from lmfuse.align.exact import exact_map, token_bytes
from lmfuse.align.min_ed import exact_string_map, min_ed_map
from lmfuse.align.strings import respell, space_marker
from lmfuse.types import Vocabulary

BLOCK = 256  # rows of the peer's distance matrix


def texts_of(source: Vocabulary, target: Vocabulary, on: str) -> tuple[list[str], list[str], np.ndarray]:
    """Return what is compared, source and target, and the exact matches."""
    if on == "bytes":
        theirs, ours = ([written.decode("latin-1") for written in token_bytes(vocabulary)] for vocabulary in (source, target))
        return theirs, ours, exact_map(source, target).single()
    return (
        respell(source.strings, space_marker(source), space_marker(target)),
        list(target.strings),
        exact_string_map(source, target).single(),
    )


def plain(source: Vocabulary, target: Vocabulary, on: str) -> np.ndarray:
    """Return the peer's map: exact matches, then all distances of a block of misses, then the first minimum."""
    theirs, ours, target_of = texts_of(source, target, on)
    known = np.array([n for n, text in enumerate(ours) if text])
    candidates = [ours[n] for n in known]
    misses = np.array([n for n, text in enumerate(theirs) if text and target_of[n] < 0])
    dtype = np.uint16 if max(map(len, theirs + ours)) > 255 else np.uint8
    for at in range(0, len(misses), BLOCK):
        block = misses[at : at + BLOCK]
        distance = cdist([theirs[n] for n in block], candidates, scorer=Levenshtein.distance, dtype=dtype, workers=1)
        target_of[block] = known[distance.argmin(axis=1)]
    return target_of


def judged(source: Vocabulary, target: Vocabulary, found: np.ndarray) -> int:
    """Return how many answers on bytes agree with all distances, all prefixes and the tie rule, exact matches and control tokens included."""
    theirs, ours, target_of = texts_of(source, target, "bytes")
    known = np.array([n for n, text in enumerate(ours) if text])
    candidates = [ours[n] for n in known]
    misses = np.array([n for n, text in enumerate(theirs) if text and target_of[n] < 0])
    longest = max(map(len, theirs + ours)) + 1
    for at in range(0, len(misses), BLOCK):
        block = [theirs[n] for n in misses[at : at + BLOCK]]
        distance, prefix = (cdist(block, candidates, scorer=scorer, dtype=np.int32) for scorer in (Levenshtein.distance, Prefix.similarity))
        target_of[misses[at : at + BLOCK]] = known[(distance * longest - prefix).argmin(axis=1)]
    return int((target_of == found).sum())


def peak_mb(job: Callable[[], Any]) -> float | None:
    """Return how far memory rises above what it is now while the job runs; None where the kernel does not tell."""
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = status.read_text()
        job()
        after = status.read_text()
    except OSError:
        return None
    resident, peak = (int(text.split(field)[1].split()[0]) for text, field in ((before, "VmRSS:"), (after, "VmHWM:")))
    return round((peak - resident) / 1024, 1)


def map_figures(source: Vocabulary, target: Vocabulary, rounds: int) -> dict[str, Any]:
    """Return times, memory and agreement of the map on bytes (the default) and on strings (as published)."""
    figures: dict[str, Any] = {}
    for on in ("bytes", "strings"):
        peak = peak_mb(lambda on=on: min_ed_map(source, target, on=on))
        theirs: list[np.ndarray] = []
        jobs = {
            "ours": lambda on=on: min_ed_map(source, target, on=on),
            "cdist": lambda on=on, to=theirs: to.append(plain(source, target, on)),
        }
        seconds = timed(jobs, rounds, warm_up=False, clock=time.perf_counter)
        ours = min_ed_map(source, target, on=on).single()
        agreeing = judged(source, target, ours) if on == "bytes" else int((theirs[-1] == ours).sum())
        figures[on] = {
            "misses": int((texts_of(source, target, on)[2] < 0).sum()),
            "seconds": round(seconds["ours"], 2),
            "cdist_seconds": round(seconds["cdist"], 2),
            "of_cdist": round(seconds["ours"] / seconds["cdist"], 3),
            "peak_mb": peak,
            "agreement": agreeing / source.size,
        }
    return figures
