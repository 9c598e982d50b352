"""The process around the application: its socket, its key, and its end."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from lmfuse.errors import InputError
from lmfuse.serve.connection import Connection, quieten
from lmfuse.serve.desk import House
from lmfuse.serve.gate import is_loopback

KEY_VARIABLE = "LMFUSE_API_KEY"
GRACE_SECONDS = 10.0
LAST_SECONDS = 1.0  # of the grace: to tell clients that their text ends, whatever its writer does
BACKLOG = 64  # connections that are taken on in one go, before they are counted
SPARE_FILES = 2 * BACKLOG
LOST_MILLISECONDS = 60_000  # a client that acknowledges nothing for so long has gone without a word


def read_key(file: Path | None) -> str | None:
    """Return the key that clients must show: of a file, or of the environment; never of an argument, which every user of a machine can read.

    Raises:
        InputError: there is no such file, or nothing in it that fits into a header.
    """
    if file is None:
        where, key = f"${KEY_VARIABLE}", os.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            return None
    else:
        where = str(file)
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise InputError(f"API key file {where}: {why}", hint="a text file with the key and nothing else") from None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        got = "nothing" if not key else "other characters"
        raise InputError(f"API key of {where}: expected one word of printable ASCII, got {got}", hint="for example: openssl rand -hex 32")
    return key


def bind(host: str, port: int) -> tuple[socket.socket, bool]:
    """Return a listening socket, and whether only this machine can reach it. Done before any model is loaded.

    Raises:
        InputError: there is no such address, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"--host {host}: {error.strerror or error}", hint="an address of this machine, such as 127.0.0.1") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # accepted connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_MILLISECONDS)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen on {host} port {port}: {error.strerror or error}", hint="another --port, or 0 for any that is free"
        ) from None
    return listener, is_loopback(str(address[0]))


def address_of(listener: socket.socket) -> str:
    """Return where browsers find a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """A uvicorn that ends in order and in time.

    Whoever waits, or has not sent all of a request, is sent away at once. Running texts have all of the grace but its last second, in which
    they are told that they end; then what is left is cut. A second signal cuts at once.
    """

    def __init__(
        self,
        app: FastAPI,
        grace_seconds: float = GRACE_SECONDS,
        started: Callable[[], None] = lambda: None,
        max_connections: int = Connection.most,
    ) -> None:
        class Limited(Connection):
            most = max_connections

        config = uvicorn.Config(
            app, http=Limited, ws="none", loop="asyncio", log_config=None, log_level="warning", access_log=False, server_header=False,
            timeout_keep_alive=75, backlog=BACKLOG, timeout_graceful_shutdown=math.ceil(grace_seconds + LAST_SECONDS),
        )  # fmt: skip
        super().__init__(config)
        self._house: House = app.state.house
        self._grace_seconds, self._started, self._hurried = grace_seconds, started, False
        self._loop: asyncio.AbstractEventLoop | None = None
        quieten("uvicorn.error", "asyncio")  # which say something about every request that is no HTTP, and of every socket too many

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at the first signal, at once at the second. Ending is no failure: the signal is not raised again."""
        if self.should_exit:
            self._hurried = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cut)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Send away who waits, let running texts end, then close."""
        self._house.close()
        grace, loop = 0.0 if self._hurried else self._grace_seconds, asyncio.get_running_loop()
        timers = [loop.call_later(max(0.0, grace - LAST_SECONDS), self._house.stop), loop.call_later(grace, self._cut)]
        await super().shutdown(sockets)
        for timer in timers:
            timer.cancel()

    def _cut(self) -> None:
        """Close every connection, which ends what is sent on it."""
        self._house.stop()
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def run(app: FastAPI, listener: socket.socket, grace_seconds: float = GRACE_SECONDS, started: Callable[[], None] = lambda: None) -> None:
    """Serve until a signal says otherwise. A writer that does not end then is left behind with its process."""
    with listener:
        Server(app, grace_seconds, started, most_connections()).run(sockets=[listener])
    house: House = app.state.house
    if not house.join(0.0):  # ending an interpreter under a thread that computes can crash
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def most_connections() -> int:
    """Return how many connections may be open at once: as many as the system lets us have files for, with some to spare, but no more than
    ``Connection.most``."""
    try:
        import resource
    except ImportError:  # Windows: sockets are no files
        return Connection.most
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = Connection.most + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return max(8, min(Connection.most, soft - SPARE_FILES))
    return Connection.most
