"""The application: routes to desks, and every error in OpenAI's shape."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from lmfuse import __version__
from lmfuse.serve import openapi
from lmfuse.serve.answer import Answer
from lmfuse.serve.api_error import ApiError
from lmfuse.serve.desk import Desk, House, Job
from lmfuse.serve.gate import Access, Gate
from lmfuse.serve.intake import Limits, parse, read_body
from lmfuse.serve.metrics import Meters
from lmfuse.serve.page import page_response
from lmfuse.serve.replies import ChatPhrasing, ModelCard, ModelList, TextPhrasing
from lmfuse.serve.schema import ChatRequest, CompletionRequest
from lmfuse.writing import Writer

JOIN_SECONDS = 1.0
Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    writers: Sequence[Writer], *, places: int = 64, limits: Limits | None = None, temperature: float = 0.0, access: Access | None = None
) -> FastAPI:
    """Return the server's application. ``app.state.house`` has its desks.

    Args:
        writers: what can be asked for, by their names.
        places: how many requests may wait for each while one is answered.
        temperature: where a request names none.
        access: who may ask; by default whoever is on this machine.
    """
    limits, access, house = limits or Limits(), access or Access(), House(tuple(writers), places)
    meters = Meters(house)
    app = FastAPI(
        title="lmfuse", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=_lifespan(house)
    )  # the documentation pages of FastAPI load scripts from elsewhere
    app.state.house = house
    app.add_middleware(Gate, access=access, meters=meters)
    _answer_errors(app)
    _add_texts(app, house, meters, limits, temperature)
    _add_models(app, house)
    _add_looks(app, house, meters)
    openapi.describe(app, list(house.desks) if access.key is None else [], limits)
    return app


def _lifespan(house: House) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        house.start()
        try:
            yield
        finally:
            house.close()
            house.stop()
            house.join(JOIN_SECONDS)

    return lifespan


def _answer_errors(app: FastAPI) -> None:
    def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            words = {404: f"there is no {request.url.path[:200]!r} here", 405: f"{request.method} is not for {request.url.path[:200]!r}"}
            refusal = ApiError(error.status_code, words.get(error.status_code, str(error.detail)))
            refusal.headers.update(error.headers or {})
            return refusal.response
        assert isinstance(error, ApiError)
        return error.response

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(ClientDisconnect, lambda _request, _error: Response(status_code=400))  # nobody hears it


def _add_texts(app: FastAPI, house: House, meters: Meters, limits: Limits, temperature: float) -> None:
    async def answer(request: Request, kind: type[ChatRequest] | type[CompletionRequest]) -> Response:
        order = parse(kind, await read_body(request, limits.body_bytes, house.closed), limits, temperature)
        desk = house.find(order.model)
        job = Job(order.prompt, order.settings, limits.seconds, request.state.request_id)
        phrasing = ChatPhrasing if kind is ChatRequest else TextPhrasing
        said = phrasing(order.model, desk.writer.models[0], order.settings.seed, order.stream and order.include_usage)
        return Answer(desk, job, said, order.stream, limits.wait_seconds, meters)

    @app.post("/v1/chat/completions", **openapi.text_route(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """Write the next message of a conversation."""
        return await answer(request, ChatRequest)

    @app.post("/v1/completions", **openapi.text_route(CompletionRequest))
    async def completions(request: Request) -> Response:
        """Continue a text."""
        return await answer(request, CompletionRequest)


def _add_models(app: FastAPI, house: House) -> None:
    created = int(time.time())

    def card(desk: Desk) -> ModelCard:
        return ModelCard(id=desk.writer.name, created=created, models=list(desk.writer.models))

    @app.get("/v1/models", responses=openapi.errors(401, 403))
    async def models() -> ModelList:
        """List what can be asked for."""
        return ModelList(data=[card(desk) for desk in house.desks.values()])

    @app.get("/v1/models/{model:path}", responses=openapi.errors(401, 403, 404))
    async def model(model: str) -> ModelCard:
        """Describe one model."""
        return card(house.find(model))


def _add_looks(app: FastAPI, house: House, meters: Meters) -> None:
    @app.get("/health", responses={503: {"description": "Closing, or a writer does not answer any more."}})
    async def health(request: Request) -> Response:
        """Say whether the server can answer; names of models only to who shows the key, if there is one."""
        status = "closing" if house.closing else "stuck" if any(desk.stuck for desk in house.desks.values()) else "ok"
        found: dict[str, Any] = {"status": status}
        if request.state.keyed:
            found["models"] = {
                name: {"waiting": desk.waiting, "writing": desk.writing, "stuck": desk.stuck} for name, desk in house.desks.items()
            }
        return JSONResponse(found, 200 if status == "ok" else 503)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """Return the figures for Prometheus."""
        return Response(meters.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """Show the chat page."""
        return page_response()
