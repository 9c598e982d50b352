"""Where children come from: models, and from a genome another one that can be judged. Here parents in memory, in ``folders.py`` on disk."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from safetensors.torch import save
from torch import Tensor

from lmfuse.artefacts import content_key, publish
from lmfuse.errors import InputError, ModelError
from lmfuse.evolution.express import Expression
from lmfuse.evolution.fold import fold
from lmfuse.evolve.genome import Genome, Joined, Numbers
from lmfuse.evolve.program import program
from lmfuse.merge.piece import Piece, cuts
from lmfuse.merge.whole import merge_models

Model: TypeAlias = Path | Mapping[str, Tensor]  # a model's folder, or its weights by name


@runtime_checkable
class Materialise(Protocol):
    """Models that children are made of. It is sent to worker processes, so it must survive ``pickle``.

    Attributes:
        labels: of the parents.
        has_base: whether there is a model that they were tuned from.
        names: of the tensors of a child that a method is asked about.
        key: a hash of all weights.
    """

    @property
    def labels(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def has_base(self) -> bool: ...  # noqa: D102

    @property
    def names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def key(self) -> str: ...  # noqa: D102

    def child(self, expression: Expression, genome: Genome, scratch: Path) -> AbstractContextManager[Model]:
        """Give a model for a while; what it needs on disk is in ``scratch`` and removed at the end.

        Raises:
            ValueError: the genome has numbers that the method does not take.
            InputError: a weight is too large for its type.
        """
        ...

    def publish(self, expression: Expression, genome: Genome, out: Path, note: str, notes: Sequence[str] = ()) -> None:
        """Write a model that stays; the same call finds it there."""
        ...


@dataclass(frozen=True)
class MemoryParents:
    """Models whose weights are held in memory, by name; children are too.

    Attributes:
        models: the parents' weights, by label.
        base: those of the model that they were tuned from.
        hold: how many children with scalar genes are kept in float32, the last ones used: theirs are folded from them, not from the
            parents. It changes no byte, only time and memory.
        dtypes: of a child's tensors; by default those of the first parent's.
    """

    models: Mapping[str, Mapping[str, Tensor]]
    base: Mapping[str, Tensor] | None = None
    hold: int = 16
    dtypes: Mapping[str, torch.dtype] | None = None

    def __post_init__(self) -> None:
        first, *others = self.models.items()
        for label, model in (*others, *([] if self.base is None else [("base", self.base)])):
            _refuse_other_architecture(label, model, *first)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the parents' labels."""
        return tuple(self.models)

    @property
    def has_base(self) -> bool:
        """Return whether there is a base."""
        return self.base is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the tensors."""
        return tuple(next(iter(self.models.values())))

    @cached_property
    def key(self) -> str:
        """Return a hash of all weights."""
        held = [*self.models.items(), *([] if self.base is None else [("", self.base)])]
        return content_key([(label, hashlib.sha256(_bytes(model)).hexdigest()) for label, model in held])

    def made(self, expression: Expression, genome: Genome) -> dict[str, Tensor]:
        """Return the weights of a child."""
        if expression.genes != "scalar" or not isinstance(genome, Joined):
            found = self._by_methods(expression, genome) if isinstance(genome, Numbers) else self._folded(genome)
        else:
            assert expression.method is not None
            found = merge_models(expression.method, [self._folded(member) for member in genome.members], self.base)
        like = next(iter(self.models.values()))
        return {name: _rounded(name, found[name], self.dtypes[name] if self.dtypes else like[name].dtype) for name in self.names}

    def _by_methods(self, expression: Expression, genome: Genome) -> dict[str, Tensor]:
        methods = expression.methods(genome, self.names)
        by_method: dict[int, list[str]] = {}
        for name, method in methods.items():
            by_method.setdefault(id(method), []).append(name)
        found: dict[str, Tensor] = {}
        for names in by_method.values():
            base = None if self.base is None else {name: self.base[name] for name in names}
            sources = [{name: model[name].float() for name in names} for model in self.models.values()]
            found |= merge_models(methods[names[0]], sources, base)
        return found

    def _folded(self, genome: Genome) -> dict[str, Tensor]:
        """Return a genome's weights in float32, folded from the parents and from what is held."""
        if genome.key in self._held:
            self._held.move_to_end(genome.key)
            return self._held[genome.key]
        lines = program(genome, self._held)
        used = [line[1] for line in lines if line[0] == "held"]
        found: dict[str, Tensor] = {}
        for name, like in next(iter(self.models.values())).items():
            whole = {key: self._held[key][name].reshape(-1) for key in used}
            rows = [model[name].reshape(-1) for model in self.models.values()]
            ground = None if self.base is None else self.base[name].reshape(-1)
            result = torch.empty(like.numel())
            for start, stop in cuts(tuple(like.shape)):
                piece = Piece(
                    name, start, tuple(like.shape), [row[start:stop] for row in rows], None if ground is None else ground[start:stop]
                )
                result[start:stop] = fold(lines, piece, held=whole)[-1]
            found[name] = result.view(like.shape)
        for key in used:
            self._held.move_to_end(key)
        self._held[genome.key] = found
        while len(self._held) > self.hold:
            self._held.popitem(last=False)
        return found

    @cached_property
    def _held(self) -> OrderedDict[str, dict[str, Tensor]]:
        return OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave children behind: every worker holds its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_held"}

    @contextmanager
    def child(self, expression: Expression, genome: Genome, scratch: Path) -> Iterator[Model]:
        """Give the weights of a child; nothing is written."""
        yield self.made(expression, genome)

    def publish(self, expression: Expression, genome: Genome, out: Path, note: str, notes: Sequence[str] = ()) -> None:
        """Write ``model.safetensors``."""
        with publish(out, kind="evolved weights") as publication:
            publication.provenance |= {"note": note, **({"notes": list(notes)} if notes else {})}
            (publication.path / "model.safetensors").write_bytes(_bytes(self.made(expression, genome)))


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in the type of the result, rounded once.

    Raises:
        InputError: a value is too large for the type.
    """
    found = tensor.to(dtype)
    if not torch.isfinite(found).all():
        raise InputError(f"{name}: a merged value is none of {dtype}", "choose a dtype of more range, or smaller weights")
    return found


def _bytes(model: Mapping[str, Tensor]) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in sorted(model.items())}, metadata={"format": "pt"})


def _refuse_other_architecture(label: str, model: Mapping[str, Tensor], first: str, like: Mapping[str, Tensor]) -> None:
    for name in sorted({*model, *like}):
        found, expected = ([*each[name].shape] if name in each else "missing" for each in (model, like))
        if found != expected:
            raise ModelError(f"{label}: tensor {name} is {found}, in {first} it is {expected}", "evolve models of one architecture")
