"""A real server on a free port of 127.0.0.1, in a thread of the test."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import openai

from lmfuse.serve.app import create_app
from lmfuse.serve.desk import House
from lmfuse.serve.server import Server, address_of, bind

CHAT = [{"role": "user", "content": "Hi"}]


@dataclass
class Running:
    """A server's address, its desks, and clients of it."""

    url: str
    house: House
    server: Server
    thread: threading.Thread

    def openai(self, key: str = "none", **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **({"max_retries": 0} | options))

    def http(self, **options) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, **options)

    def raw(self, data: bytes, **options) -> socket.socket:
        """Return a connection on which this was sent."""
        host, port = self.url.removeprefix("http://").split(":")
        found = socket.create_connection((host, int(port)), **({"timeout": 10} | options))
        found.sendall(data)
        return found

    def post(self, body: bytes | str, path: str = "/v1/chat/completions", **options) -> httpx2.Response:
        with self.http() as client:
            return client.post(path, content=body, **options)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a figure over all its series that have these labels."""
        with self.http() as client:
            lines = client.get("/metrics").text.splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        found = (line for line in lines if line.startswith((name + " ", name + "{")))
        return sum(float(line.rsplit(" ", 1)[1]) for line in found if all(part in line for part in wanted))


@contextmanager
def serving(*writers, grace_seconds: float = 1.0, max_connections: int = 1024, **options) -> Iterator[Running]:
    """Serve these writers while the context lasts, and close in order."""
    app = create_app(writers, **options)
    listener, _ = bind("127.0.0.1", 0)
    server = Server(app, grace_seconds, max_connections=max_connections)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: server.started)
        yield Running(address_of(listener), app.state.house, server, thread)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"


def rest(raw: socket.socket) -> bytes:
    """Return all that comes until the other side closes."""
    found = bytearray()
    while piece := raw.recv(2**16):
        found += piece
    return bytes(found)


def until(holds, seconds: float = 10.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.005)
