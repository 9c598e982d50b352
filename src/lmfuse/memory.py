"""How much memory there is, and saying so when it does not suffice."""

from __future__ import annotations

import ctypes
import errno
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmfuse.errors import ResourceError

_WORDS = ("can't allocate memory", "not enough memory", "out of memory")


@contextmanager
def out_of_memory_is_an_error(what: str) -> Iterator[None]:
    """Turn every way in which Python, torch and the system say "no memory" into a ``ResourceError``."""
    try:
        yield
    except Exception as reason:
        if not is_out_of_memory(reason):
            raise
        raise ResourceError(f"out of memory: {what}", "use smaller batches, a smaller dtype or a smaller model") from reason


def is_out_of_memory(reason: BaseException) -> bool:
    """Return whether an exception says that memory does not suffice; torch has only words for it on a CPU."""
    if isinstance(reason, MemoryError) or getattr(reason, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(reason, RuntimeError) and any(word in str(reason).lower() for word in _WORDS)


def available_memory() -> int | None:
    """Return the bytes that new programs can have without swapping, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def give_back() -> None:
    """Return freed memory to the system: after a model has gone, glibc otherwise keeps what it held, in pieces that fit nothing."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # musl has none
    if trim is not None:
        trim(0)
