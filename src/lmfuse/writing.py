"""What writing a text looks like from outside: a prompt and settings in, passages out, whoever wrote them, one model or several.

``lmfuse.generate`` has the writers; the command line, the server and the evaluation only read what they yield.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, TypeAlias, runtime_checkable

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from lmfuse.types import Segment

Prompt: TypeAlias = Sequence[Segment] | str  # a conversation so far (roles system, user, assistant), or plain text to continue


@dataclass(frozen=True)
class Passage:
    """One committed stretch of a text; passages laid end to end are the whole text, and none of them is ever taken back.

    Attributes:
        text: whole characters, never a part of one; not empty.
        author: the label of the model that wrote it; of a blend of distributions, the one that gave it the most probability.
        scores: what the judges made of each model's candidate, in the unit of the method, lower is better; empty where nothing was judged.
            Where there are no candidates (a blend of distributions over bytes): what this text costs each model, in nats per byte.
        candidates: the text that each model proposed, by label; ``""`` for the proposal to end here. May be empty.
    """

    text: str
    author: str
    scores: Mapping[str, float] = field(default_factory=dict)
    candidates: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """How much was read and written.

    Attributes:
        prompt_bytes: UTF-8 bytes of the prompt's texts, without what chat templates write around them.
        text_bytes: UTF-8 bytes of all passages.
        tokens: for each model the tokens of the text in its own vocabulary, without an end token.
        prompt_tokens: for each model the tokens of the prompt, with its own template.
    """

    prompt_bytes: int
    text_bytes: int
    tokens: Mapping[str, int]
    prompt_tokens: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Finish:
    """The last thing that a writer yields: whether the text ended by itself (or at a stop string), or met a limit."""

    reason: Literal["stop", "length"]
    usage: Usage


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class WritingSettings:
    """How long a text becomes, what ends it, and how tokens are chosen.

    Attributes:
        max_bytes: of the text, at most; cut in front of the character that would exceed it.
        max_tokens: of the reference model (the first one), at most; cut behind the last character that these write whole. None: no such limit.
        stop: strings that end the text; neither they nor what follows is part of it.
        temperature: 0 takes the likeliest token each time; else tokens are drawn.
        top_p: tokens are drawn from the fewest likeliest ones that have this probability together.
        seed: of what is drawn; the same seed, prompt and models give the same text.
    """

    max_bytes: Annotated[int, Field(ge=1)] = 4096
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int = 0


@runtime_checkable
class Writer(Protocol):
    """Whatever continues a prompt: one model or several."""

    @property
    def name(self) -> str:
        """Return what a server calls it."""
        ...

    @property
    def models(self) -> tuple[str, ...]:
        """Return the labels of its models, the reference model first."""
        ...

    def write(self, prompt: Prompt, settings: WritingSettings, cancelled: Callable[[], bool] = ...) -> Iterator[Passage | Finish]:
        """Yield passages as they are committed, then a ``Finish``; nothing more, and no ``Finish``, once ``cancelled`` returns True.

        Several texts may be written at once, from several threads: a writer keeps nothing of a text but in its iterator.

        Raises:
            InputError: a chat template cannot express the prompt, or the prompt exceeds a model's context. Raised by the first ``next``.
            TokenizerError: the prompt is a conversation and a model has no chat template, or has text that a model cannot represent.
            ResourceError: memory does not suffice.
        """
        ...


def prompt_bytes(prompt: Prompt) -> int:
    """Return the UTF-8 bytes of a prompt's texts.

    >>> prompt_bytes("né"), prompt_bytes([Segment("Hi", "user"), Segment("Hello", "assistant")])
    (3, 7)
    """
    return sum(len(text.encode()) for text in ([prompt] if isinstance(prompt, str) else [segment.text for segment in prompt]))
