"""An OpenAI-compatible server over any writer, with who wrote what, a chat page and figures for Prometheus.

``desk.py`` has the line in front of a writer and the thread that writes; ``answer.py`` one answer from the line to its last byte;
``schema.py`` and ``replies.py`` what goes in and out; ``gate.py`` who may ask; ``connection.py`` what happens below
HTTP; ``server.py`` the process around it. Nothing heavy is imported here.
"""

from __future__ import annotations

from importlib.util import find_spec

from lmfuse.errors import InputError

NEEDS = ("fastapi", "uvicorn", "prometheus_client")


def check_installed() -> None:
    """Raise where a library is missing that only serving needs.

    Raises:
        InputError: and what to install.
    """
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise InputError(f"serve needs {', '.join(missing)}", hint="pip install 'lmfuse[serve]'")
