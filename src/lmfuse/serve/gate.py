"""What every request passes before anything reads it: who may ask, from where, and a number to find it by."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import secrets
import socket
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmfuse.serve.api_error import ApiError
from lmfuse.serve.metrics import Meters

log = logging.getLogger("lmfuse.serve")

OPEN = frozenset({"/", "/health", "/openapi.json"})  # nothing in them is worth a key (``keyed`` tells the rest), and the page asks for it
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]+)?")


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Without a key anybody who reaches the socket may, and that includes any page that a browser which reaches it shows. So a request that
    a page of another origin sent is refused, and one that asks for a name that somebody else may have pointed here (DNS rebinding):
    addresses are never looked up, so nobody can point them. With a key neither can matter: such a page does not know it.

    Attributes:
        key: what clients must show; None: nothing.
        loopback: the server can be reached from this machine only.
        names: of hosts, besides localhost, that a client without a key may ask for.
    """

    key: str | None = None
    loopback: bool = True
    names: frozenset[str] = frozenset()

    def check(self, path: str, headers: Headers) -> None:
        """Raise where a request may not be answered.

        Raises:
            ApiError: 401 or 403.
        """
        if self.key is not None:
            if path not in OPEN and not self.keyed(headers):
                shown = headers.get("authorization", "").partition(" ")[2]
                what = "incorrect API key" if shown else "no API key: send it as `Authorization: Bearer KEY`"
                raise ApiError(401, what, code="invalid_api_key")
            return
        host = headers.get("host", "")
        if not self._knows(host_name(host)):
            hint = "an address, --allow-host, or an API key, with which every name is allowed"
            raise ApiError(403, f"host {host[:100]!r} is not known to be this machine: {hint}", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise ApiError(403, f"requests of pages from {origin[:100]!r} are not answered without an API key", code="wrong_origin")

    def keyed(self, headers: Headers) -> bool:
        """Return whether a request shows the key; True where there is none."""
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        right = self.key is None or hmac.compare_digest(shown.strip().encode("latin-1"), self.key.encode())
        return self.key is None or (scheme.lower() == "bearer" and right)

    def _knows(self, name: str) -> bool:
        return name in self.names or is_loopback(name) or (not self.loopback and _is_address(name))


def host_name(header: str) -> str:
    """Return the host of a ``Host`` header as it is compared; ``""`` where it is none.

    >>> [host_name(header) for header in ("Gpu-7.lab.:80", "[::1]:80", "evil@localhost", "localhost:x")]
    ['gpu-7.lab', '::1', '', '']
    """
    found = HOST.fullmatch(header)
    return found[1].strip("[]").removesuffix(".").lower() if found else ""


def own_names() -> frozenset[str]:
    """Return what this machine calls itself. May ask a name server, so it can take seconds."""
    return frozenset(name for name in map(host_name, (socket.gethostname(), socket.getfqdn())) if name)


def is_loopback(host: str) -> bool:
    """Return whether a name or address is always this machine.

    >>> [is_loopback(host) for host in ("localhost", "127.3.2.1", "::1", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Gate:
    """ASGI middleware that gives each request a number, checks access, and counts.

    Args:
        app: what answers.
        access: who may ask.
        meters: what is counted.
    """

    def __init__(self, app: ASGIApp, access: Access, meters: Meters) -> None:
        self.app, self.access, self.meters = app, access, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        number, headers = f"req_{secrets.token_hex(12)}", Headers(scope=scope)
        scope.setdefault("state", {}).update(request_id=number, keyed=self.access.keyed(headers))
        started, passed = False, False

        async def numbered(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._stamp(message, number, headers)
                route = getattr(scope.get("route"), "path", "other") if passed else "gate"
                self.meters.requests.labels(route, str(message["status"])).inc()
            await send(message)

        try:
            _check_framing(headers)
            self.access.check(scope["path"], headers)
            passed = True
            await self.app(scope, receive, numbered)
        except ApiError as refusal:
            await refusal.response(scope, receive, numbered)
        except Exception:
            log.exception("request %s failed", number)
            if started:
                raise  # half an answer: all that is left is to close the connection
            await ApiError(500, f"internal error (request {number})", code="internal_error").response(scope, receive, numbered)

    def _stamp(self, message: Message, number: str, request: Headers) -> None:
        headers = MutableHeaders(scope=message)
        headers["X-Request-Id"] = number
        headers["X-Content-Type-Options"] = "nosniff"
        if message["status"] >= 400 and "expect" in request:  # whether its body still comes, nobody knows
            headers["Connection"] = "close"


def _check_framing(headers: Headers) -> None:
    """Raise where a proxy in front may see another end of this request than we do, and so other requests after it.

    Raises:
        ApiError: 400, and the connection is closed.
    """
    if "transfer-encoding" in headers and "content-length" in headers:
        raise ApiError(400, "Content-Length and Transfer-Encoding: expected one of them", code="invalid_request").closing()
