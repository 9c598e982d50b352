"""What the server answers when it does not answer: an HTTP status and OpenAI's error object."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from lmfuse.errors import InputError, PromptTooLongError, ResourceError


class ErrorDetail(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that is not answered, or not to its end.

    Args:
        status: of HTTP.
        message: one line for people.
        param: the field of the request that is at fault.
        code: one word for programs.
        retry_after_seconds: when it is worth trying again.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after_seconds: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers: dict[str, str] = {}
        if retry_after_seconds is not None:
            self.headers["Retry-After"] = str(retry_after_seconds)
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def closing(self) -> ApiError:
        """Return it as the last answer of its connection: what follows on it cannot be told from the rest of this request."""
        self.headers["Connection"] = "close"
        return self

    @property
    def body(self) -> ErrorBody:
        """Return the error in OpenAI's shape.

        >>> ApiError(400, "n: 1 is all there is", param="n").body.model_dump_json()
        '{"error":{"message":"n: 1 is all there is","type":"invalid_request_error","param":"n","code":null}}'
        """
        kind = "server_error" if self.status >= 500 else "rate_limit_error" if self.status == 429 else "invalid_request_error"
        return ErrorBody(error=ErrorDetail(message=self.message, type=kind, param=self.param, code=self.code))

    @property
    def response(self) -> Response:
        """Return it as a whole answer."""
        return Response(self.body.model_dump_json(), self.status, self.headers, "application/json")


def api_error_of(error: Any, field: str | None = None) -> ApiError | None:
    """Return what a writer's error is to its reader; None for one that we did not foresee, whose text may be anything.

    Args:
        field: of the request, which has the prompt.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLongError):
        return ApiError(400, str(error), param=field, code="context_length_exceeded")
    if isinstance(error, InputError):  # a prompt that is empty, roles that a chat template cannot express
        return ApiError(400, str(error), param=field, code="prompt_refused")
    if isinstance(error, ResourceError | MemoryError):
        return ApiError(503, "the server is out of memory", code="out_of_memory")
    return None
