"""The OpenAPI document. Bodies are read by hand (their length is bounded while they arrive), so their schemas are put in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from lmfuse.serve.answer import DONE
from lmfuse.serve.api_error import ErrorBody
from lmfuse.serve.intake import Limits
from lmfuse.serve.replies import ChatCompletion, ChatCompletionChunk, Completion
from lmfuse.serve.schema import ChatRequest, CompletionRequest, Message, Part, StreamOptions

REFERENCE = "#/components/schemas/{model}"
MEANINGS = {
    400: "Something in the request is wrong; `param` says what.",
    401: "No API key, or not the right one.",
    403: "A page of another origin, or another host's name.",
    404: "No such model.",
    408: "The body did not come.",
    413: "The body is too large.",
    429: "Too many wait already; `Retry-After` says how long to wait.",
    500: "An error of the server; its log names the request.",
    503: "The server shuts down, or cannot write any more.",
}
USAGE_OF_STREAMS = {  # stream_options only where there is a stream
    "if": {"properties": {"stream_options": {"type": "object"}}, "required": ["stream_options"]},
    "then": {"properties": {"stream": {"const": True}}, "required": ["stream"]},
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of these answers for FastAPI."""
    return {status: {"description": MEANINGS[status], "model": ErrorBody} for status in statuses}


def text_route(kind: type[ChatRequest] | type[CompletionRequest]) -> dict[str, Any]:
    """Return what FastAPI needs to know of a route that writes text."""
    whole, chunk = (ChatCompletion, ChatCompletionChunk) if kind is ChatRequest else (Completion, Completion)
    body = {"required": True, "content": {"application/json": {"schema": _reference(kind)}}}
    done = {
        "description": "The text; with `stream: true` as events, the last of which is `[DONE]`.",
        "content": {"application/json": {"schema": _reference(whole)}, "text/event-stream": {"schema": _event(chunk)}},
    }
    return {"openapi_extra": {"requestBody": body}, "responses": errors(*MEANINGS) | {200: done}, "response_model": None}


def describe(app: FastAPI, names: Sequence[str], limits: Limits) -> None:
    """Complete an application's document with the schemas of bodies, the names that ``model`` can have where they may be known, and limits."""
    document = app.openapi()
    both: list[tuple[type[BaseModel], JsonSchemaMode]] = [(kind, "validation") for kind in (ChatRequest, CompletionRequest)]
    both += [(kind, "serialization") for kind in (ChatCompletion, ChatCompletionChunk, Completion)]
    schemas = models_json_schema(both, ref_template=REFERENCE)[1]["$defs"]
    for each in (ChatRequest, CompletionRequest, Message, Part, StreamOptions):
        _close(schemas[each.__name__], each)
    for kind in (ChatRequest, CompletionRequest):
        schema = schemas[kind.__name__]
        schema |= USAGE_OF_STREAMS
        if names:
            schema["properties"]["model"]["enum"] = list(names)
        for name in ("max_tokens", "max_completion_tokens"):
            for option in schema["properties"].get(name, {}).get("anyOf", ()):
                if option["type"] == "integer":
                    option["maximum"] = limits.max_tokens
                    option.pop("exclusiveMaximum")
    document["components"]["schemas"].update(schemas)
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "Where the server has a key."}}


def _close(schema: dict[str, Any], kind: type[BaseModel]) -> None:
    """Name the fields that are let through although nothing follows them, and let no others through."""
    fields, neutral, harmless = schema["properties"], getattr(kind, "neutral", {}), getattr(kind, "harmless", ())
    fields |= {name: {"enum": list(values), "description": "Cannot be followed."} for name, values in neutral.items()}
    fields |= {name: {"description": "Ignored."} for name in sorted(harmless)}
    schema["additionalProperties"] = False


def _event(chunk: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of one event of a stream: a chunk, an error that ends the text, or the last word."""
    json = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_reference(chunk), _reference(ErrorBody)]},
    }
    return {"type": "object", "required": ["data"], "properties": {"data": {"anyOf": [{"const": DONE}, json]}}}


def _reference(kind: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=kind.__name__)}
