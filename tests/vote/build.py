"""Ballots for tests, and a slow count of the same votes to compare with."""

from __future__ import annotations

import math
import statistics

import numpy as np

from lmfuse.vote.ballots import Ballots

NAN = float("nan")


def ballots(rows, texts=None, costs=None, judges=()) -> Ballots:
    scores = np.array(rows, np.float64)
    names = texts or [f"answer {i}" for i in range(scores.shape[1])]
    return Ballots(scores, names, None if costs is None else np.array(costs, np.float64), tuple(judges))


def random_ballots(seed: int, judges: int = 4, candidates: int = 5, nan: float = 0.15) -> Ballots:
    """Coarse scores, so that there are ties; some abstentions; some candidates with the same text, some without any."""
    random = np.random.default_rng(seed)
    texts = [random.choice(["same", "other", " same\n", ""]).item() if random.random() < 0.5 else f"t{i}" for i in range(candidates)]
    by_text = {text.strip(): random.integers(0, 3, judges).astype(float) for text in texts}
    rows = np.array([by_text[text.strip()] for text in texts]).T
    rows[random.random(rows.shape) < nan] = NAN
    return ballots(rows, texts, random.integers(0, 3, candidates))


def slow_winner(cast: Ballots, order: tuple[str, ...]) -> int:
    """Count a vote with Python's statistics, judge by judge and pair by pair."""
    standing = [i for i, text in enumerate(cast.texts) if text.strip()]
    owners: list[int] = []
    for i in sorted(standing, key=lambda i: (cast.costs[i], i)):
        if all(cast.texts[i].strip() != cast.texts[o].strip() for o in owners):
            owners.append(i)
    if not owners:
        return -1
    tables = []
    for row in cast.scores:
        mine = {}
        for owner in owners:
            given = [row[i] for i in standing if cast.texts[i].strip() == cast.texts[owner].strip() and not math.isnan(row[i])]
            if given:
                mine[owner] = statistics.mean(given)
        tables.append(mine)
    if not any(tables):
        return -1
    tables = [mine for mine in tables if len(set(mine.values())) > 1]

    def criteria(owner: int) -> dict[str, float]:
        first = sum(1 / sum(v == max(mine.values()) for v in mine.values()) for mine in tables if mine.get(owner) == max(mine.values()))
        ranks, zs = [], []
        for mine in tables:
            if owner in mine:
                worse = sum(v < mine[owner] for v in mine.values()) + (sum(v == mine[owner] for v in mine.values()) - 1) / 2
                ranks.append(worse / (len(mine) - 1))  # the share of rivals behind it: the same order as the stretched rank
                zs.append((mine[owner] - statistics.mean(mine.values())) / statistics.pstdev(mine.values()))
        return {
            "first_places": round(first, 9),
            "mean_rank": round(statistics.mean(ranks), 9) if ranks else -math.inf,
            "mean_z": round(statistics.mean(zs), 9) if zs else -math.inf,
        }

    return max(owners, key=lambda owner: (*(criteria(owner)[name] for name in order), -cast.costs[owner], -owner))
