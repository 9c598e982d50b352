"""What clients send: OpenAI's chat completions and completions, as far as a text needs them.

Fields that OpenAI or another server of its dialect knows and that would change the text, but that nothing here can follow, are refused
unless they say what is so anyway (``NEUTRAL``). Fields that are about something else than the text are ignored (``HARMLESS``). Any other
field is refused by its name, as OpenAI's own server does: it may be a misspelt one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lmfuse.serve.api_error import ApiError
from lmfuse.types import Segment

INT64 = 2**63
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (None, True),
    "audio": (None,),
    "bad_words": (None, []),
    "best_of": (None, 1),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "continue_final_message": (None, False),
    "documents": (None, []),
    "dry_multiplier": (None, 0, 0.0),
    "dynatemp_range": (None, 0, 0.0),
    "echo": (None, False),
    "enable_thinking": (None,),
    "frequency_penalty": (None, 0, 0.0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "grammar": (None, ""),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "ignore_eos": (None, False),
    "include_stop_str_in_output": (None, False),
    "json_schema": (None,),
    "length_penalty": (None, 1, 1.0),
    "logit_bias": (None, {}, []),
    "logprobs": (None, False),
    "min_p": (None, 0, 0.0),
    "min_tokens": (None, 0),
    "mirostat": (None, 0),
    "modalities": (None, ["text"]),
    "options": (None, {}),
    "prediction": (None,),
    "presence_penalty": (None, 0, 0.0),
    "prompt_logprobs": (None,),
    "reasoning": (None, {}),
    "reasoning_effort": (None, "none"),
    "regex": (None,),
    "repeat_penalty": (None, 1, 1.0),
    "repetition_penalty": (None, 1, 1.0),
    "response_format": (None, {"type": "text"}),
    "skip_special_tokens": (None, True),
    "stop_token_ids": (None, []),
    "structured_outputs": (None,),
    "suffix": (None, ""),
    "tfs_z": (None, 1, 1.0),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_a": (None, 0, 0.0),
    "top_k": (None, 0, -1),
    "top_logprobs": (None, 0),
    "truncate_prompt_tokens": (None,),
    "typical_p": (None, 1, 1.0),
    "use_beam_search": (None, False),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
    "xtc_probability": (None, 0, 0.0),
}
HARMLESS = frozenset({
    "cache_prompt", "cache_salt", "keep_alive", "metadata", "parallel_tool_calls", "priority", "prompt_cache_key",
    "prompt_cache_retention", "request_id", "safety_identifier", "service_tier", "spaces_between_special_tokens", "store", "user",
})  # fmt: skip


def _whole(value: Any) -> Any:
    """Return 5 for 5.0: JSON has one kind of number, and JSON Schema calls both integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
StopString = Annotated[str, Field(min_length=1, max_length=1000)]


class _Sent(BaseModel):
    """Something sent by a client: types are taken at their word, other fields kept only to be looked at.

    Attributes:
        neutral: fields that cannot be followed, with the values that change nothing.
        harmless: fields that are ignored.
    """

    model_config = ConfigDict(strict=True, extra="allow")
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    harmless: ClassVar[frozenset[str]] = frozenset()

    def check_supported(self, where: str = "") -> None:
        """Raise where a field asks for what cannot be done, or is none.

        Raises:
            ApiError: 400, and which field.
        """
        for name, value in (self.model_extra or {}).items():
            allowed, field = self.neutral.get(name), f"{where}{name[:100]}"
            if allowed is not None and not any(type(value) is type(each) and value == each for each in allowed):
                raise ApiError(400, f"{field}: is not supported", param=field, code="unsupported_parameter")
            if allowed is None and name not in self.harmless:
                raise ApiError(400, f"Unrecognized request argument supplied: {field}", param=field, code="unknown_parameter")


class Part(_Sent):
    """A part of a message; text is the only kind."""

    harmless = frozenset({"annotations", "cache_control", "prompt_cache_breakpoint"})

    type: Literal["text"]
    text: str


class Message(_Sent):
    """One message of a conversation. What earlier answers had besides their text is not read again."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "audio": (None,), "function_call": (None,), "prefix": (None, False), "refusal": (None, ""), "tool_calls": (None, []),
    }  # fmt: skip
    harmless = frozenset({"annotations", "cache_control", "id", "name", "reasoning", "reasoning_content"})

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]

    def segment(self) -> Segment:
        """Return it as our noun; a developer's message is the system's."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Segment(text, "system" if self.role == "developer" else self.role, trained=False)


class StreamOptions(_Sent):
    """What a stream has besides text."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"continuous_usage_stats": (None, False)}
    harmless = frozenset({"include_obfuscation"})

    include_usage: bool | None = None


class TextRequest(_Sent):
    """What both kinds of request have in common."""

    neutral = NEUTRAL
    harmless = HARMLESS

    model: str
    max_tokens: Annotated[int, Field(ge=1, lt=INT64), Whole] | None = None
    n: Annotated[int, Field(ge=1, le=1), Whole] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64), Whole] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None

    def check_all(self) -> None:
        """Check every part that has fields.

        Raises:
            ApiError: see ``check_supported``.
        """
        self.check_supported()
        if self.stream_options is not None:
            self.stream_options.check_supported("stream_options.")


class ChatRequest(TextRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=2048)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=INT64), Whole] | None = None

    def check_all(self) -> None:
        """Check messages and their parts too."""
        super().check_all()
        for index, message in enumerate(self.messages):
            message.check_supported(f"messages[{index}].")
            for place, part in enumerate(() if isinstance(message.content, str) else message.content):
                part.check_supported(f"messages[{index}].content[{place}].")

    def prompt(self) -> list[Segment]:
        """Return the conversation."""
        return [message.segment() for message in self.messages]


class CompletionRequest(TextRequest):
    """``POST /v1/completions``. A prompt is text; lists of several prompts, and token numbers, which belong to one tokenizer, are refused."""

    prompt_text: Annotated[str | Annotated[list[str], Field(min_length=1, max_length=1)], Field(alias="prompt")]

    def prompt(self) -> str:
        """Return the text to continue."""
        return self.prompt_text if isinstance(self.prompt_text, str) else self.prompt_text[0]
