"""Parents in folders: children streamed from disk to disk in bounded memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lmfuse.artefacts import content_key
from lmfuse.errors import InputError
from lmfuse.evolution.express import Expression
from lmfuse.evolution.models import MemoryParents, Model
from lmfuse.evolve.genome import Genome
from lmfuse.model_files import ModelSpec
from lmfuse.weights.check import check_models, check_plan, is_vocabulary_tensor
from lmfuse.weights.engine import execute
from lmfuse.weights.files import result_config
from lmfuse.weights.plan import MergePlan, OpenedModel, OutputTensor, TensorRef, UnitedVocabulary, open_models
from lmfuse.weights.read import DTYPES
from lmfuse.weights.vocabulary import unite_vocabularies


@dataclass(frozen=True)
class FolderParents:
    """Models in Hugging Face folders. Children are streamed through the merge engine into a folder that is removed after they were judged.

    Attributes:
        opened: the parents, then the base if there is one.
        num_parents: how many are parents.
        names: of the tensors that are merged.
        copied: of the tensors of integers, which must be equal everywhere.
        united: their vocabulary.
        dtype: of the result, as safetensors spells it; None keeps each tensor's own.
        resident: hold the weights of all parents in memory, in every worker, and give children as weights by name.
        warnings: what may be wrong with the models.
        hold: with ``resident``, how many children every worker keeps in float32, see ``MemoryParents``.
    """

    opened: tuple[OpenedModel, ...]
    num_parents: int
    names: tuple[str, ...]
    copied: tuple[str, ...]
    united: UnitedVocabulary
    dtype: str | None = None
    resident: bool = False
    warnings: tuple[str, ...] = ()
    hold: int = 4

    @classmethod
    def open(
        cls,
        parents: Sequence[ModelSpec],
        base: ModelSpec | None = None,
        *,
        cache: Path | None = None,
        dtype: str | None = None,
        resident: bool = False,
        hold: int = 4,
    ) -> FolderParents:
        """Check models; of the weights only headers are read, and hashes made of files that were never seen.

        Args:
            parents: at least two.
            base: the model that they were tuned from.
            cache: folder in which hashes of large files are remembered.
            dtype: of children, as safetensors spells it (``F32``, ``BF16``, ``F16``).
            resident, hold: see the class.

        Raises:
            InputError: fewer than two parents.
            ModelError, TokenizerError, ResourceError: see ``open_models``, ``check_models``, ``unite_vocabularies``.
        """
        if len(parents) < 2:
            raise InputError(f"parents: {len(parents)} model{'s' * (len(parents) != 1)}, expected 2 or more", "name more models")
        opened = open_models([*parents, *([] if base is None else [base])], cache)
        agreement = check_models(opened)
        united = unite_vocabularies(opened, union=False)
        merged = [name for name in agreement.names if opened[0].entry(name).dtype in DTYPES]
        copied = [name for name in agreement.names if name not in set(merged)]
        found = cls(opened, len(parents), tuple(merged), tuple(copied), united, dtype, resident, agreement.warnings, hold)
        if resident and any(united.row_maps):
            raise InputError("parents: their embeddings have different numbers of rows", "children of such models are made on disk only")
        return found

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the parents' labels."""
        return tuple(model.label for model in self.opened[: self.num_parents])

    @property
    def has_base(self) -> bool:
        """Return whether there is a base."""
        return len(self.opened) > self.num_parents

    @cached_property
    def key(self) -> str:
        """Return a hash of all weights, and of how they become a child's."""
        return content_key([[model.key for model in self.opened], self.num_parents, self.dtype])

    def plan(self, expression: Expression, genome: Genome, note: str = "", notes: Sequence[str] = ()) -> MergePlan:
        """Return the merge that makes a child; ``note`` and ``notes`` are for its card: the recipe, and what there is to say of it.

        Raises:
            ValueError: the genome has numbers that the method does not take.
        """
        methods = expression.methods(genome, self.names)
        tensors = tuple(self._output(name, methods.get(name, next(iter(methods.values())))) for name in (*self.names, *self.copied))
        config = result_config(self.opened[0], self._dtype(self.names[0]), num_rows=self.united.num_rows)
        united = self.united if any(self.united.row_maps) else self.united.ground
        base = self.num_parents if self.has_base else None
        plan = MergePlan(self.opened, tensors, config, united, tuple(notes), self.warnings, note, base)
        check_plan(plan)
        return plan

    def _dtype(self, name: str) -> str:
        kinds = {model.entry(name).dtype for model in self.opened[: self.num_parents]}
        if not kinds <= DTYPES.keys():
            return next(iter(kinds))
        return self.dtype or (kinds.pop() if len(kinds) == 1 else "F32")

    def _output(self, name: str, method: Any) -> OutputTensor:
        entry = self.opened[0].entry(name)
        by_token = is_vocabulary_tensor(name)
        refs = [TensorRef(n, name, self.united.row_maps[n] if by_token else None) for n in range(len(self.opened))]
        shape = (self.united.num_rows, *entry.shape[1:]) if by_token else entry.shape
        base = refs[self.num_parents] if self.has_base else None
        return OutputTensor(name, shape, self._dtype(name), method, tuple(refs[: self.num_parents]), base)

    @contextmanager
    def child(self, expression: Expression, genome: Genome, scratch: Path) -> Iterator[Model]:
        """Give a child's folder, which is removed at the end; with ``resident`` its weights."""
        if self.resident:
            yield self._in_memory.made(expression, genome)
            return
        out = scratch / f"{genome.key}-{os.getpid()}"
        try:
            yield execute(self.plan(expression, genome), out, threads=torch.get_num_threads()).path
        finally:
            shutil.rmtree(out, ignore_errors=True)

    @cached_property
    def _in_memory(self) -> MemoryParents:
        def held(model: OpenedModel) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for path in model.folder.headers:
                with safe_open(path, "pt") as file:
                    found |= {name: file.get_tensor(name) for name in file.keys() if name in set(self.names)}  # noqa: SIM118
            return {name: found[name] for name in self.names}

        weights = [held(model) for model in self.opened]
        dtypes = {name: DTYPES[self._dtype(name)] for name in self.names}
        return MemoryParents(dict(zip(self.labels, weights, strict=False)), weights[-1] if self.has_base else None, self.hold, dtypes)

    def __getstate__(self) -> dict[str, Any]:
        """Leave weights behind: every worker reads them itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_in_memory"}

    def publish(self, expression: Expression, genome: Genome, out: Path, note: str, notes: Sequence[str] = ()) -> None:
        """Write the model's folder, with a card."""
        execute(self.plan(expression, genome, note, notes), out)
