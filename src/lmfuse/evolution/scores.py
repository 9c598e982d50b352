"""What a fitness says of one unit of development data, and what follows from many of them: a mean, a comparison, a hopeless case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lmfuse.evaluate.paired import Comparison, paired_bootstrap
from lmfuse.types import DocumentScore


@dataclass(frozen=True)
class UnitScore:
    """One unit's part of a fitness: ``value`` over ``weight``, more is better.

    Bits per byte: the bits, negative, over the bytes. Accuracy: 1 or 0 over 1.

    Attributes:
        value: the numerator.
        weight: the denominator, at least 1.
        group: such as a domain; groups count alike, however many units they have.
    """

    value: float
    weight: int = 1
    group: str = ""

    def __post_init__(self) -> None:
        if self.weight < 1:
            raise ValueError(f"a unit's weight is {self.weight}, expected at least 1")


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


def hopeless(child: Scores, rival: Scores, num_units: int, deviations: float) -> bool:
    """Return whether a child that was scored on some of ``num_units`` units cannot be expected to reach its rival on all of them.

    That is so if the paired difference, plus so many of its standard errors, is below zero. The error is that of a sample drawn from
    the units without return, so it is 0 when all are known. Units come in an order drawn beforehand, the same for all children.
    """
    influence, difference = _paired(child, {unit: rival[unit] for unit in child})
    n = len(influence)
    if n < 2:
        return False
    error = math.sqrt(float(influence.var(ddof=1)) / n * max(0.0, 1 - n / num_units))
    return difference + deviations * error < 0


def _paired(a: Scores, b: Scores) -> tuple[Float[np.ndarray, "N"], float]:
    """Return what each unit adds to the difference of two fitnesses, to first order and around 0, times their number; and that difference."""
    units = sorted(a)
    groups = sorted({a[unit].group for unit in units})
    influence = np.zeros(len(units))
    for group in groups:
        where = [index for index, unit in enumerate(units) if a[unit].group == group]
        influence[where] = _linear([a[units[i]] for i in where]) - _linear([b[units[i]] for i in where])
        influence[where] *= len(units) / len(where) / len(groups)
    return influence, mean_score(a) - mean_score(b)


def _linear(scores: Sequence[UnitScore]) -> Float[np.ndarray, "N"]:
    values, weights = np.array([each.value for each in scores]), np.array([each.weight for each in scores], np.float64)
    return np.asarray((values - values.sum() / weights.sum() * weights) / weights.mean())
