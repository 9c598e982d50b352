"""What happens on a connection below the application: silence, too many of them, and what is no HTTP."""

import json
import logging
import select
import subprocess
import sys
import threading
import time

import httpx2
import pytest

from lmfuse.serve import connection as connections
from lmfuse.serve import server as servers
from tests.serve.running import CHAT, rest, serving, until
from tests.serve.writers import Story

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = json.dumps({"model": "story", "messages": CHAT})
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from lmfuse.serve.app import create_app
from lmfuse.serve.server import address_of, bind, run
from tests.serve.writers import Story
listener, _ = bind("127.0.0.1", 0)
run(create_app([Story()]), listener, 1, lambda: print(address_of(listener), flush=True))
"""


def read_health(raw):
    found = b""
    while not found.endswith(b"}}}"):
        found += raw.recv(2**16)
    assert found.startswith(b"HTTP/1.1 200 ")


def test_a_connection_without_a_request_is_closed(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    with serving(Story()) as running:
        with running.raw(b"") as raw:
            assert rest(raw) == b""
        with running.raw(b"GET /hea") as raw:
            answer = rest(raw)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "timeout"
        until(lambda: not running.server.server_state.connections)


def test_a_head_that_comes_byte_by_byte_has_no_more_time(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    with serving(Story()) as running, running.raw(HEALTH) as raw:
        read_health(raw)
        began = time.monotonic()
        for byte in HEALTH * 20:
            raw.sendall(bytes([byte]) if byte != 10 else b"\nX:")
            if select.select([raw], [], [], 0.02)[0]:
                break
        assert raw.recv(2**16).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 2


def test_a_connection_that_was_used_may_be_used_again(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    story = Story(pause_seconds=0.15)
    with serving(story) as running, running.http() as client:
        for _ in range(2):
            assert client.post("/v1/chat/completions", content=BODY).status_code == 200  # longer than a head may take
            time.sleep(0.3)
        with running.raw(HEALTH) as raw:
            read_health(raw)
            time.sleep(0.4)
            raw.sendall(HEALTH)
            read_health(raw)


def test_the_silent_make_room_for_those_who_ask():
    with serving(Story(), max_connections=10) as running:
        silent = [running.raw(b"GET /" if index % 2 else b"") for index in range(30)]
        assert running.post(BODY).status_code == 200
        until(lambda: len(running.server.server_state.connections) <= 10)
        for raw in silent:
            raw.close()


def test_half_a_body_makes_room_too():
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with serving(Story(), max_connections=10) as running:
        half = [running.raw(head) for _ in range(30)]
        assert running.post(BODY).status_code == 200
        for raw in half:
            raw.close()


def test_where_all_wait_for_answers_one_more_is_sent_away():
    story = Story(endless=True, pause_seconds=0.02)
    with serving(story, max_connections=3) as running:
        request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY.encode()
        asking = [running.raw(request) for _ in range(3)]
        until(lambda: story.begun == 1 and running.house.desks["story"].waiting == 2)
        with running.raw(b"") as raw:
            answer = rest(raw)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: " in answer
        assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "too_many_connections"
        for raw in asking:
            raw.close()
        until(lambda: not running.server.server_state.connections)
        assert running.post(BODY.replace("}]", '}], "max_tokens": 1')).status_code == 200


@pytest.mark.skipif(sys.platform == "win32", reason="sockets are no files")
def test_more_connections_than_files_are_no_end_and_no_flood_of_words():
    process = subprocess.Popen([sys.executable, "-c", LIMITED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        host, port = process.stdout.readline().strip().removeprefix("http://").split(":")
        script = f"""
import socket, time
open_ = [socket.create_connection(({host!r}, {port}), 5) for _ in range(600)]
asking = socket.create_connection(({host!r}, {port}), 5)
asking.sendall({HEALTH!r})
asking.settimeout(5)
print(asking.recv(100))
"""
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
        assert "HTTP/1.1 200" in found.stdout, found.stderr
        process.terminate()
        assert process.wait(10) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_how_many_connections_the_system_allows(monkeypatch):
    resource = pytest.importorskip("resource")
    asked = []
    limits = {"now": (150, 150)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: (asked.append(wanted), limits.update(now=wanted)))
    assert servers.most_connections() == 150 - servers.SPARE_FILES
    limits["now"] = (256, 10**6)
    assert servers.most_connections() == 1024
    assert asked[-1] == (1024 + servers.SPARE_FILES, 10**6)
    limits["now"] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert servers.most_connections() == 1024


@pytest.fixture(scope="module")
def running():
    with serving(Story()) as found:
        yield found


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400), (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400), (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 501), (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200_000, 431),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_what_is_no_http_is_told_so_as_openai_would(running, data, status):
    with running.raw(data) as raw:
        head, body = rest(raw).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status)
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("server_error" if status == 501 else "invalid_request_error", "invalid_http")
    assert b"application/json" in head


def test_a_body_that_is_no_http_while_the_answer_is_on_its_way(running, caplog):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with running.raw(head + b'5\r\n{"a":\r\n') as raw:
        raw.sendall(b"no chunk\r\n")
        assert rest(raw).startswith(b"HTTP/1.1 400 ")
    assert running.post(BODY).status_code == 200
    assert "Traceback" not in caplog.text


def test_requests_for_a_web_socket_are_answered_like_others(running, caplog):
    answer = httpx2.get(f"{running.url}/health", headers={"Upgrade": "websocket", "Connection": "upgrade"})
    assert answer.status_code == 200
    assert caplog.text == ""


def test_a_thousand_bad_requests_are_a_few_lines(running):
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("uvicorn.error")
    log.addHandler(handler)
    try:
        for _ in range(300):
            with running.raw(b"\x16\x03\x01\r\n\r\n") as raw:
                rest(raw)
    finally:
        log.removeHandler(handler)
    assert len(lines) <= connections.ENOUGH_LINES


def test_what_was_left_out_is_counted(monkeypatch):
    spare, now = connections.Sparing(), [0.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])

    def record(kind):
        return logging.LogRecord("x", 30, "", 0, kind + " %s", ("a",), None)

    assert sum(spare.filter(record("bad")) for _ in range(50)) == connections.ENOUGH_LINES
    assert spare.filter(record("rare"))  # whatever else there is too much of
    now[0] = 61.0
    first, second, other = record("bad"), record("bad"), record("rare")
    assert all(map(spare.filter, (first, second, other)))
    assert [each.getMessage() for each in (first, second, other)] == ["bad a (and 40 more like it were left out)", "bad a", "rare a"]


def test_what_a_client_still_sends_after_its_answer_is_read_for_a_while_only(running, monkeypatch):
    """A client that reads its answer only when it has sent everything gets it; one that never ends is cut."""
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.3)
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    with running.raw(head + b"x" * 1_000_000 + HEALTH) as raw:
        seen = b""
        while seen.count(b"HTTP/1.1 ") < 2:
            seen += raw.recv(2**16)
        assert b"HTTP/1.1 404 " in seen
        assert b"HTTP/1.1 200 " in seen  # the next request is found where it begins
    with running.raw(head) as raw:
        began = time.monotonic()
        try:
            answer = rest(raw)
        except ConnectionResetError:
            answer = b""
        assert time.monotonic() - began < 5
        assert answer.startswith((b"HTTP/1.1 404 ", b""))
    until(lambda: not running.server.server_state.connections)
    assert threading.active_count() < 50
