"""The chat page: one HTML file with its script and style in it, which may load nothing and talk to this server only."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.responses import HTMLResponse


@cache
def page_text() -> str:
    """Return the page."""
    return files("lmfuse.serve").joinpath("page.html").read_text(encoding="utf-8")


@cache
def policy() -> str:
    """Return the page's content security policy: its own script and style by their hashes, and nothing else that runs or loads."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page_text(), re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found)

    sources = f"script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; img-src data:"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def page_response() -> HTMLResponse:
    """Return the page with its policy."""
    return HTMLResponse(
        page_text(), headers={"Content-Security-Policy": policy(), "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    )
