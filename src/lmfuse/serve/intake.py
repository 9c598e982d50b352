"""From the bytes of a request to a prompt and settings; everything that is wrong with them is a ``ApiError`` that names the field."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as validated
from starlette.requests import ClientDisconnect, Request

from lmfuse.serve.api_error import ApiError
from lmfuse.serve.schema import ChatRequest, CompletionRequest
from lmfuse.writing import Prompt, WritingSettings, prompt_bytes

COMPLETION_TOKENS = 16  # what OpenAI writes where a completion names no limit
READ_SECONDS = 60.0


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class Limits:
    """What one request may ask for.

    Attributes:
        prompt_bytes: of all texts of the prompt.
        max_tokens: of the answer, in the reference model's tokens; also what a chat gets that names no limit.
        seconds: of writing; the time in line does not count. What is written by then is the answer.
        wait_seconds: in line, at most.
    """

    prompt_bytes: Annotated[int, Field(ge=1)] = 262_144
    max_tokens: Annotated[int, Field(ge=1)] = 4096
    seconds: Annotated[float, Field(gt=0)] = 300.0
    wait_seconds: Annotated[float, Field(gt=0)] = 600.0

    @property
    def text_bytes(self) -> int:
        """Return how long an answer may be: longer tokens than this on average are no text."""
        return 16 * self.max_tokens

    @property
    def body_bytes(self) -> int:
        r"""Return how long a request's body may be: JSON may write one byte of text as six (``\u0007``)."""
        return 6 * self.prompt_bytes + 65_536


@dataclass(frozen=True)
class Order:
    """A request that can be carried out."""

    model: str
    prompt: Prompt
    settings: WritingSettings
    stream: bool
    include_usage: bool


async def read_body(request: Request, limit_bytes: int, closing: asyncio.Event) -> bytes:
    """Return a request's body.

    Args:
        closing: set when the server ends.

    Raises:
        ApiError: 413 when it is too large, which is said at once; 408 when it does not come; 503 when the server ends before it has come.
        ClientDisconnect: the client went away.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit_bytes):
        raise _too_large(limit_bytes)
    reading, ending = asyncio.create_task(_collect(request, limit_bytes)), asyncio.create_task(closing.wait())
    try:
        await asyncio.wait({reading, ending}, timeout=READ_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            return reading.result()
        if ending.done():
            raise ApiError(503, "the server is shutting down", code="shutting_down").closing()
        raise ApiError(408, f"the body did not come within {READ_SECONDS:.0f} seconds", code="timeout").closing()
    finally:
        for task in (reading, ending):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _collect(request: Request, limit_bytes: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
    return bytes(body)


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError(413, f"the body is too large: at most {limit_bytes} bytes", code="request_too_large")


def parse(kind: type[ChatRequest] | type[CompletionRequest], body: bytes, limits: Limits, temperature: float) -> Order:
    """Return what a body asks for.

    Args:
        temperature: where the request names none.

    Raises:
        ApiError: 400 with the field at fault.
    """
    try:
        sent: ChatRequest | CompletionRequest = kind.model_validate_json(body)
    except ValidationError as error:
        raise _malformed(error) from None
    sent.check_all()
    prompt = sent.prompt()
    if sent.stream_options is not None and not sent.stream:
        raise ApiError(400, "stream_options: only with stream: true", param="stream_options", code="invalid_value")
    if prompt_bytes(prompt) > limits.prompt_bytes:
        name = "messages" if isinstance(sent, ChatRequest) else "prompt"
        message = f"{name}: {prompt_bytes(prompt)} bytes of text, at most {limits.prompt_bytes} are allowed"
        raise ApiError(400, message, param=name, code="context_length_exceeded")
    include_usage = bool(sent.stream_options and sent.stream_options.include_usage)
    return Order(sent.model, prompt, _settings(sent, limits, temperature), bool(sent.stream), include_usage)


def _settings(sent: ChatRequest | CompletionRequest, limits: Limits, temperature: float) -> WritingSettings:
    name, tokens = "max_tokens", sent.max_tokens
    if isinstance(sent, ChatRequest) and sent.max_completion_tokens is not None:
        name, tokens = "max_completion_tokens", sent.max_completion_tokens
    if tokens is None:
        tokens = limits.max_tokens if isinstance(sent, ChatRequest) else min(COMPLETION_TOKENS, limits.max_tokens)
    if tokens > limits.max_tokens:
        raise ApiError(400, f"{name}: {tokens} is too large, at most {limits.max_tokens} are allowed", param=name, code="invalid_value")
    return WritingSettings(
        max_bytes=limits.text_bytes,
        max_tokens=tokens,
        stop=(sent.stop,) if isinstance(sent.stop, str) else tuple(sent.stop or ()),
        temperature=temperature if sent.temperature is None else sent.temperature,
        top_p=1.0 if sent.top_p is None else max(sent.top_p, 1e-9),  # 0 is the likeliest token alone
        seed=secrets.randbits(31) if sent.seed is None else sent.seed,
    )


def _malformed(error: ValidationError) -> ApiError:
    """Return the first thing that is wrong, with all that a field could have been.

    A union reports what each of its members misses; the deepest one is the one that was meant.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {found[0]['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json")
    same = [each for each in found if each["loc"][:1] == found[0]["loc"][:1]]
    places = [_place(each["loc"]) for each in same]
    deepest = max(places, key=lambda place: place.count(".") + place.count("["))
    says = " or ".join(dict.fromkeys(each["msg"] for each, place in zip(same, places, strict=True) if place == deepest))
    where = f"{deepest}: " if deepest else "the body: "
    missing = found[0]["type"] == "missing"
    return ApiError(400, where + says, param=deepest or None, code="missing_required_parameter" if missing else "invalid_value")


def _place(loc: tuple[Any, ...]) -> str:
    """Return where an error is as clients write it, without the names of a union's members.

    >>> _place(("messages", 0, "content", "list[Part]", 2, "text"))
    'messages[0].content[2].text'
    """
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "constrained_str"):
            text += f".{part}" if text else part
    return text


__all__ = ["ClientDisconnect", "Limits", "Order", "parse", "read_body"]
