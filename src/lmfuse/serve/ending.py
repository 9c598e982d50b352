"""The end of a server that is not one yet: libraries and models take long to load, and whoever started it may not want to wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ending_quietly() -> Iterator[None]:
    """End the process with code 0 at SIGTERM or Ctrl-C while this lasts; a second signal kills. A server that runs has signals of its own."""

    def end(sig: int, _frame: FrameType | None) -> None:
        signal.signal(sig, signal.SIG_DFL)
        raise SystemExit(0)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {sig: signal.signal(sig, end) for sig in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
