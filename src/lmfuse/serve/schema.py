"""What clients send: OpenAI's chat completions and completions, as far as a text needs them.

Fields that OpenAI knows and that would change the text, but that nothing here can follow, are refused unless they say what is so
anyway (``NEUTRAL``). Fields that nobody knows are ignored, as OpenAI's own server ignores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lmfuse.serve.api_error import ApiError
from lmfuse.types import Segment

INT64 = 2**63
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0, 0.0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "presence_penalty": (None, 0, 0.0),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_calls": (None, []),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "web_search_options": (None,),
}


def _whole(value: Any) -> Any:
    """Return 5 for 5.0: JSON has one kind of number, and JSON Schema calls both integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
StopString = Annotated[str, Field(min_length=1, max_length=1000)]


class _Sent(BaseModel):
    """Something sent by a client: types are taken at their word, unknown fields kept only to be looked at."""

    model_config = ConfigDict(strict=True, extra="allow")

    def check_supported(self, where: str = "") -> None:
        """Raise where a field asks for what cannot be done.

        Raises:
            ApiError: 400, and which field.
        """
        for name, value in (self.model_extra or {}).items():
            allowed = NEUTRAL.get(name)
            if allowed is not None and not any(type(value) is type(each) and value == each for each in allowed):
                raise ApiError(400, f"{where}{name}: is not supported", param=f"{where}{name}", code="unsupported_parameter")


class Part(_Sent):
    """A part of a message; text is the only kind."""

    type: Literal["text"]
    text: str


class Message(_Sent):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]

    def segment(self) -> Segment:
        """Return it as our noun; a developer's message is the system's."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Segment(text, "system" if self.role == "developer" else self.role, trained=False)


class StreamOptions(_Sent):
    """What a stream has besides text."""

    include_usage: bool | None = None


class TextRequest(_Sent):
    """What both kinds of request have in common."""

    model: str
    max_tokens: Annotated[int, Field(ge=1, lt=INT64), Whole] | None = None
    n: Annotated[int, Field(ge=1, le=1), Whole] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64), Whole] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None


class ChatRequest(TextRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=2048)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=INT64), Whole] | None = None

    def prompt(self) -> list[Segment]:
        """Return the conversation."""
        for index, message in enumerate(self.messages):
            message.check_supported(f"messages[{index}].")
        return [message.segment() for message in self.messages]


class CompletionRequest(TextRequest):
    """``POST /v1/completions``. A prompt is text; lists of several prompts, and token numbers, which belong to one tokenizer, are refused."""

    prompt_text: Annotated[str | Annotated[list[str], Field(min_length=1, max_length=1)], Field(alias="prompt")]

    def prompt(self) -> str:
        """Return the text to continue."""
        return self.prompt_text if isinstance(self.prompt_text, str) else self.prompt_text[0]
