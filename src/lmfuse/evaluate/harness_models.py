"""The models that lm-evaluation-harness asks: loaded once, and seen with the tokenizers that its prompts want."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import torch
from pydantic import ValidationError, create_model

from lmfuse.bytes_files import read_folder
from lmfuse.bytes_vocabulary import Given
from lmfuse.decode.byte_mixture import ByteMixture
from lmfuse.decode.pack_llm import PackLLM
from lmfuse.errors import InputError, LmfuseError, did_you_mean
from lmfuse.evaluate.harness_prompts import Context, begin_answer
from lmfuse.generate import LOOPS, FusedWriter
from lmfuse.generate.byte_reader import SortedTokens
from lmfuse.generate.cache import Seat
from lmfuse.generate.crew import Crew
from lmfuse.generate.release import Reason, release
from lmfuse.generate.session import Session
from lmfuse.generate.together import write_together
from lmfuse.model_files import local_folder, told_apart
from lmfuse.models import LanguageModel, ModelSpec, load_model, load_tokenizer, pick_device, wrap_module
from lmfuse.schema_errors import problems
from lmfuse.types import Segment
from lmfuse.writing import Passage, WritingSettings

Dtype = Literal["float32", "bfloat16", "float16"]
View: TypeAlias = Literal["plain", "empty", "chat"]
Found = TypeVar("Found")


class Ensemble:
    """Models that answer together.

    Attributes:
        specs: which models; their ``chat_template`` is the one for conversations.
        labels: what they are called.
        method: how they write together.
        by_bytes: whether what they say is a mixture of distributions over the next byte.
        own_tokens: whether it is one model that says what its own tokens say.
    """

    def __init__(self, specs: Sequence[ModelSpec], devices: Sequence[str], method: object) -> None:
        """Load the models.

        Raises:
            InputError: no model, one twice, or not one device for all or for each; or see ``FusedWriter``, ``load_model``.
            ModelError, TokenizerError, ResourceError: see ``load_model``.
        """
        self.specs, self.method = tuple(specs), method
        self.labels = told_apart([spec.model for spec in specs])
        if not specs or len(set(self.labels)) < len(specs):
            raise InputError(f"models: {', '.join(self.labels) or 'none'}", "name at least one, and each once: models=A+B+C")
        places = list(devices) * len(specs) if len(devices) == 1 else list(devices)
        if len(places) != len(specs):
            raise InputError(f"devices: {len(places)} for {len(specs)} models", "give one, or one for each: devices=cuda:0+cuda:1")
        plain = [replace(spec, chat_template="none") for spec in specs]
        self._loaded = [load_model(spec, pick_device(place)) for spec, place in zip(plain, places, strict=True)]
        self._writers: dict[View, FusedWriter] = {"empty": FusedWriter(self._loaded, self.labels, method)}
        self._models: dict[View, tuple[LanguageModel, ...]] = {"empty": tuple(self._loaded)}
        self._sorted: dict[str, SortedTokens] = {}
        self.by_bytes = isinstance(method, ByteMixture | PackLLM)
        self.own_tokens = len(specs) == 1 and not self.by_bytes

    def models(self, view: View) -> tuple[LanguageModel, ...]:
        """Return the models: ``plain`` begins a text as the tokenizer's own settings do, ``empty`` with a start token wherever there is one,
        ``chat`` reads conversations.

        Raises:
            InputError, TokenizerError: see ``load_tokenizer``: a model without the chat template that was asked for.
        """
        if view not in self._models:
            changed = [self._seen_as(view, spec) for spec in self.specs]
            pairs = zip(self._loaded, changed, strict=True)
            self._models[view] = tuple(
                model if spec is None else wrap_module(model.module, load_tokenizer(spec), model.key) for model, spec in pairs
            )
        return self._models[view]

    @staticmethod
    def _seen_as(view: View, spec: ModelSpec) -> ModelSpec | None:
        if view == "chat":
            return spec
        if spec.document_start != "auto" or starts_texts(spec):
            return None
        return replace(spec, document_start="none", chat_template="none")

    def writer(self, view: View) -> FusedWriter:
        """Return what writes."""
        if view not in self._writers:
            self._writers[view] = FusedWriter(self.models(view), self.labels, self.method)
        return self._writers[view]

    @contextmanager
    def reading(self, context: Context, settings: WritingSettings | None = None, seats: Sequence[Seat] | None = None) -> Iterator[Crew]:
        """Give the models behind a context, which they have read; with seats, beside other texts.

        Raises:
            InputError, TokenizerError, ResourceError: see ``Writer.write``.
        """
        crew = Crew(self.models(view_of(context)), self.labels, context.prompt, settings or WritingSettings(), seats=seats)
        with closing(crew):
            if context.messages and context.text:
                crew.each(lambda index: begin_answer(crew.sessions[index], context.text))
            yield crew

    def together(self, works: Sequence[Callable[[Sequence[Seat]], Iterable[Found]]]) -> list[list[Found]]:
        """Return what some works find that read and write one text each: what they want of one model is read in one pass.

        Raises:
            LmfuseError: the first work's that has failed.
        """
        found = []
        for each in write_together(works, len(self.specs)):
            if isinstance(each, LmfuseError):
                raise each
            found.append(each)
        return found

    def write(self, contexts: Sequence[Context], settings: Sequence[WritingSettings]) -> list[str]:
        """Write several texts at once.

        Raises:
            LmfuseError: see ``Writer.write``; the first text's that could not be written.
        """
        written = self.together([partial(self._write, *pair) for pair in zip(contexts, settings, strict=True)])
        return ["".join(part.text for part in each if isinstance(part, Passage)) for each in written]

    def _write(self, context: Context, settings: WritingSettings, seats: Sequence[Seat]) -> Iterator[Passage | Reason]:
        with self.reading(context, settings, seats) as crew:
            yield from self.continued(crew, settings)

    def continued(self, crew: Crew, settings: WritingSettings) -> Iterator[Passage | Reason]:
        """Yield what models write that have read a prompt, as ``FusedWriter`` does."""
        return release(LOOPS[type(self.method)](crew, self.method, settings), settings)

    def sorted_tokens(self, session: Session) -> SortedTokens:
        """Return a session's vocabulary by its bytes; sorting a large one takes a good part of a second, so it is done once."""
        key = f"{session.model.tokenizer.key} {session.chooser.ends}"
        if key not in self._sorted:
            self._sorted[key] = SortedTokens.of(session.model.tokenizer.vocabulary, session.chooser.ends)
        return self._sorted[key]

    @property
    def weights(self) -> tuple[float, ...]:
        """Return how much each model's judgement counts."""
        return tuple(getattr(self.method, "weights", ()) or [1.0] * len(self.specs))

    def use_template(self, name: str) -> None:
        """Read conversations with a template: ``own``, ``openchat`` or the path of a jinja file.

        Raises:
            InputError, TokenizerError: a model without it.
        """
        if any(spec.chat_template != name for spec in self.specs):
            self.specs = tuple(replace(spec, chat_template=name) for spec in self.specs)
            self._models.pop("chat", None)
            self._writers.pop("chat", None)
            self.__dict__.pop("takes_system", None)
        self.models("chat")

    @cached_property
    def takes_system(self) -> bool:
        """Return whether every model's chat template has a place for a system message."""
        probe = [Segment("a", "system", trained=False), Segment("b", "user", trained=False)]
        try:
            for model in self.models("chat"):
                model.tokenizer.render_prompt(probe)
        except InputError:
            return False
        return True


def view_of(context: Context) -> View:
    """Return how a context is read."""
    return "chat" if context.messages else "plain" if context.text else "empty"


def starts_texts(spec: ModelSpec) -> bool:
    """Return whether a tokenizer puts a start token before a text by itself, as transformers would."""
    found = read_folder(local_folder(spec, weights=False))
    return (found.add_bos and "bos" in found.named) or bool(Given.read(found.tokenizer).start_template)


def make_method(name: str, parameters: Mapping[str, Any], others: Sequence[str]) -> object:
    """Return a way to write together.

    Args:
        name: of the method.
        parameters: its parameters.
        others: what else may be said of a model, for suggestions.

    Raises:
        InputError: no such method or parameter, or an impossible value.
    """
    known: dict[str, Any] = {method.name: method for method in LOOPS}  # type: ignore[attr-defined]
    if name not in known:
        raise InputError(f"method: {did_you_mean(name, known)}", "`lmfuse methods` lists them")
    fields = set(known[name].__dataclass_fields__) - {"name"}
    unknown = [each for each in parameters if each not in fields]
    if unknown:
        raise InputError(f"--model_args: {did_you_mean(unknown[0], [*others, *fields])}", f"`lmfuse methods {name}` lists its parameters")
    values = {key: names(value, float) if key == "weights" else value for key, value in parameters.items()}
    try:
        return known[name](**values)
    except ValidationError as error:
        raise InputError(problems(error, create_model("Method", method=(known[name], ...))), f"`lmfuse methods {name}`") from None


def names(value: object, kind: Any = str) -> tuple[Any, ...]:
    """Return the parts of what was written as ``A+B``, or as a list.

    >>> names("A+B"), names(["a+b", "c"]), names("2+1", float)
    (('A', 'B'), ('a+b', 'c'), (2.0, 1.0))

    Raises:
        InputError: parts of another kind.
    """
    parts = value if isinstance(value, list | tuple) else str(value).split("+")
    try:
        return tuple(kind(part) for part in parts if part != "")
    except (TypeError, ValueError):
        raise InputError(f"--model_args: {value!r}: expected numbers", "weights=2+1 or weights=[2,1]") from None


def device_names(devices: object, device: str | None) -> tuple[str, ...]:
    """Return where models go: ``devices`` where it is given, else the harness's ``--device``, which says cuda:0 without being asked."""
    if devices:
        return names(devices)
    wanted = device or "auto"
    return ("cpu",) if wanted.startswith("cuda") and not torch.cuda.is_available() else (wanted,)


def checked_dtype(name: str) -> Dtype:
    """Return a type of weights.

    Raises:
        InputError: an unknown one.
    """
    if name not in get_args(Dtype):
        raise InputError(f"dtype: {did_you_mean(str(name), get_args(Dtype))}")
    return next(known for known in get_args(Dtype) if known == name)
