"""What every request passes before anything reads it: who may ask, from where, and a number to find it by."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmfuse.serve.api_error import ApiError
from lmfuse.serve.metrics import Meters

log = logging.getLogger("lmfuse.serve")

OPEN = frozenset({"/", "/health", "/openapi.json"})  # nothing in them is worth a key, and the page asks for it


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Without a key anybody who reaches the socket may, and that includes any page that a browser on this machine shows. So a request
    that a page of another origin sent is refused, and on a loopback address one that asks for another host by name (DNS rebinding).
    With a key neither can matter: such a page does not know it.

    Attributes:
        key: what clients must show; None: nothing.
        loopback: the server can be reached from this machine only.
    """

    key: str | None = None
    loopback: bool = True

    def check(self, path: str, headers: Headers) -> None:
        """Raise where a request may not be answered.

        Raises:
            ApiError: 401 or 403.
        """
        if self.key is not None:
            scheme, _, shown = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(shown.strip().encode("latin-1"), self.key.encode())
            if path not in OPEN and not (scheme.lower() == "bearer" and right):
                what = "incorrect API key" if shown else "no API key: send it as `Authorization: Bearer KEY`"
                raise ApiError(401, what, code="invalid_api_key")
            return
        host = headers.get("host", "")
        if self.loopback and not is_loopback(_name(f"//{host}")):
            raise ApiError(403, f"host {host[:100]!r} is not this machine; with an API key every name is allowed", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise ApiError(403, f"requests of pages from {origin[:100]!r} are not answered without an API key", code="wrong_origin")


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:  # brackets that do not close
        return ""


def is_loopback(host: str) -> bool:
    """Return whether a name or address is always this machine.

    >>> [is_loopback(host) for host in ("localhost", "127.3.2.1", "::1", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
        number = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = number

        started = False

        async def numbered(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = number
                headers["X-Content-Type-Options"] = "nosniff"
                route = getattr(scope.get("route"), "path", "other")
                self.meters.requests.labels(route, str(message["status"])).inc()
            await send(message)

        try:
            self.access.check(scope["path"], Headers(scope=scope))
            await self.app(scope, receive, numbered)
        except ApiError as refusal:
            await refusal.response(scope, receive, numbered)
        except Exception:
            log.exception("request %s failed", number)
            if started:
                raise  # half an answer: all that is left is to close the connection
            await ApiError(500, f"internal error (request {number})", code="internal_error").response(scope, receive, numbered)
