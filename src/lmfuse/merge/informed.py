"""Merging that asks how much each number matters to its model: statistics of the sources, handed over tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.merge.family import About, Combine, Look, Merge
from lmfuse.merge.piece import Tensor

Kind = Literal["fisher", "gram"]
Statistics: TypeAlias = Callable[[str], Sequence[Float[Tensor, "..."]] | None]  # by tensor, one for each source; None where there is none


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Informed(Merge):
    """A method that needs statistics; whoever has some calls ``begin`` in place of ``start``.

    Attributes:
        kind: of the statistics.
    """

    kind: ClassVar[Kind]

    def begin(self, about: About, statistics: Statistics) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit, a tensor.

        Args:
            about: the unit.
            statistics: gives those of a tensor, of all sources in their order; asked once, here.

        Raises:
            ValueError: the settings do not fit, or a statistic is of another shape, or none.
        """
        raise NotImplementedError

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Raise ValueError: there are no statistics."""
        self.check(about.num_sources, has_base=False)
        raise NotImplementedError

    def check(self, num_sources: int, has_base: bool) -> None:
        """Raise ValueError: there are no statistics."""
        raise ValueError(
            f"{getattr(self, 'name', '')}: no statistics, expected those of each source (lmfuse statistics, then `statistics`)"
        )

    def check_sources(self, num_sources: int, has_base: bool) -> None:
        """Raise ValueError where the method cannot merge so many sources, statistics given."""
        super().check(num_sources, has_base)
