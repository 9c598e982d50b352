"""The process: its socket, its key, what it counts, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lmfuse.errors import InputError
from lmfuse.serve.server import KEY_VARIABLE, address_of, bind, read_key
from tests.serve.running import CHAT, rest, serving, until
from tests.serve.writers import Story

SCRIPT = """
from lmfuse.serve.app import create_app
from lmfuse.serve.server import address_of, bind, run
from tests.serve.writers import Story
listener, _ = bind("127.0.0.1", 0)
run(create_app([Story(endless=True, pause_seconds=0.02)]), listener, {grace}, lambda: print(address_of(listener), flush=True))
"""


def stream(url: str, seen: list, max_tokens: int) -> None:
    body = json.dumps({"model": "story", "messages": CHAT, "stream": True, "max_tokens": max_tokens})
    with httpx2.Client(base_url=url, timeout=20) as client, client.stream("POST", "/v1/chat/completions", content=body) as answer:
        seen.append(answer.status_code)
        seen.extend(line for line in answer.iter_lines() if line)


@pytest.mark.parametrize(
    ("grace", "max_tokens", "last"), [(10, 40, "data: [DONE]"), (0.3, 1000, '"code":"shutting_down"}}')], ids=["finished", "stopped"]
)
def test_sigterm_ends_in_order(grace, max_tokens, last):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(grace=grace)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        url = process.stdout.readline().strip()
        running, waiting = [], []
        threads = [
            threading.Thread(target=stream, args=(url, running, max_tokens)),
            threading.Thread(target=stream, args=(url, waiting, 5)),
        ]
        threads[0].start()
        until(lambda: len(running) > 3)
        threads[1].start()
        until(lambda: httpx2.get(f"{url}/health").json()["models"]["story"]["waiting"] == 1)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(20)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 8
        assert running[0] == 200
        assert running[-1].endswith(last)
        assert waiting[0] == 503  # who waits is not kept waiting
        assert waiting[1].endswith('"code":"shutting_down"}}')
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@contextmanager
def process(code: str):
    """Run a server that prints its address; whatever it wrote to its standard error must be nothing."""
    found = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        host, port = found.stdout.readline().strip().removeprefix("http://").split(":")
        yield found, (host, int(port))
        assert found.stderr.read() == ""
    finally:
        found.kill()
        found.wait()
        found.stdout.close()
        found.stderr.close()


def sent(address, data: bytes, window_bytes: int = 0) -> socket.socket:
    raw = socket.socket()
    raw.settimeout(10)
    if window_bytes:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
    raw.connect(address)
    raw.sendall(data)
    return raw


def ask(**changes) -> bytes:
    body = json.dumps({"model": "story", "messages": CHAT} | changes).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def test_the_end_comes_within_the_grace_whoever_holds_it_up():
    """Half a head, half a body, a client that reads nothing of a long text, and one whose text is running."""
    code = SCRIPT.format(grace=2.0).replace("Story(endless", "Story('long', passages=(Passage('x' * 10**6, 'a'),) * 50), Story(endless")
    with process("from lmfuse.writing import Passage\n" + code) as (server, address):
        head = sent(address, b"GET /hea")
        half = sent(address, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        deaf = sent(address, ask(model="long", stream=True), window_bytes=4096)
        running = sent(address, ask(stream=True))
        assert deaf.recv(20)
        assert running.recv(20)
        time.sleep(0.3)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        told = rest(half)
        assert time.monotonic() - began < 1
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"shutting_down" in told
        assert rest(head) == b""
        assert b'"code":"shutting_down"' in rest(running)[-300:]
        assert server.wait(10) == 0
        assert time.monotonic() - began < 3.5
        deaf.close()


@pytest.mark.parametrize(("signals", "most_seconds"), [(1, 4.0), (2, 2.0)])
def test_a_writer_that_hangs_is_left_behind(signals, most_seconds):
    code = SCRIPT.format(grace=2.0 if signals == 1 else 30.0).replace("Story(endless=True, pause_seconds=0.02)", "Silent('story')")
    with process(code.replace("import Story", "import Silent")) as (server, address):
        stream, whole = sent(address, ask(stream=True)), sent(address, ask())
        time.sleep(0.3)
        began = time.monotonic()
        for _ in range(signals):
            server.send_signal(signal.SIGINT)
            time.sleep(0.3)
        assert server.wait(20) == 0
        assert time.monotonic() - began < most_seconds
        if signals == 1:
            assert b"shutting_down" in rest(stream)  # although its writer never asked
        assert b"shutting_down" in rest(whole)  # it was in line
        stream.close()


def test_a_closed_server_leaves_no_thread():
    before = {thread.name for thread in threading.enumerate()}
    with serving(Story()) as running:
        assert "lmfuse-writer-story" in {thread.name for thread in threading.enumerate()}
        assert running.post(json.dumps({"model": "story", "messages": CHAT})).status_code == 200
    assert {thread.name for thread in threading.enumerate()} == before


def test_the_default_is_this_machine_only():
    listener, loopback = bind("localhost", 0)
    with listener:
        assert loopback
        assert address_of(listener).startswith(("http://127.0.0.1:", "http://[::1]:"))
    listener, loopback = bind("0.0.0.0", 0)
    with listener:
        assert not loopback


def test_a_port_that_is_taken_and_an_address_of_others():
    listener, _ = bind("127.0.0.1", 0)
    with listener, pytest.raises(InputError, match=r"cannot listen on 127\.0\.0\.1 port \d+: Address already in use"):
        bind("127.0.0.1", listener.getsockname()[1])
    with pytest.raises(InputError, match="cannot listen on 192"):
        bind("192.0.2.1", 0)
    with pytest.raises(InputError, match="--host no such host"):
        bind("no such host", 0)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
def test_connections_inherit_the_timeout_of_lost_clients():
    listener, _ = bind("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname()) as _, listener.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


def test_keys_come_from_the_environment_or_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_key(None) is None
    monkeypatch.setenv(KEY_VARIABLE, "of-the-environment")
    assert read_key(None) == "of-the-environment"
    (tmp_path / "key").write_text("of-the-file\n", encoding="utf-8")
    assert read_key(tmp_path / "key") == "of-the-file"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "got nothing"), (b"two words", "got other"), ("clé".encode(), "got other"), (b"\xff", "UTF-8")],
)
def test_a_key_that_cannot_be_used_is_an_error_and_not_an_open_door(tmp_path, content, message):
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_key(tmp_path / "key")
    assert "words" not in str(caught.value)  # no part of the key is shown


def test_metrics_and_health_say_what_happened():
    with serving(Story()) as running:
        for status in (200, 400):
            assert running.post(json.dumps({"model": "story", "messages": CHAT if status == 200 else 5})).status_code == status
        with running.http() as client:
            answer = client.get("/metrics")
            assert client.get("/health").json() == {"status": "ok", "models": {"story": {"waiting": 0, "writing": False, "stuck": False}}}
            client.get("/some/path/that/a/client/made/up")
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}  # Prometheus's own reader
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert {
            sample.labels["author"]: sample.value for sample in families["lmfuse_passages"].samples if sample.name.endswith("_total")
        } == {"a": 2, "b": 1}
        assert {
            sample.labels["author"]: sample.value for sample in families["lmfuse_text_bytes"].samples if sample.name.endswith("_total")
        } == {
            "a": len(("Once" + Story().passages[2].text).encode()),
            "b": len(" upon a"),
        }
        assert running.metric("lmfuse_requests_total", status="400") == 1
        assert running.metric("lmfuse_texts_total", ending="stop") == 1
        assert running.metric("lmfuse_text_seconds_count") == running.metric("lmfuse_first_passage_seconds_count") == 1
        assert running.metric("process_resident_memory_bytes") > 0 or not os.path.isdir("/proc/self")
        assert running.metric("lmfuse_requests_total", route="other", status="404") == 1  # made-up paths are no series of their own
