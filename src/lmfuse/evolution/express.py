"""Which merge method with which numbers makes each tensor of a child."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from lmfuse.errors import InputError
from lmfuse.evolution.fold import Folded, MergedFold
from lmfuse.evolve.genome import Genome, Joined, Numbers, Parent
from lmfuse.evolve.program import program
from lmfuse.merge.family import Merge, unit_name
from lmfuse.merge.linear import Linear

Genes = Literal["scalar", "tensor", "layer"]


@dataclasses.dataclass(frozen=True)
class Expression:
    """How genomes become merge methods.

    Attributes:
        genes: what a gene is: every number of the weights, or one coefficient per parent for each tensor or layer.
        names: of the tensors.
        num_parents: how many models a genome speaks of.
        method: of coefficients, the merge method whose ``weights`` they are; of scalar genes, the merger of the population, or None.
        low, high: bounds of coefficients.
    """

    genes: Genes
    names: tuple[str, ...]
    num_parents: int
    method: Merge | None = None
    low: float = 0.0
    high: float = 1.0

    def checked(self, has_base: bool) -> Expression:
        """Return self.

        Raises:
            InputError: the method cannot do what it is wanted for.
        """
        method = self._method
        name = getattr(method, "name", "")
        if self.genes != "scalar":
            if not any(field.name == "weights" for field in dataclasses.fields(method)):
                raise InputError(
                    f"express: {name} has no weights that genes could be", "use linear, task_arithmetic, ties, dare or another"
                )
            if not self.low < self.high:
                raise InputError(f"bounds: {self.low:g} to {self.high:g}, expected low < high", "0 and 1 are usual")
        try:
            method.check(self.num_parents, has_base)
        except ValueError as reason:
            raise InputError(f"express: {reason}", "name a base, or another method") from None
        return self

    @property
    def with_merger(self) -> bool:
        """Return whether the population is merged before it is judged."""
        return self.genes == "scalar" and self.method is not None

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Return what has coefficients of its own, in the order of the tensors: tensors, or layers; tensors outside all layers are their own."""
        return tuple(dict.fromkeys(map(self._group, self.names)))

    def individual(self, parent: int) -> Genome:
        """Return the genome that is one of the parents: exactly so where the method's weights are those of an average or of task vectors."""
        if self.genes == "scalar":
            return Parent(parent)
        one = [float(index == parent) for index in range(self.num_parents)]
        return Numbers(tuple(one) * len(self.groups), self.low, self.high)

    def methods(self, genome: Genome, names: Sequence[str]) -> dict[str, Merge]:
        """Return the method of each tensor.

        Raises:
            ValueError: the numbers are none that the method takes.
        """
        if isinstance(genome, Numbers):
            return self._by_group(genome, names)
        lines = program(genome)
        method = MergedFold(self._method, lines) if isinstance(genome, Joined) else Folded(lines)
        return dict.fromkeys(names, method)

    def _by_group(self, genome: Numbers, names: Sequence[str]) -> dict[str, Merge]:
        wanted = len(self.groups) * self.num_parents
        if len(genome.values) != wanted:
            raise ValueError(f"{len(genome.values)} coefficients for {len(self.groups)} groups of {self.num_parents} parents")
        made: dict[str, Merge] = {}
        for number, group in enumerate(self.groups):
            weights = genome.values[number * self.num_parents : (number + 1) * self.num_parents]
            changes: dict[str, Any] = {"weights": weights}
            made[group] = dataclasses.replace(self._method, **changes)
        return {name: made[self._group(name)] for name in names}

    @property
    def _method(self) -> Merge:
        return Linear() if self.method is None else self.method

    def _group(self, name: str) -> str:
        return unit_name(name, "layer") if self.genes == "layer" else name
