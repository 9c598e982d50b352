"""A server under load, with the models that ship with the package: ``python -m benchmarks.serve_load [--seconds 60] [--clients 50] [--kills 100]``.

``lmfuse serve`` runs three models together in a process of its own. First so many clients ask for streamed completions, each again and
again, for so many seconds; every answer must be whole (status 200, passages, usage, ``[DONE]``). Then clients are killed in the middle of a
stream, one after another. Goals: no error, memory flat, nothing left behind.

- ``errors``: answers that were not whole. ``texts``, ``passages_per_s``, ``text_tokens_per_s`` (of the reference model).
- ``first_passage_p50_s``, ``first_passage_p95_s``: with all clients in one line, mostly time in line.
- ``memory_growth``: the server's resident memory at the end over that after a sixth of the time.
- ``kills_memory_growth``, ``leaked_threads``, ``leaked_files``, ``writers_left``: after the killed clients over before them.
- ``exit_code``: of the server after SIGTERM.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmfuse.pico import model_folder

MODEL = "lmfuse"


@dataclass
class Seen:
    """What all clients saw."""

    texts: int = 0
    passages: int = 0
    tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def asked(port: int, prompt: str, max_tokens: int) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """Ask for a streamed completion."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "stream": True, "stream_options": {"include_usage": True}}
    connection.request("POST", "/v1/completions", json.dumps(body))
    return connection, connection.getresponse()


def events(response: http.client.HTTPResponse) -> Iterator[str]:
    for line in response:
        if line.startswith(b"data: "):
            yield line[6:].decode().rstrip("\n")


def ask(port: int, prompt: str, max_tokens: int, seen: Seen) -> None:
    """Ask once, check the answer, and count it."""
    began = time.monotonic()
    connection, response = asked(port, prompt, max_tokens)
    try:
        if response.status != 200:
            raise ValueError(f"status {response.status}: {response.read()[:200]!r}")
        first, passages, usage, last = 0.0, 0, None, ""
        for last in events(response):
            if last != "[DONE]":
                chunk = json.loads(last)
                first = first or time.monotonic() - began
                passages += len(chunk.get("lmfuse", {}).get("passages", ()))
                usage = chunk.get("usage") or usage
        if last != "[DONE]" or usage is None or not passages:
            raise ValueError(f"not whole: {passages} passages, usage {usage}, ends in {last[:200]!r}")
    finally:
        connection.close()
    with seen.lock:
        seen.texts, seen.passages, seen.tokens = seen.texts + 1, seen.passages + passages, seen.tokens + usage["completion_tokens"]
        seen.first_s.append(first)


def client(port: int, number: int, end: float, max_tokens: int, seen: Seen) -> None:
    """Ask again and again."""
    while time.monotonic() < end:
        try:
            ask(port, f"Client {number} asks: ", max_tokens, seen)
        except (OSError, ValueError, http.client.HTTPException) as error:
            with seen.lock:
                seen.errors.append(repr(error))
            time.sleep(0.1)


def load(port: int, pid: int, given: argparse.Namespace, seen: Seen) -> list[int]:
    """Let all clients ask at once; return the server's resident bytes, second by second."""
    end, resident = time.monotonic() + given.seconds, []
    threads = [threading.Thread(target=client, args=(port, each, end, given.max_tokens, seen)) for each in range(given.clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1)
        resident.append(resident_bytes(pid))
    return resident


def kill_in_the_middle(port: int, times: int) -> None:
    """Begin a long text, read one passage, and go away; so many times."""
    for _ in range(times):
        connection, response = asked(port, "Once upon a time", 200)
        next(events(response))
        response.close()
        connection.close()


def settled(port: int) -> int:
    """Wait until no text is written or waited for, ten seconds at most; return how many are left."""
    for _ in range(100):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/health")
        models = json.loads(connection.getresponse().read())["models"].values()
        connection.close()
        left = sum(each["waiting"] + each["writing"] for each in models)
        if not left:
            time.sleep(0.5)  # connections are closed a moment later
            return 0
        time.sleep(0.1)
    return left


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def counted(pid: int) -> tuple[int, int]:
    """Return how many threads and open files a process has."""
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


def measure(port: int, pid: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return all figures but the exit code."""
    seen = Seen()
    ask(port, "Once upon a time", 4, seen)  # warm
    seen = Seen()
    began = time.monotonic()
    resident = load(port, pid, given, seen)
    seconds = time.monotonic() - began
    print("\n".join(sorted(set(seen.errors))[:10]), file=sys.stderr)
    kill_in_the_middle(port, 3)  # the first ones may still fill caches
    settled(port)
    before, before_bytes = counted(pid), resident_bytes(pid)
    kill_in_the_middle(port, given.kills)
    left = settled(port)
    after = counted(pid)
    return {
        "errors": len(seen.errors),
        "texts": seen.texts,
        "seconds": seconds,
        "passages_per_s": seen.passages / seconds,
        "text_tokens_per_s": seen.tokens / seconds,
        "first_passage_p50_s": statistics.median(seen.first_s),
        "first_passage_p95_s": statistics.quantiles(seen.first_s, n=20)[-1],
        "memory_growth": resident[-1] / resident[len(resident) // 6],
        "resident_mb": resident[-1] / 1e6,
        "kills": given.kills,
        "kills_memory_growth": resident_bytes(pid) / before_bytes,
        "leaked_threads": after[0] - before[0],
        "leaked_files": after[1] - before[1],
        "writers_left": left,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=4)
    given = parser.parse_args()
    models = [word for name in ("prose", "code", "math") for word in ("--models", str(model_folder(name)))]
    options = ["--port", "0", "--queue", str(given.clients), "--chat-template", "none", "--dtype", "float32", "--device", "cpu"]
    command = [sys.executable, "-m", "lmfuse.cli", "serve", *models, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        line = server.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise SystemExit(line + server.stderr.read())
        try:
            figures = measure(int(found[1]), server.pid, given)
        finally:
            server.send_signal(signal.SIGTERM)
        figures["exit_code"] = server.wait(30)
        print(server.stderr.read(), end="", file=sys.stderr)
    machine = {"python": platform.python_version(), "cores": os.cpu_count()}
    print(json.dumps({"benchmark": "serve_load", "figures": figures, "machine": machine, "command": "python -m benchmarks.serve_load"}))


if __name__ == "__main__":
    main()
