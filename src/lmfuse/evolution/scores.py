"""What a fitness says of one unit of development data, and what follows from many of them: a mean, a comparison, a hopeless case."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lmfuse.evaluate.paired import Comparison, paired_bootstrap
from lmfuse.types import DocumentScore

FEW_UNITS = 10  # seen of a group: fewer may look alike by chance, so their variance is at least that of all such groups together


@dataclass(frozen=True)
class UnitScore:
    """One unit's part of a fitness: ``value`` over ``weight``, more is better.

    Bits per byte: the bits, negative, over the bytes. Accuracy: 1 or 0 over 1.

    Attributes:
        value: the numerator; numbers of numpy or torch become Python's, which files can hold.
        weight: the denominator, a whole number of at least 1.
        group: such as a domain; groups count alike, however many units they have.

    Raises:
        ValueError: the weight is another number.
    """

    value: float
    weight: int = 1
    group: str = ""

    def __post_init__(self) -> None:
        if not self.weight >= 1 or self.weight == math.inf:
            raise ValueError(f"a unit's weight is {self.weight}, expected at least 1")
        if int(self.weight) != self.weight:
            raise ValueError(f"a unit's weight is {self.weight}, expected a whole number")
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "weight", int(self.weight))


Scores = Mapping[str, UnitScore]  # by unit


def mean_score(scores: Scores) -> float:
    """Return the fitness: of each group all values over all weights, and of these the mean.

    >>> mean_score({"a": UnitScore(1.0, 1, "x"), "b": UnitScore(0.0, 3, "x"), "c": UnitScore(0.75, 1, "y")})
    0.5
    """
    groups: dict[str, list[UnitScore]] = {}
    for unit in sorted(scores):
        groups.setdefault(scores[unit].group, []).append(scores[unit])
    means = [math.fsum(each.value for each in same) / sum(each.weight for each in same) for same in groups.values()]
    return math.fsum(means) / len(means)


def expected(child: Scores, rival: Scores | None) -> float:
    """Return what a stopped child would score on all units: what its rival does, and the difference of the two on those seen.

    >>> expected({"a": UnitScore(0.5)}, {"a": UnitScore(1.0), "b": UnitScore(-3.0)})       # the rival has -1 on both
    -1.5
    """
    if rival is None:
        return mean_score(child)
    return mean_score(rival) + mean_score(child) - mean_score({unit: rival[unit] for unit in child})


def compare(a: Scores, b: Scores, *, samples: int = 10_000, seed: int = 0) -> Comparison:
    """Return ``a - b`` with its 95% interval, by the paired bootstrap over units; positive: ``a`` is better.

    >>> better, worse = ({str(n): UnitScore(value + n) for n in range(4)} for value in (1.0, 0.5))
    >>> compare(better, worse)
    Comparison(mean=0.5, low=0.5, high=0.5, n=4, dropped=0)
    """
    return paired_bootstrap(_as_documents(b), _as_documents(a), samples=samples, seed=seed)  # there less is better


def _as_documents(scores: Scores) -> list[DocumentScore]:
    return [DocumentScore(unit, each.group, -each.value * math.log(2), each.weight) for unit, each in scores.items()]


def sign_test(a: Scores, b: Scores) -> float:
    """Return the chance that ``a`` wins at least so many units where both are as good; ties say nothing.

    >>> a, b = {str(n): UnitScore(1.0) for n in range(5)}, {str(n): UnitScore(float(n > 3)) for n in range(5)}
    >>> sign_test(a, b), sign_test(b, a)
    (0.0625, 1.0)
    """
    differences = [a[unit].value / a[unit].weight - b[unit].value / b[unit].weight for unit in a]
    wins, losses = sum(each > 0 for each in differences), sum(each < 0 for each in differences)
    total = wins + losses
    return sum(math.comb(total, k) for k in range(wins, total + 1)) / 2**total


def hopeless(child: Scores, rival: Scores, deviations: float) -> bool:
    """Return whether a child that was scored on some of its rival's units cannot be expected to reach it on all of them.

    That is so if the paired difference on those, plus so many of its standard errors, is below zero. Groups are strata: each has a
    variance of its own, and a share that is known, so the error is 0 when all units are. With few units the normal deviations are
    widened to Student's. Nothing is said before two units of every group were seen, or the only one.

    >>> rival = {str(n): UnitScore(float(n % 3)) for n in range(40)}
    >>> seen = {unit: UnitScore(score.value - 1 + int(unit) / 40) for unit, score in list(rival.items())[:20]}
    >>> hopeless(seen, rival, 3.0), hopeless({unit: UnitScore(score.value + 0.8) for unit, score in seen.items()}, rival, 3.0)
    (True, False)
    """
    if any(score.group != rival[unit].group for unit, score in child.items()):
        return False
    sizes, seen = Counter(score.group for score in rival.values()), Counter(score.group for score in child.values())
    if any(seen[group] < min(2, size) for group, size in sizes.items()):
        return False
    before = {unit: rival[unit] for unit in child}
    spreads = {group: _variance(child, before, group) for group in sizes if seen[group] < sizes[group]}
    return mean_score(child) - mean_score(before) + _margin(spreads, seen, sizes, deviations) < 0


def _margin(spreads: Mapping[str, float], seen: Mapping[str, int], sizes: Mapping[str, int], deviations: float) -> float:
    """Return so many standard errors of a mean over groups, of which some units were drawn without return.

    Args:
        spreads: the variance of a unit, for groups of which some are not seen.
        seen, sizes: how many units of each group are known, and how many there are.
        deviations: of a normal distribution; the degrees of freedom are those of Welch and Satterthwaite.
    """
    few = [group for group in spreads if seen[group] < FEW_UNITS]
    pooled = math.fsum((seen[group] - 1) * spreads[group] for group in few) / max(1, sum(seen[group] - 1 for group in few))
    parts = {
        group: max(spread, pooled if group in few else 0.0) * (1 / seen[group] - 1 / sizes[group]) / len(sizes) ** 2
        for group, spread in spreads.items()
    }
    if not (total := math.fsum(parts.values())):
        return 0.0
    freedom = 1 / math.fsum((part / total) ** 2 / (seen[group] - 1) for group, part in parts.items())
    return student(deviations, freedom) * math.sqrt(total)


def student(deviations: float, freedom: float) -> float:
    """Return what so many deviations of a normal distribution are of Student's: as unlikely, or a little less where few units are known.

    Wallace, Annals of Mathematical Statistics 30 (1959), 1124

    >>> round(student(3.0, 5.0), 1), round(student(3.0, 1e6), 3)     # Student's table has 5.5 and 3
    (5.6, 3.0)
    """
    exponent = (deviations * (8 * freedom + 3) / (8 * freedom + 1)) ** 2 / freedom
    return math.sqrt(freedom * math.expm1(exponent)) if exponent < 700 else math.inf


def _variance(a: Scores, b: Scores, group: str) -> float:
    """Return the variance of what a unit adds to the difference of a group's two fitnesses, to first order and around 0."""
    units = [unit for unit in sorted(a) if a[unit].group == group]
    return float((_linear([a[unit] for unit in units]) - _linear([b[unit] for unit in units])).var(ddof=1))


def _linear(scores: Sequence[UnitScore]) -> Float[np.ndarray, "N"]:
    values, weights = np.array([each.value for each in scores]), np.array([each.weight for each in scores], np.float64)
    return np.asarray((values - values.sum() / weights.sum() * weights) / weights.mean())


def in_turn(units: Sequence[str], groups: Mapping[str, str]) -> tuple[str, ...]:
    """Return units so that groups take turns: the first of each, the second of each, and so on; else in the order in which they come.

    Groups count alike, so the mean of the first few units says the most about all if as many are of each group.

    >>> in_turn("abcdef", dict(zip("abcdef", "xxxxyz")))
    ('a', 'e', 'f', 'b', 'c', 'd')
    """
    taken: Counter[str] = Counter()
    turns = []
    for unit in units:
        turns.append(taken[groups[unit]])
        taken[groups[unit]] += 1
    return tuple(unit for _, unit in sorted(zip(turns, units, strict=True), key=lambda each: each[0]))
