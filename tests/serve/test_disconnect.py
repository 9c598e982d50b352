"""Clients that go away in the middle stop their writer and leave nothing behind."""

import gc
import json
import os
import random
import socket
import struct
import threading
from contextlib import ExitStack

import pytest

from lmfuse.writing import Passage
from tests.serve.running import CHAT, serving, until
from tests.serve.writers import Story

BODY = json.dumps({"model": "story", "messages": CHAT, "stream": True}).encode()
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


def connect(running, window_bytes: int = 0) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    raw = socket.socket()
    raw.settimeout(10)
    if window_bytes:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
    raw.connect((host, int(port)))
    raw.sendall(REQUEST)
    return raw


def settle(running) -> None:
    """Wait until nobody writes, waits or is connected."""
    desk, state = running.house.desks["story"], running.server.server_state
    until(lambda: not (desk.writing or desk.waiting or state.connections or state.tasks))
    gc.collect()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_a_hundred_clients_killed_in_the_middle_leak_nothing():
    story, draw = Story(endless=True, pause_seconds=0.001), random.Random(0)
    with serving(story, places=3) as running:
        for round_ in range(101):
            raw = connect(running)
            assert raw.recv(20).startswith(b"HTTP/1.1 200")
            for _ in range(draw.randrange(3)):
                raw.recv(4096)
            if draw.random() < 0.5:  # a reset, as of a process that was killed, instead of a polite end
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()
            if round_ == 0:
                settle(running)
                before = (threading.active_count(), open_files())
        settle(running)
        assert (threading.active_count(), open_files()) == before
        assert (story.begun, story.over, story.most_at_once) == (101, 101, 1)
        assert running.metric("lmfuse_texts_total", ending="gone") == 101


def test_a_client_that_does_not_stream_is_missed_too():
    story = Story(endless=True, pause_seconds=0.01)
    with serving(story) as running:
        with running.http() as client, pytest.raises(Exception, match="timed out"):
            client.post("/v1/chat/completions", content=BODY.replace(b"true", b"false"), timeout=0.2)
        until(lambda: story.over == 1)  # all of it would take 40 s


def test_clients_that_wait_and_go_away_free_their_places():
    story = Story(endless=True, pause_seconds=0.005)
    with serving(story, places=4) as running:
        desk = running.house.desks["story"]
        for _ in range(10):
            clients = [connect(running) for _ in range(5)]
            until(lambda: desk.writing and desk.waiting == 4)
            for raw in clients[::-1]:
                raw.close()
            until(lambda: not desk.writing and desk.waiting == 0)
        assert story.most_at_once == 1


def test_a_client_that_reads_nothing_does_not_hold_up_the_writer():
    """The text waits for the slow client; the writer is free for the next one."""
    story = Story(passages=(Passage("x" * 100_000, "a"),) * 200)
    with serving(story, places=0) as running:
        raw = connect(running, window_bytes=4096)
        until(lambda: story.over == 1, seconds=20)  # all of its twenty megabytes
        assert running.post(BODY.replace(b'"stream": true', b'"max_tokens": 1')).status_code == 200
        assert running.server.server_state.tasks  # not all of it was sent yet
        received = bytearray()
        while not received.endswith(b"0\r\n\r\n"):
            received += raw.recv(2**16)
        assert received.count(b'"content":"') == 200 + 1  # all passages, and the opening
        raw.close()


def test_a_writer_that_never_asks_is_ended_between_passages():
    story = Story(endless=True, deaf=True, pause_seconds=0.01)
    with serving(story) as running:
        raw = connect(running)
        raw.recv(20)
        raw.close()
        until(lambda: story.over == 1)  # all of it would take 40 s


def test_fifty_streams_at_once():
    story, done, lock = Story(pause_seconds=0.001), [], threading.Lock()
    with serving(story, places=50) as running, ExitStack() as stack:
        clients = [stack.enter_context(running.openai(timeout=60)) for _ in range(50)]

        def work(client):
            for _ in range(4):
                chunks = list(client.chat.completions.create(model="story", messages=CHAT, stream=True))
                with lock:
                    done.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))

        threads = [threading.Thread(target=work, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(done) == 200
        assert set(done) == {"".join(passage.text for passage in story.passages)}
        assert (story.most_at_once, story.begun, story.over) == (1, 200, 200)
        assert running.metric("lmfuse_requests_total", route="/v1/chat/completions", status="200") == 200
