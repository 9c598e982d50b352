"""What a merge of weights is, before a byte is written: which models, which tensors come of which, and by which method."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lmfuse import __version__
from lmfuse.artefacts import content_key
from lmfuse.errors import ModelError
from lmfuse.merge.family import Merge
from lmfuse.model_facts import licence_of, model_key
from lmfuse.model_files import ModelFolder, ModelSpec, check_folder, local_folder
from lmfuse.safetensors_header import TensorEntry

FORMAT = 2  # of the bytes that a plan ends in; a change here is another key
MAX_SHARD_BYTES = 5 * 10**9
FileState = tuple[int, int, int]  # size, time of the last change in nanoseconds, inode
RowMap = tuple[int, ...]  # for each row of the result the row of the model, or -1 where the model has none


@dataclass(frozen=True)
class OpenedModel:
    """A model on this machine whose folder passed every check of ``model_files``.

    Attributes:
        label: how recipe, card and messages call it.
        folder: its configuration and the headers of its weight files.
        revision: the commit of a hub model, ``""`` for a folder.
        licence: what its folder says, or ``""``.
        key: a hash of its configuration and weights.
        source: the hub name, or the folder's own name: what may stand in a card.
        states: what the system said of each weight file when its header was read and it was hashed.
    """

    label: str
    folder: ModelFolder
    revision: str = ""
    licence: str = ""
    key: str = ""
    source: str = ""
    states: Mapping[Path, FileState] = field(default_factory=dict)

    @cached_property
    def tensors(self) -> Mapping[str, tuple[Path, TensorEntry]]:
        """Return where each tensor lies: its file and its place in it."""
        return {name: (path, entry) for path, header in self.folder.headers.items() for name, entry in header.tensors.items()}

    def entry(self, name: str) -> TensorEntry:
        """Return what the model holds under this name.

        Raises:
            ModelError: it holds no such tensor.
        """
        if name not in self.tensors:
            raise ModelError(f"{self.label}: tensor {name} is missing", "merge models of one architecture")
        return self.tensors[name][1]


@dataclass(frozen=True)
class TensorRef:
    """One tensor of one model, perhaps with its rows rearranged.

    Attributes:
        model: index into ``MergePlan.models``.
        name: of the tensor in that model.
        rows: where vocabularies are united: the model's row for each row of the result. A missing row (-1) is the base's; where the
            base lacks it, the row of the result is the mean of those sources that have it, whatever the method; where nobody has it, zeros.
    """

    model: int
    name: str
    rows: RowMap | None = None


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the result: its type as safetensors spells it, the method with its final numbers, and what it is made of.

    Tensors of integers or booleans are not merged: they must be equal everywhere and are copied.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    method: Merge
    sources: tuple[TensorRef, ...]
    base: TensorRef | None = None

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """Return the sources, then the base if there is one."""
        return self.sources if self.base is None else (*self.sources, self.base)


@dataclass(frozen=True)
class AddedToken:
    """A token that the result has beyond its ground vocabulary.

    Attributes:
        token: as its tokenizer spells it.
        id: in the result.
        models: labels of the models that have it.
        entry: what ``tokenizer.json`` says of it, its ``id`` included.
    """

    token: str
    id: int
    models: tuple[str, ...]
    entry: Mapping[str, Any]


@dataclass(frozen=True)
class UnitedVocabulary:
    """Vocabularies that differ only by padding and added tokens, as one.

    Attributes:
        ground: index of the model whose tokenizer the result has, with the added tokens at its end.
        added: the tokens that the ground vocabulary lacks.
        num_rows: rows of the result's embedding.
        row_maps: for each model how its rows move, None where they stay as they are.
        report: what was done, in sentences.
    """

    ground: int
    added: tuple[AddedToken, ...]
    num_rows: int
    row_maps: tuple[RowMap | None, ...]
    report: tuple[str, ...]


@dataclass(frozen=True)
class MergePlan:
    """Everything that decides the bytes of a merge.

    Attributes:
        models: what is read.
        tensors: what is written; the engine orders them as they lie on disk.
        config: ``config.json`` of the result.
        tokenizer_from: the model whose tokenizer, chat template and generation defaults are copied, or vocabularies united.
        notes: what was decided, for card and terminal.
        warnings: what may be wrong, for card and terminal.
        recipe_text: the recipe as YAML, for the card.
        base: index of the base model, if there is one; for the card.
        max_shard_bytes: the most bytes of tensors in one file, unless one tensor is larger.
    """

    models: tuple[OpenedModel, ...]
    tensors: tuple[OutputTensor, ...]
    config: Mapping[str, Any]
    tokenizer_from: int | UnitedVocabulary = 0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    recipe_text: str = ""
    base: int | None = None
    max_shard_bytes: int = MAX_SHARD_BYTES

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """Return name and content of every file beside the weights, except the card; read once, see ``files.result_files``."""
        from lmfuse.weights.files import result_files  # which needs this module

        return result_files(self)

    @cached_property
    def key(self) -> str:
        """Return the hash of everything that can change a byte of the result; paths are no part of it.

        Raises:
            ModelError, TokenizerError: see ``files.result_files``.
        """
        files = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        models = [[each.label, each.source, each.revision, each.licence, each.key] for each in self.models]
        rest = [
            self.tensors,
            files,
            self.config,
            self.tokenizer_from,
            self.notes,
            self.warnings,
            self.recipe_text,
            self.base,
            self.max_shard_bytes,
        ]
        methods = [type(tensor.method).__name__ for tensor in self.tensors]
        return content_key([FORMAT, __version__, models, methods, *rest])


def open_model(spec: ModelSpec, cache: Path | None = None) -> OpenedModel:
    """Check a model, fetched from the hub if it is not here.

    Raises:
        ModelError: see ``local_folder`` and ``check_folder``.
        ResourceError: the disk is full.
    """
    path = local_folder(spec)
    states = {file: file_state(file.stat()) for file in check_folder(path).headers}
    checked = check_folder(path)  # what is read is not older than its state, so that no change goes unnoticed
    local = Path(spec.model).expanduser().is_dir()
    revision = path.name if not local and re.fullmatch("[0-9a-f]{40}", path.name) else ""
    source = path.resolve().name if local else spec.model
    return OpenedModel(spec.label, checked, revision, licence_of(path), model_key(checked, cache), source, states)


def file_state(state: os.stat_result) -> FileState:
    """Return what tells a file from another that took its place, or from what it was before it was written to."""
    return state.st_size, state.st_mtime_ns, state.st_ino


def open_models(specs: Sequence[ModelSpec], cache: Path | None = None) -> tuple[OpenedModel, ...]:
    """Open several models at once: weights that were never seen before are hashed, one core per model.

    Raises:
        ModelError, ResourceError: see ``open_model``; the first in order.
    """
    with ThreadPoolExecutor(max_workers=min(8, len(specs)) or 1) as pool:
        return tuple(pool.map(lambda spec: open_model(spec, cache), specs))
