"""What a child is worth: scores of single units of data, by one of our measures or by a user's own function."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lmfuse.artefacts import content_key
from lmfuse.errors import InputError, ModelError
from lmfuse.evaluate.bits_per_byte import score_documents
from lmfuse.evaluate.choices import Question, score_choices
from lmfuse.evolution.models import Model
from lmfuse.evolution.scores import UnitScore
from lmfuse.models import LanguageModel, ModelSpec, load_model
from lmfuse.types import Document

FORM = "the form is module:function"


@runtime_checkable
class Fitness(Protocol):
    """A measure. It is sent to worker processes, so it must survive ``pickle``.

    One that has ``contents``, by unit the ids of the documents in it, is refused where two splits have a document in common.
    """

    @property
    def key(self) -> str:
        """Return a hash of everything that decides the scores, data included, except the model."""
        ...

    def __call__(self, model: Model, units: Sequence[str]) -> Sequence[UnitScore]:
        """Return a score for each unit, in their order; more is better.

        Whatever it raises, except for want of memory or disk, is the child's fault: the child is discarded.
        """
        ...


class _Reader:
    """How children become models that can be read; for measures that have a ``spec`` and a ``device``."""

    spec: ModelSpec
    device: str

    def _loaded(self, model: Model) -> LanguageModel:
        return load_model(replace(self.spec, model=str(model)), self.device) if isinstance(model, Path) else self._with_weights(model)

    @cached_property
    def _held(self) -> LanguageModel:
        return load_model(self.spec, self.device)

    def _with_weights(self, weights: Mapping[str, Tensor]) -> LanguageModel:
        module = self._held.module
        with torch.no_grad():
            own = module.state_dict()
            if unknown := sorted(set(weights) - set(own)):
                raise ModelError(f"{self.spec.model}: has no tensor {unknown[0]}", "name one of the parents")
            for name, tensor in weights.items():
                own[name].copy_(tensor)
        given = {own[name].data_ptr() for name in weights}
        for name, tensor in module.named_parameters():
            if tensor.data_ptr() not in given:
                raise ModelError(f"a child has no tensor {name}", "name one of the parents")
        return self._held

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loaded model behind: every worker loads its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_held"}


@dataclass(frozen=True)
class BitsPerByte(_Reader):
    """The bits that a model needs for a byte of text, negative; a unit is a document, or the windows that one was cut into.

    Attributes:
        windows: the pieces of text of each unit, all of one domain, which is the unit's group.
        spec: how a child is held: its dtype, document start and chat template; its ``model`` is the folder whose tokenizer and module
            serve children that are given as weights.
        batch_tokens: padded tokens of a batch.
        device: where children are judged.
    """

    windows: Mapping[str, tuple[Document, ...]]
    spec: ModelSpec
    batch_tokens: int = 4096
    device: str = "cpu"

    @property
    def key(self) -> str:
        """Return a hash of the text, of the domain that it counts for, and of how and where it is read."""
        held = [self.spec.dtype, self.spec.document_start, self.spec.chat_template, self.batch_tokens, self.device]
        return content_key(["bits_per_byte", {unit: [[each.id, each.domain] for each in w] for unit, w in self.windows.items()}, held])

    @property
    def contents(self) -> dict[str, tuple[str, ...]]:
        """Return the ids of each unit's documents, so that splits can be refused that have a text in common."""
        return {unit: tuple(piece.id for piece in pieces) for unit, pieces in self.windows.items()}

    def __call__(self, model: Model, units: Sequence[str]) -> list[UnitScore]:
        """Return the bits of each unit, negative, over its bytes.

        Raises:
            InputError: a document is longer than the model's context, or has no byte that the model can represent.
            ModelError: the model cannot be used.
        """
        pieces = [(unit, piece) for unit in units for piece in self.windows[unit]]
        found = score_documents(self._loaded(model), [piece for _, piece in pieces], batch_tokens=self.batch_tokens)
        bits, sizes = dict.fromkeys(units, 0.0), dict.fromkeys(units, 0)
        for (unit, _), score in zip(pieces, found, strict=True):
            bits[unit] += score.nll_nats / math.log(2)
            sizes[unit] += score.num_bytes
        for unit, size in sizes.items():
            if not size:
                raise InputError(f"{unit}: no byte of it can be measured", "leave it out")
        return [UnitScore(-bits[unit], sizes[unit], self.windows[unit][0].domain) for unit in units]


@dataclass(frozen=True)
class ChoiceAccuracy(_Reader):
    """Whether a model finds the right answer to a question the likeliest, 1 or 0; a unit is a question, its domain the group.

    Attributes:
        questions: by unit.
        spec, batch_tokens, device: as for ``BitsPerByte``.
        by: how answers of different lengths are compared, see ``ChoiceScore.chosen``.
    """

    questions: Mapping[str, Question]
    spec: ModelSpec
    by: Literal["bytes", "sum"] = "bytes"
    batch_tokens: int = 4096
    device: str = "cpu"

    @property
    def key(self) -> str:
        """Return a hash of the questions and of how they are read."""
        held = [self.spec.dtype, self.spec.document_start, self.batch_tokens, self.by, self.device]
        return content_key(["choices", {unit: [each.id, each.domain] for unit, each in self.questions.items()}, held])

    @property
    def contents(self) -> dict[str, tuple[str, ...]]:
        """Return the id of the question of each unit."""
        return {unit: (each.id,) for unit, each in self.questions.items()}

    def __call__(self, model: Model, units: Sequence[str]) -> list[UnitScore]:
        """Return 1 for each question that is answered rightly.

        Raises:
            InputError, ModelError: see ``score_choices``.
        """
        found = score_choices(self._loaded(model), [self.questions[unit] for unit in units], batch_tokens=self.batch_tokens)
        return [UnitScore(float(each.is_right(self.by)), 1, each.question.domain) for each in found]


@dataclass(frozen=True)
class UserFunction:
    """A user's own function ``module:function``. **Importing the module and calling the function runs their code**, with all their rights.

    It is called with a child (a ``Path``, or weights by name) and a tuple of units, and returns a number or a ``UnitScore`` for each, in
    their order, or a mapping from units. Data are its own affair; it never hears of units that it must not see yet.
    """

    reference: str

    @classmethod
    def checked(cls, reference: str) -> UserFunction:
        """Return it, once it is known to be there.

        Raises:
            InputError: it cannot be imported, or is no function.
        """
        found = cls(reference)
        _ = found.function
        return found

    @property
    def function(self) -> Callable[[Model, tuple[str, ...]], Any]:
        """Return the function; modules beside the current folder are found too."""
        name, colon, attribute = self.reference.partition(":")
        if not (colon and name and attribute):
            raise InputError(f"fitness: {self.reference!r} names no function", FORM)
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            found = getattr(importlib.import_module(name), attribute)
        except Exception as reason:
            raise InputError(f"fitness: {self.reference} cannot be imported: {type(reason).__name__}: {_line(reason)}", FORM) from reason
        if not callable(found):
            raise InputError(f"fitness: {self.reference} is {type(found).__name__}, expected a function", FORM)
        return found

    @property
    def key(self) -> str:
        """Return a hash of the name and of the file that the function stands in; other files that it needs are not seen."""
        file = inspect.getsourcefile(inspect.unwrap(self.function))
        return content_key(["function", self.reference, hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""])

    def __call__(self, model: Model, units: Sequence[str]) -> list[UnitScore]:
        """Return what the function says.

        Raises:
            ValueError: it gives another number of scores than units, or none for a unit.
        """
        found = self.function(model, tuple(units))
        if isinstance(found, Mapping):
            if missing := [unit for unit in units if unit not in found]:
                raise ValueError(f"{self.reference} gave no score for {missing[0]}")
            found = [found[unit] for unit in units]
        scores = [each if isinstance(each, UnitScore) else UnitScore(float(each)) for each in found]
        if len(scores) != len(units):
            raise ValueError(f"{self.reference} gave {len(scores)} scores for {len(units)} units")
        return scores


def _line(reason: BaseException) -> str:
    return next(iter(str(reason).splitlines()), "")
