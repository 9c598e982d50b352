"""What all merge methods have in common: they ask to look at all pieces as often as they must, then say how one piece is merged."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.merge.piece import Piece

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Density = Annotated[float, Field(ge=0, le=1)]
PerSource: TypeAlias = float | tuple[float, ...]
Granularity = Literal["tensor", "layer", "model"]

Look: TypeAlias = Callable[[Piece], Any]
Combine: TypeAlias = Callable[[Piece], Any]


@plain_dataclass(frozen=True)
class About:
    """What a method knows of a unit before it sees a number: its tensors, how many models there are, and where fallbacks are counted.

    Counters are written between looks and before the first piece is merged, never by a look or a ``Combine``.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_sources: int
    num_elements: int
    counters: Counter[str]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Merge:
    """How several tensors become one, without ever having a whole one.

    Whoever runs a method calls ``start`` for each unit and drives what it returns: every ``Look`` that it yields is called with every
    piece of the unit, the results are added with ``+`` in the order of the pieces (tensors in order of ``About.names``), and the sum is
    sent back. What it returns at last is called once with every piece and gives the merged piece in float32.

    A look may have an attribute ``wants``, a function of a tensor's name and a piece's start: what it says False to need not be read.
    """

    needs_base: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = False  # whether every piece must be of whole rows, which may be as long as a tensor
    min_sources: ClassVar[int] = 1
    max_sources: ClassVar[int | None] = None

    def unit_of(self, tensor_name: str) -> str:
        """Return the name of what is looked at together: tensors of the same name are one unit. By default each tensor is its own."""
        return tensor_name

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit.

        Raises:
            ValueError: the settings do not fit the number of sources.
        """
        raise NotImplementedError

    def check(self, num_sources: int, has_base: bool) -> None:
        """Raise ValueError where the method cannot merge so many sources, or not without a base; before anything is read."""
        name = getattr(self, "name", type(self).__name__)
        if self.needs_base and not has_base:
            raise ValueError(f"{name}: no base model, expected one")
        most = "" if self.max_sources is None or self.max_sources == self.min_sources else f" to {self.max_sources}"
        expected = f"{self.min_sources}{' or more' if self.max_sources is None else most}"
        if num_sources < self.min_sources or (self.max_sources is not None and num_sources > self.max_sources):
            raise ValueError(f"{name}: {num_sources} source{'s' * (num_sources != 1)}, expected {expected}")


def per_source(value: PerSource, num_sources: int, what: str) -> tuple[float, ...]:
    """Return one number for each source: a single number means the same for all.

    Raises:
        ValueError: not as many numbers as sources.

    >>> per_source(0.5, 2, "weights"), per_source((1.0, 3.0), 2, "weights")
    ((0.5, 0.5), (1.0, 3.0))
    """
    values = value if isinstance(value, tuple) else (value,) * num_sources
    if len(values) != num_sources:
        raise ValueError(f"{what}: {len(values)} numbers for {num_sources} sources")
    return values


def normalised(weights: tuple[float, ...], what: str) -> tuple[float, ...]:
    """Divide numbers by their sum.

    Raises:
        ValueError: they sum to 0, as far as rounding lets one tell.

    >>> normalised((1.0, 3.0), "weights")
    (0.25, 0.75)
    """
    total = math.fsum(weights)
    if abs(total) <= 1e-12 * math.fsum(map(abs, weights)):
        raise ValueError(f"{what}: {', '.join(f'{weight:g}' for weight in weights)} sum to 0, expected a sum to divide by")
    return tuple(weight / total for weight in weights)


def check_weights(weights: PerSource, normalise: bool = True, may_be_zero: bool = False) -> None:
    """Raise ValueError where weights cannot be used, as far as their number does not matter.

    Args:
        normalise: whether they are divided by their sum.
        may_be_zero: whether all of them may be 0.
    """
    values = weights if isinstance(weights, tuple) else (weights,)
    if any(values):
        if normalise:
            normalised(values, "weights")
    elif not may_be_zero:
        raise ValueError("weights: all are 0, expected at least one that is not")


def unit_name(tensor_name: str, granularity: Granularity) -> str:
    """Return what a tensor is looked at together with: nothing, its layer (up to the first number in its name), or the whole model.

    >>> unit_name("model.layers.7.mlp.up_proj.weight", "layer"), unit_name("lm_head.weight", "layer")
    ('model.layers.7', 'lm_head.weight')
    """
    if granularity == "model":
        return ""
    layer = re.match(r"(?:.*?\.)?\d+(?=\.)", tensor_name) if granularity == "layer" else None
    return layer[0] if layer else tensor_name
