"""What clients get: OpenAI's shapes, and in a field ``lmfuse`` who wrote which passage, and how the judges scored it.

Only what is set is written (``exclude_unset``), so each shape has exactly the keys that OpenAI's has. A score that is no finite number
becomes ``null``.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from lmfuse import __version__
from lmfuse.serve.desk import Halt
from lmfuse.writing import Finish, Passage

FinishReason = Literal["stop", "length"]
Shape = TypeVar("Shape", bound=BaseModel)


class AttributedPassage(BaseModel):
    """A stretch of the answer, the model that wrote it, and what was made of every model's candidate (lower is better)."""

    text: str
    author: str
    scores: Mapping[str, float | None]
    candidates: Mapping[str, str]


class Attribution(BaseModel):
    """What we say beyond OpenAI's shapes: all of it with a whole text; in a stream passages as they come, and the rest with the last chunk.

    Attributes:
        passages: laid end to end they are the text of this body or chunk.
        seed: of what was drawn, given or made up.
        ended_by_time: the limit of time ended the text; its tokens are those of the text as it is, cut anew.
        tokens: of the text, in each model's own vocabulary.
        text_bytes: of the text.
    """

    passages: list[AttributedPassage]
    seed: int = 0
    ended_by_time: bool = False
    tokens: Mapping[str, int] = {}
    text_bytes: int = 0


class Usage(BaseModel):
    """Tokens of the reference model, the first one."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """The message of a chat completion."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Delta(BaseModel):
    """What a chunk adds to the message."""

    role: Literal["assistant"] = "assistant"
    content: str = ""


class _Choice(BaseModel):
    index: int = 0
    logprobs: None = None
    finish_reason: FinishReason | None


class ChatChoice(_Choice):
    """The one choice of a chat completion."""

    message: AnswerMessage


class ChatChunkChoice(_Choice):
    """The one choice of a chunk of a chat completion."""

    delta: Delta


class TextChoice(_Choice):
    """The one choice of a completion, or of a chunk of one."""

    text: str


class _Reply(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | None = None
    lmfuse: Attribution | None = None


class ChatCompletion(_Reply):
    """The body of an answer to a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class ChatCompletionChunk(_Reply):
    """One event of a streamed answer to a chat."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class Completion(_Reply):
    """The body of a completion, and one event of a streamed one."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class ModelCard(BaseModel):
    """One model that can be asked for, and the models behind it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["lmfuse"] = "lmfuse"
    models: list[str]


class ModelList(BaseModel):
    """All models that can be asked for."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def _with(kind: type[Shape], **values: Any) -> Shape:
    """Return a shape in which only these fields are set; the others are not written."""
    return kind.model_construct(**values)


def written(reply: BaseModel) -> str:
    """Return a reply as JSON, with the keys that were set and no others."""
    return reply.model_dump_json(exclude_unset=True)


class Phrasing(ABC):
    """How one answer is phrased, whole or in chunks.

    Args:
        model: its name.
        reference: the label of the model whose tokens usage counts.
        include_usage: a stream ends with a chunk of usage, and every other chunk has an empty field for it.
    """

    prefix = ""

    def __init__(self, model: str, reference: str, seed: int, include_usage: bool) -> None:
        self.reference, self.seed, self.include_usage = reference, seed, include_usage
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"lmfuse-{__version__}",
        }

    @abstractmethod
    def opening(self) -> list[str]:
        """Return the chunks that come before any text."""

    @abstractmethod
    def whole(self, passages: Sequence[Passage], ending: Finish | Halt) -> str:
        """Return the body of an answer that is not streamed."""

    @abstractmethod
    def _piece(self, text: str | None, reason: FinishReason | None, extra: dict[str, Any]) -> str: ...

    def passage(self, passage: Passage) -> str:
        """Return the chunk of a passage."""
        return self._piece(passage.text, None, self._no_usage() | {"lmfuse": _with(Attribution, passages=[_attributed(passage)])})

    def closing(self, ending: Finish | Halt) -> list[str]:
        """Return the chunks after the last passage."""
        attribution = self._attribution(ending)
        chunks = [self._piece(None, _reason(ending), self._no_usage() | {"lmfuse": attribution})]
        if self.include_usage:
            chunks.append(self._piece(None, None, {"choices": [], "usage": self._usage(ending)}))
        return chunks

    def _no_usage(self) -> dict[str, Any]:
        return {"usage": None} if self.include_usage else {}

    def _usage(self, ending: Finish | Halt) -> Usage | None:
        if ending.usage is None:
            return None
        read, made = ending.usage.prompt_tokens.get(self.reference), ending.usage.tokens.get(self.reference)
        if read is None or made is None:
            return None
        return Usage(prompt_tokens=read, completion_tokens=made, total_tokens=read + made)

    def _attribution(self, ending: Finish | Halt, passages: Sequence[Passage] = ()) -> Attribution:
        known: dict[str, Any] = {"passages": [_attributed(passage) for passage in passages], "seed": self.seed}
        if ending.usage is not None:
            known |= {"tokens": dict(ending.usage.tokens), "text_bytes": ending.usage.text_bytes}
        return _with(Attribution, **known, ended_by_time=isinstance(ending, Halt))


class ChatPhrasing(Phrasing):
    """A chat completion."""

    prefix = "chatcmpl"

    def opening(self) -> list[str]:
        """Return a chunk that says who speaks."""
        return [self._chunk(Delta(role="assistant", content=""), None, self._no_usage())]

    def whole(self, passages: Sequence[Passage], ending: Finish | Halt) -> str:
        """Return the body."""
        message = AnswerMessage(role="assistant", content="".join(passage.text for passage in passages), refusal=None)
        choice = ChatChoice(index=0, message=message, logprobs=None, finish_reason=_reason(ending))
        extra: dict[str, Any] = {"usage": self._usage(ending), "lmfuse": self._attribution(ending, passages)}
        return written(_with(ChatCompletion, **self._head, object="chat.completion", choices=[choice], **extra))

    def _piece(self, text: str | None, reason: FinishReason | None, extra: dict[str, Any]) -> str:
        return self._chunk(_with(Delta) if text is None else _with(Delta, content=text), reason, extra)

    def _chunk(self, delta: Delta, reason: FinishReason | None, extra: dict[str, Any]) -> str:
        choices = [ChatChunkChoice(index=0, delta=delta, logprobs=None, finish_reason=reason)]
        return written(_with(ChatCompletionChunk, **{**self._head, "object": "chat.completion.chunk", "choices": choices, **extra}))


class TextPhrasing(Phrasing):
    """A completion."""

    prefix = "cmpl"

    def opening(self) -> list[str]:
        """Return nothing: a completion begins with its text."""
        return []

    def whole(self, passages: Sequence[Passage], ending: Finish | Halt) -> str:
        """Return the body."""
        extra: dict[str, Any] = {"usage": self._usage(ending), "lmfuse": self._attribution(ending, passages)}
        return self._piece("".join(passage.text for passage in passages), _reason(ending), extra)

    def _piece(self, text: str | None, reason: FinishReason | None, extra: dict[str, Any]) -> str:
        choices = [TextChoice(index=0, text=text or "", logprobs=None, finish_reason=reason)]
        return written(_with(Completion, **{**self._head, "object": "text_completion", "choices": choices, **extra}))


def _attributed(passage: Passage) -> AttributedPassage:
    return AttributedPassage(text=passage.text, author=passage.author, scores=dict(passage.scores), candidates=dict(passage.candidates))


def _reason(ending: Finish | Halt) -> FinishReason:
    return ending.reason if isinstance(ending, Finish) else "length"
