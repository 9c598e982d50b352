"""Requests to a chat endpoint over HTTP: whatever goes wrong is a reply, and the API key is in none of them."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any
from urllib.parse import quote, quote_plus

from lmfuse.errors import InputError
from lmfuse.judges.settings import Endpoint

MOST_REPLY = 1 << 20  # bytes
TIMEOUT = "no reply in time"


@dataclass(frozen=True)
class Reply:
    """What came back: a status (0: none), the body or what went wrong, and how long to wait before the next attempt, if it says so."""

    status: int
    body: str
    wait_seconds: float | None = None


Post = Callable[[dict[str, Any]], Reply]


class Http:
    """Sends requests with httpx2, the client that huggingface_hub and openai use; the extra ``judges`` names it."""

    def __init__(self, settings: Endpoint) -> None:
        self.settings = settings
        self._client: Any = None
        self._lock = threading.Lock()

    @cached_property
    def _key(self) -> str:
        key = os.environ.get(self.settings.key_variable, "").strip()
        if not all(" " <= letter <= "~" for letter in key):
            raise InputError(
                f"judge endpoint: the environment variable {self.settings.key_variable} holds a character that no API key has",
                "a key is printable ASCII on one line",
            )
        return key

    def _connected(self, httpx: Any) -> Any:
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(timeout=self.settings.timeout_seconds, follow_redirects=False)
            return self._client

    def __call__(self, request: dict[str, Any]) -> Reply:
        """Send a request once; whatever goes wrong is a reply of status 0. The key is in no reply, even where the endpoint repeats it.

        Raises:
            InputError: the key cannot be one.
        """
        httpx = _library()
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        deadline, body = time.monotonic() + self.settings.timeout_seconds, bytearray()
        try:
            with self._connected(httpx).stream(
                "POST", f"{self.settings.url.rstrip('/')}/chat/completions", json=request, headers=headers
            ) as answer:
                for part in answer.iter_bytes():
                    body += part
                    if len(body) > MOST_REPLY:
                        return Reply(413, f"a reply of more than {MOST_REPLY:,} bytes")
                    if time.monotonic() > deadline:
                        return Reply(0, TIMEOUT)
                wait = retry_after(answer.headers.get("retry-after", ""))
                return Reply(answer.status_code, self._without_key(bytes(body).decode("utf-8", "replace")), wait)
        except httpx.TimeoutException:
            return Reply(0, TIMEOUT)
        except httpx.TransportError as error:
            told = "" if isinstance(error, httpx.ProtocolError) else f": {error}"  # which quote headers
            return Reply(0, self._without_key(f"{type(error).__name__}{told}"))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            return Reply(0, type(error).__name__)

    def _without_key(self, text: str) -> str:
        """Return a text without the key, in whichever way it is written."""
        if self._key:
            forms = {self._key, repr(self._key)[1:-1]}
            for _ in range(2):  # JSON, and JSON in JSON
                forms |= {json.dumps(form)[1:-1] for form in forms}
            forms |= {form.replace("/", "\\/") for form in forms} | {quote(self._key, safe=""), quote_plus(self._key)}
            for form in sorted(forms, key=len, reverse=True):
                text = text.replace(form, "[key]")
        return text

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _library() -> Any:
    try:
        import httpx2
    except ImportError:
        raise InputError("judge endpoint: httpx2 is not installed", "pip install 'lmfuse[judges]'") from None
    return httpx2


def retry_after(text: str) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which gives them or a date; None where it says neither.

    >>> retry_after("7"), retry_after("soon"), retry_after("Thu, 01 Jan 1970 00:00:00 GMT")
    (7.0, None, 0.0)
    """
    with suppress(ValueError):
        seconds = float(text)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    with suppress(ValueError, TypeError):
        date = parsedate_to_datetime(text)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    return None
