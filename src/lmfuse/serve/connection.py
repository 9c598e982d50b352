"""One connection below the application: how long a client may take for a request's head, and errors of HTTP itself in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lmfuse.serve.api_error import ApiError

HEAD_SECONDS = 15.0  # from the first byte of a request, or from the connection, to the end of its head
LINGER_SECONDS = 5.0  # for what is left of a body that is not wanted: a client in the middle of sending does not read our answer
LINGER_BYTES = 2 * 2**20
ENOUGH_LINES, ENOUGH_SECONDS = 10, 60.0
KIND_LETTERS = 40  # by which lines of a log are of one kind; what follows may have addresses in it


class Connection(H11Protocol):
    """A connection of uvicorn that nobody can hold open without asking anything.

    ``most`` of them may be open. One more takes the place of whoever has been silent for longest, or is sent away where all of them wait
    for an answer.
    """

    most = 1024

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, if there is a place."""
        self.silent_since, self._lingering_bytes, self._over = time.monotonic(), 0, False
        self._head: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._expect_head()
        if len(self.connections) > self.most:
            silent = [each for each in self.connections if isinstance(each, Connection) and each is not self and each.silent]
            if silent:
                min(silent, key=lambda each: each.silent_since).drop()
            else:
                self._answer_here(ApiError(503, "too many connections", code="too_many_connections", retry_after_seconds=5))
                self.transport.close()

    @property
    def asking(self) -> bool:
        """Return whether a request is being read or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def silent(self) -> bool:
        """Return whether nobody waits for an answer here: no request has come, or not all of it."""
        return not self.asking or self.cycle.more_body

    @property
    def _lingers(self) -> bool:
        return self._over or (self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY)

    def drop(self) -> None:
        """Close at once; what was not sent yet is lost."""
        self.connections.discard(self)  # which the transport does only later: its place is free
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        lingered = self._lingers
        if lingered:
            self._lingering_bytes += len(data)
            if self._lingering_bytes > LINGER_BYTES:
                self.drop()
            if self._over or self.transport.is_closing():
                return
        elif not self.asking:
            self._expect_head()
        super().data_received(data)
        if self.asking or (lingered and not self._lingers):
            self._cancel_head()
        self._expect_rest()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for what is left of this one."""
        self.silent_since, self._lingering_bytes = time.monotonic(), 0
        super().on_response_complete()
        if self._lingers:
            self._linger()
        self._expect_rest()

    def _expect_rest(self) -> None:
        if not self.asking and not self._lingers and self.conn.trailing_data[0]:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._cancel_head()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with a request that is no HTTP, and close; called where uvicorn handles the error."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._answer_here(ApiError(status, f"not a request of HTTP/1.1: {str(error)[:200]}", code="invalid_http"))

    def _answer_here(self, error: ApiError) -> None:
        """Send an error as the last thing on this connection, and close when the client has read it."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # in the middle of an answer
            self.transport.close()
            return
        body = error.body.model_dump_json().encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.closing().headers}
        head = h11.Response(status_code=error.status, headers=list(headers.items()), reason=HTTPStatus(error.status).phrase.encode())
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write_eof()
        self._over = True
        self._linger()
        if self.asking:  # whoever reads the body
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _linger(self) -> None:
        self._cancel_head()
        self._head = self.loop.call_later(LINGER_SECONDS, self.drop)

    def _expect_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _cancel_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _head_is_late(self) -> None:
        if self.conn.trailing_data[0]:
            self._answer_here(ApiError(408, f"the request's head did not come within {HEAD_SECONDS:.0f} seconds", code="timeout"))
        else:
            self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: whoever asks for a web socket gets what the route says."""


class Sparing(logging.Filter):
    """Lets so many lines of a kind through in a minute, however many a client provokes, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self._began = -ENOUGH_SECONDS
        self._lines, self._left_out = Counter[str](), Counter[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is written."""
        kind, now = str(record.msg).partition("\n")[0][:KIND_LETTERS], time.monotonic()
        if now - self._began >= ENOUGH_SECONDS:
            self._began, self._left_out = now, self._lines - Counter(dict.fromkeys(self._lines, ENOUGH_LINES))
            self._lines = Counter()
        self._lines[kind] += 1
        if left_out := self._left_out.pop(kind, 0):
            record.msg = f"{record.msg} (and {left_out} more like it were left out)"
        return self._lines[kind] <= ENOUGH_LINES


def quieten(*names: str) -> None:
    """Let these loggers write no more than a few lines in a minute."""
    for name in names:
        logger: Any = logging.getLogger(name)
        if not any(isinstance(each, Sparing) for each in logger.filters):
            logger.addFilter(Sparing())
