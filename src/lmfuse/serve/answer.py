"""One answer from its place in line to its last byte: written while the client listens, and given up when it goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from lmfuse.serve.api_error import ApiError
from lmfuse.serve.desk import Desk, Halt, Job
from lmfuse.serve.metrics import Meters
from lmfuse.serve.replies import Phrasing
from lmfuse.writing import Finish, Passage

STALL_SECONDS = 60.0  # a client that takes nothing for so long is taken for gone
LOOK_SECONDS = 1.0  # how often somebody who waits looks whether that is worth it
STATUS_SECONDS = 5.0  # for so long a stream waits with its status, in case it is an error
SIGN_SECONDS = 15.0  # a stream without text for so long says that it is alive, or proxies close it
SIGN = ": still here\n\n"  # a comment, which clients of server-sent events skip
DONE = "[DONE]"
ENDINGS = {
    "rate_limit_exceeded": "busy", "prompt_refused": "refused_prompt", "context_length_exceeded": "refused_prompt", "shutting_down": "closing",
}  # fmt: skip


class _Outlet:
    """The way out: the status can still be chosen until the first bytes are sent."""

    def __init__(self, send: Send) -> None:
        self._send, self.started = send, False

    async def body(self, status: int, text: str, headers: Mapping[str, str]) -> None:
        """Send a whole JSON body."""
        data = text.encode()
        await self._start(status, {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers})
        await self._out({"type": "http.response.body", "body": data, "more_body": False})

    async def events(self, texts: Sequence[str], last: bool = False) -> None:
        """Send events of a stream, or without any a sign of life; ``last`` ends it."""
        if not self.started:
            await self._start(
                200, {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            )
        data = "".join(f"data: {text}\n\n" for text in texts) or SIGN
        await self._out({"type": "http.response.body", "body": data.encode(), "more_body": not last})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        self.started = True
        await self._out({"type": "http.response.start", "status": status, "headers": raw})

    async def _out(self, message: Message) -> None:
        async with asyncio.timeout(STALL_SECONDS):
            await self._send(message)


class Answer(Response):
    """A response that has its text written while it is sent.

    Args:
        desk: where the text is written.
        job: what is to be written.
        phrasing: how it is put.
        stream: passage by passage, or whole.
        wait_seconds: in line, at most.
        meters: what is counted.
    """

    def __init__(self, desk: Desk, job: Job, phrasing: Phrasing, stream: bool, wait_seconds: float, meters: Meters) -> None:
        super().__init__()
        self.desk, self.job, self.phrasing, self.stream, self.meters = desk, job, phrasing, stream, meters
        self.wait_seconds = wait_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or stop when the client goes away."""
        outlet = _Outlet(send)
        work, gone = asyncio.create_task(self._answer(outlet)), asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.desk.leave(self.job)
            work.cancel()
            gone.cancel()
            ending, _ = await asyncio.gather(work, gone, return_exceptions=True)
            known = ending if isinstance(ending, str) else "gone" if isinstance(ending, asyncio.CancelledError | TimeoutError) else "error"
            self.meters.endings.labels(self.desk.writer.name, known).inc()
        if isinstance(ending, Exception) and not isinstance(ending, TimeoutError):
            raise ending

    async def _answer(self, outlet: _Outlet) -> str:
        """Write and send; return how it ended, as the meters call it."""
        try:
            self.desk.submit(self.job)
            ending = await (self._events(outlet) if self.stream else self._whole(outlet))
        except ApiError as refusal:
            error = refusal.body.model_dump_json()
            if outlet.started:
                await outlet.events([error], last=True)
            else:
                await outlet.body(refusal.status, error, refusal.headers)
            return ENDINGS.get(refusal.code or "", "error")
        self.meters.whole.labels(self.desk.writer.name).observe(time.monotonic() - self.job.created)
        return ending.reason if isinstance(ending, Finish) else ending.why

    async def _whole(self, outlet: _Outlet) -> Finish | Halt:
        passages = []
        while isinstance(piece := await self._next(), Passage):
            passages.append(piece)
            self._count(piece, first=len(passages) == 1)
        await outlet.body(200, self.phrasing.whole(passages, piece), {})
        return piece

    async def _events(self, outlet: _Outlet) -> Finish | Halt:
        piece, first = await self._next(outlet), True  # an error of the prompt is often known by now and can still have its status
        if opening := self.phrasing.opening():
            await outlet.events(opening)
        while isinstance(piece, Passage):
            self._count(piece, first)
            await outlet.events([self.phrasing.passage(piece)])
            piece, first = await self._next(outlet), False
        await outlet.events([*self.phrasing.closing(piece), DONE], last=True)
        return piece

    async def _next(self, outlet: _Outlet | None = None) -> Passage | Finish | Halt:
        """Wait for a piece; meanwhile send signs of life into a stream.

        Raises:
            ApiError: it will not come.
        """
        coming = asyncio.create_task(self.job.piece())
        began = signed = time.monotonic()
        try:
            while not (await asyncio.wait({coming}, timeout=min(LOOK_SECONDS, self.wait_seconds)))[0]:
                self.desk.check_alive()
                self.desk.give_up(self.job, self.wait_seconds)
                now = time.monotonic()
                if outlet and now >= (signed + SIGN_SECONDS if outlet.started else began + STATUS_SECONDS):
                    await outlet.events([])
                    signed = now
            piece = coming.result()
        finally:
            coming.cancel()
        if isinstance(piece, Halt) and piece.why != "time":
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        return piece

    def _count(self, passage: Passage, first: bool) -> None:
        name = self.desk.writer.name
        if first:
            self.meters.first.labels(name).observe(time.monotonic() - self.job.created)
        self.meters.passages.labels(name, passage.author).inc()
        self.meters.text_bytes.labels(name, passage.author).inc(len(passage.text.encode()))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
