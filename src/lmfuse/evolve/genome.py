"""What an individual is: a recipe for weights, never the weights themselves.

With scalar genes it is an expression of the parents, whose parts are shared between generations; with tensor or layer genes a vector
of coefficients. Both are combined by the same three functions, so that an operator is written once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from lmfuse.evolve.draws import derived

WHOLE = 1e-9  # how far weights may sum from 1 and still be an average


@dataclass(frozen=True, eq=False)
class Genome:
    """An individual. Two are equal if their keys are: the same recipe from the same parents."""

    @cached_property
    def key(self) -> str:
        """Return 32 hex digits of the recipe's hash."""
        return hashlib.sha256(repr((type(self).__name__, [_plain(getattr(self, f.name)) for f in fields(self)])).encode()).hexdigest()[:32]

    @cached_property
    def inside(self) -> bool:
        """Return whether every number surely lies between the smallest and the largest of the parents."""
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Genome) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _plain(value: Any) -> Any:
    if isinstance(value, Genome):
        return value.key
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, eq=False)
class Parent(Genome):
    """One of the models that evolution began with, by its number."""

    index: int

    @cached_property
    def inside(self) -> bool:
        """Return True."""
        return True


@dataclass(frozen=True, eq=False)
class Base(Genome):
    """The model from which the parents were tuned; only controls use it."""


@dataclass(frozen=True, eq=False)
class Mix(Genome):
    """``sum_i weights[i] * parts[i]``; build it with :func:`mixed`."""

    parts: tuple[Genome, ...]
    weights: tuple[float, ...]

    @cached_property
    def inside(self) -> bool:
        """Return whether it is an average of parts that are inside."""
        average = min(self.weights) >= 0 and abs(math.fsum(self.weights) - 1) <= WHOLE
        return average and all(part.inside for part in self.parts)


@dataclass(frozen=True, eq=False)
class Cross(Genome):
    """Each number is that of ``changed`` with probability ``rate``, else that of ``kept``; which ones, ``seed`` tells."""

    kept: Genome
    changed: Genome
    rate: float
    seed: int

    @cached_property
    def inside(self) -> bool:
        """Return whether both are."""
        return self.kept.inside and self.changed.inside


@dataclass(frozen=True, eq=False)
class Within(Genome):
    """``inner``, each number moved to the nearest one between the smallest and the largest of the parents."""

    inner: Genome

    @cached_property
    def inside(self) -> bool:
        """Return True."""
        return True


@dataclass(frozen=True, eq=False)
class Jitter(Genome):
    """``inner``, each number times a factor drawn evenly from ``1 - size`` to ``1 + size``."""

    inner: Genome
    size: float
    seed: int


@dataclass(frozen=True, eq=False)
class Joined(Genome):
    """A population that is merged into one model and judged as that ("with merger")."""

    members: tuple[Genome, ...]


@dataclass(frozen=True, eq=False)
class Numbers(Genome):
    """Coefficients: for each group of tensors one for each parent, between ``low`` and ``high``."""

    values: tuple[float, ...]
    low: float = 0.0
    high: float = 1.0


def mixed(weighted: Sequence[tuple[float, Genome]]) -> Genome:
    """Return ``sum_i w_i x_i``. Mixtures of mixtures become one, what counts 0 times is left out, and one genome once is itself.

    >>> a, b = Parent(0), Parent(1)
    >>> half = mixed([(0.5, a), (0.5, b)])
    >>> mixed([(0.5, half), (0.5, b)])
    Mix(parts=(Parent(index=0), Parent(index=1)), weights=(0.25, 0.75))
    >>> mixed([(0.0, half), (1.0, b)])
    Parent(index=1)
    """
    first = weighted[0][1]
    if isinstance(first, Numbers):
        sums = zip(*[[weight * value for value in _numbers(each).values] for weight, each in weighted if weight], strict=True)
        values = tuple(map(math.fsum, sums)) if any(weight for weight, _ in weighted) else (0.0,) * len(first.values)
        return Numbers(values, first.low, first.high)
    counts: dict[Genome, list[float]] = {}
    for weight, each in weighted:
        parts = zip(each.weights, each.parts, strict=True) if isinstance(each, Mix) else [(1.0, each)]
        for inner, part in parts:
            counts.setdefault(part, []).append(weight * inner)
    kept = {part: total for part, terms in counts.items() if (total := math.fsum(terms))}
    if list(kept.values()) == [1.0]:
        return next(iter(kept))
    in_order = sorted(kept, key=_order)
    return Mix(tuple(in_order), tuple(kept[part] for part in in_order))


def _order(part: Genome) -> tuple[int, int, str]:
    """Return what mixtures are sorted by, so that the same mixture is the same genome: parents by number, then the rest."""
    return (0, part.index, "") if isinstance(part, Parent) else (1, 0, part.key)


def crossed(kept: Genome, changed: Genome, rate: float, seed: int) -> Genome:
    """Return ``changed`` in each number with probability ``rate``, else ``kept``; a rate of 0 or 1 is one of them.

    >>> crossed(Parent(0), Parent(1), 0.0, seed=3), crossed(Parent(0), Parent(1), 1.0, seed=3)
    (Parent(index=0), Parent(index=1))
    """
    if rate == 0 or kept == changed:
        return kept
    if rate == 1:
        return changed
    if isinstance(kept, Numbers):
        taken = np.random.default_rng(seed).random(len(kept.values)) < rate
        pairs = zip(taken, _numbers(changed).values, kept.values, strict=True)
        return Numbers(tuple(float(y if take else x) for take, y, x in pairs), kept.low, kept.high)
    return Cross(kept, changed, rate, seed)


def repaired(genome: Genome) -> Genome:
    """Return a genome within its bounds: coefficients are mirrored at the bound that they crossed, weights moved to the parents' range.

    >>> repaired(Numbers((1.25, -0.5, 7.0))).values
    (0.75, 0.5, 0.0)
    >>> repaired(Parent(0)), type(repaired(mixed([(2.0, Parent(0)), (-1.0, Parent(1))]))).__name__
    (Parent(index=0), 'Within')
    """
    if not isinstance(genome, Numbers):
        return genome if genome.inside else Within(genome)
    low, high = genome.low, genome.high

    def mirrored(value: float) -> float:
        value = 2 * low - value if value < low else 2 * high - value if value > high else value
        return min(max(value, low), high)

    return Numbers(tuple(map(mirrored, genome.values)), low, high)


def jittered(genome: Genome, size: float, seed: int) -> Genome:
    """Return a copy that is changed a little: each weight by up to ``size`` of itself, each coefficient by up to ``size`` of its range.

    >>> jittered(Numbers((0.5,)), 0.0, seed=1).values
    (0.5,)
    """
    if isinstance(genome, Numbers):
        noise = np.random.default_rng(seed).uniform(-1, 1, len(genome.values)) * size * (genome.high - genome.low)
        return repaired(Numbers(tuple(float(x + n) for x, n in zip(genome.values, noise, strict=True)), genome.low, genome.high))
    return Jitter(genome, size, seed) if size else genome


def filled(population: Sequence[Genome], size: int, jitter: float, seed: int) -> list[Genome]:
    """Return a population of at least ``size``: copies of its members in turn, changed a little.

    >>> [type(each).__name__ for each in filled([Parent(0), Parent(1)], 3, 0.05, seed=0)]
    ['Parent', 'Parent', 'Jitter']
    """
    more = range(len(population), size)
    return [*population, *(jittered(population[n % len(population)], jitter, derived(seed, "fill", n)) for n in more)]


def _numbers(genome: Genome) -> Numbers:
    assert isinstance(genome, Numbers), "coefficients are mixed with coefficients"
    return genome
