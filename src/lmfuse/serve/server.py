"""The process around the application: its socket, its key, and its end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from lmfuse.errors import InputError
from lmfuse.serve.desk import House
from lmfuse.serve.gate import is_loopback

KEY_VARIABLE = "LMFUSE_API_KEY"
GRACE_SECONDS = 10.0
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
        listener.listen(512)
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
    """A uvicorn that ends in order: whoever waits is sent away, running texts have some seconds, then they end at their next passage."""

    def __init__(self, app: FastAPI, grace_seconds: float = GRACE_SECONDS, started: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(
            app, http="h11", ws="none", loop="asyncio", log_level="warning", access_log=False, server_header=False, timeout_keep_alive=75,
            timeout_graceful_shutdown=int(grace_seconds + 5),
        )  # fmt: skip
        super().__init__(config)
        self._house: House = app.state.house
        self._grace_seconds, self._started = grace_seconds, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at the first signal, at once at the second. Ending is no failure: the signal is not raised again."""
        if self.should_exit:
            self.force_exit = True
            self._house.stop()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Send away who waits, let running texts end, then close."""
        self._house.close()
        last = asyncio.get_running_loop().call_later(self._grace_seconds, self._house.stop)
        await super().shutdown(sockets)
        last.cancel()


def run(app: FastAPI, listener: socket.socket, grace_seconds: float = GRACE_SECONDS, started: Callable[[], None] = lambda: None) -> None:
    """Serve until a signal says otherwise."""
    with listener:
        Server(app, grace_seconds, started).run(sockets=[listener])
