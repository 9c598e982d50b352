"""How far each source is from its base: a source that is the base adds nothing, one of another ancestry has no business in the merge.

Sizes are estimated from every eighth piece of each tensor; that a source equals its base is judged by every value.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lmfuse.merge.affine import SMALLEST
from lmfuse.merge.piece import Piece

ONE_IN = 8
LARGEST_RELATIVE_SIZE = 0.5  # full fine-tunes of SmolLM2-135M and stories15M: 0.002 to 0.42; another model: 1.0 (untrained) to 1.4


@dataclass
class TensorDeltas:
    """What was seen of one tensor: squared sums of base and differences by piece, and which sources equal the base so far.

    Pieces may be seen in any order and by several threads.
    """

    num_sources: int
    squares: dict[int, tuple[float, ...]] = field(default_factory=dict)
    equal: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.equal = [True] * self.num_sources

    def see(self, number: int, piece: Piece) -> None:
        """Look at the tensor's piece of this number; pieces without a base say nothing."""
        if piece.stored_base is None:
            return
        for index, source in enumerate(piece.stored):
            if self.equal[index] and not _equal(source, piece.stored_base):
                self.equal[index] = False
        if number % ONE_IN == 0 and piece.base is not None:
            difference = torch.empty_like(piece.base)
            differences = (torch.sub(source, piece.base, out=difference) for source in piece.sources)
            self.squares[number] = (_square(piece.base), *map(_square, differences))

    def record(self) -> dict[str, Any]:
        """Return what was seen, as JSON types: the squared sum of the base, those of the differences, and who equals the base."""
        columns = zip(*(self.squares[number] for number in sorted(self.squares)), strict=True)
        sums = [math.fsum(column) for column in columns] or [0.0] * (self.num_sources + 1)
        return {"base": sums[0], "differences": sums[1:], "equal": self.equal}


def _equal(one: Float[Tensor, "N"], other: Float[Tensor, "N"]) -> bool:
    return torch.equal(one, other) if one.dtype == other.dtype else torch.equal(one.float(), other.float())


def _square(values: Float[Tensor, "N"]) -> float:
    """Return the sum of squares, the largest number if even float64 cannot hold it."""
    square = float(values.dot(values))
    if not SMALLEST <= square < math.inf:
        values = values.double()
        square = float(values.dot(values))
    return square if math.isfinite(square) else sys.float_info.max


@dataclass(frozen=True)
class RelativeSize:
    """The size of a source's difference from the base, over the base's size; ``equal`` if there is no difference in any tensor."""

    value: float
    equal: bool


def relative_sizes(records: Sequence[tuple[Sequence[int], Mapping[str, Any]]]) -> dict[int, RelativeSize]:
    """Return, for each model, how large its differences from its base are over all tensors.

    Args:
        records: for each tensor with a base the models of its sources, and what ``TensorDeltas.record`` said.
    """
    base: dict[int, list[float]] = defaultdict(list)
    differences: dict[int, list[float]] = defaultdict(list)
    equal: dict[int, bool] = defaultdict(lambda: True)
    for models, record in records:
        for model, difference, same in zip(models, record["differences"], record["equal"], strict=True):
            base[model].append(record["base"])
            differences[model].append(difference)
            equal[model] &= same
    found = {}
    for model in sorted(base):
        whole, part = math.fsum(base[model]), math.fsum(differences[model])
        found[model] = RelativeSize(math.sqrt(part / whole) if whole else math.inf if part else 0.0, equal[model])
    return found


def delta_warnings(sizes: Mapping[int, RelativeSize], labels: Sequence[str], base: str) -> list[str]:
    """Return a sentence for each source whose distance from the base says that something is wrong.

    >>> delta_warnings({0: RelativeSize(0.0, True), 1: RelativeSize(1.41, False)}, ["a", "b"], "llama")[1]
    'b differs from the base llama by 1.41 times its size, a fine-tune of it by less than 0.5: is llama its ancestor?'
    """
    found = []
    for model, size in sizes.items():
        if size.equal:
            found.append(f"{labels[model]} is identical to the base {base}: it adds nothing")
        elif size.value > LARGEST_RELATIVE_SIZE:
            found.append(
                f"{labels[model]} differs from the base {base} by {size.value:.3g} times its size, a fine-tune of it by less than "
                f"{LARGEST_RELATIVE_SIZE}: is {base} its ancestor?"
            )
    return found
