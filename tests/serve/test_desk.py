"""The line: its length, its order, who leaves it, and what frees a writer."""

import asyncio
import json
import threading
import time

import openai
import pytest

from lmfuse.serve import answer as answers
from lmfuse.serve import desk as desks
from lmfuse.serve.desk import House, Job
from lmfuse.serve.intake import Limits
from lmfuse.writing import WritingSettings
from tests.serve.running import CHAT, serving, until
from tests.serve.writers import STORY, Counting, Silent, Story


def ask(running, results, index, **options):
    """Ask in a thread; the result is the text, or the error."""

    def work():
        with running.openai(timeout=30) as client:
            try:
                found = client.chat.completions.create(model="story", messages=[{"role": "user", "content": str(index)}], **options)
                results[index] = found.choices[0].message.content
            except openai.APIError as error:
                results[index] = error

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_the_line_is_bounded_and_in_order():
    story, results = Story(endless=True, pause_seconds=0.02), {}
    with serving(story, places=2) as running:
        threads = []
        for index in range(3):
            threads.append(ask(running, results, index, max_tokens=30))
            until(lambda index=index: running.house.desks["story"].waiting + story.begun >= index + 1)
        assert running.metric("lmfuse_waiting_requests") == 2
        assert running.metric("lmfuse_writing_requests") == 1
        with running.openai() as client, pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="story", messages=CHAT)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
        for thread in threads:
            thread.join()
        assert [segments[0].text for segments in story.prompts] == ["0", "1", "2"]
        assert story.most_at_once == 1
        assert len(set(results.values())) == 1
        assert running.metric("lmfuse_texts_total", ending="busy") == 1


def test_no_places_still_serves_one_after_the_other():
    """The writer is free before the client hears the end."""
    with serving(Story(), places=0) as running, running.openai() as client:
        for _ in range(100):
            assert client.chat.completions.create(model="story", messages=CHAT).choices


def test_the_openai_client_tries_again_by_itself():
    story = Story(endless=True, pause_seconds=0.02)
    with serving(story, places=0) as running:
        thread = ask(running, {}, 0, max_tokens=20)
        until(lambda: story.begun)
        with running.openai(max_retries=3) as client:
            assert client.chat.completions.create(model="story", messages=CHAT, max_tokens=1).choices
        thread.join()


def test_a_client_that_goes_away_leaves_the_line():
    story = Story(endless=True, pause_seconds=0.02)
    with serving(story, places=5) as running:
        first = ask(running, {}, 0, max_tokens=60)
        until(lambda: story.begun == 1)
        with running.http() as client, pytest.raises(Exception, match="timed out"):
            client.post("/v1/chat/completions", content=json.dumps({"model": "story", "messages": CHAT}), timeout=0.2)
        until(lambda: running.house.desks["story"].waiting == 0)
        first.join()
        assert story.begun == 1  # the second text was never begun


def test_what_is_written_when_the_time_is_over_is_the_answer():
    story = Counting(passages=STORY[:2], endless=True, pause_seconds=0.02)
    with serving(story, limits=Limits(seconds=0.3)) as running, running.openai() as client:
        found = client.chat.completions.create(model="story", messages=CHAT)
        assert found.choices[0].finish_reason == "length"
        assert found.choices[0].message.content.startswith("Once upon a")
        size = len(found.choices[0].message.content.encode())
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (2, size)  # the writer counts bytes
        assert (found.lmfuse["ended_by_time"], found.lmfuse["text_bytes"], found.lmfuse["tokens"]) == (True, size, {"a": size, "b": size})
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(model="story", messages=CHAT, **options))
        assert chunks[-2].choices[0].finish_reason == "length"
        assert chunks[-1].usage.completion_tokens == sum(len(chunk.choices[0].delta.content or "") for chunk in chunks[:-1]) > 0
        assert story.over == 2


def test_a_writer_that_hangs_is_told_of_and_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(desks, "LATE_SECONDS", 0.2)
    silent, story = Silent(), Story()
    with serving(silent, story, limits=Limits(seconds=0.2)) as running:
        begun, results = time.monotonic(), {}

        def first():
            results[0] = running.post(json.dumps({"model": "silent", "messages": CHAT}), timeout=20)

        thread = threading.Thread(target=first)
        thread.start()
        until(lambda: running.house.desks["silent"].stuck)
        second = running.post(json.dumps({"model": "silent", "messages": CHAT}))
        thread.join()
        assert time.monotonic() - begun < 20  # it hangs for 60 s
        assert [results[0].status_code, second.status_code] == [503, 503]
        assert second.json()["error"]["code"] == "stuck"
        with running.http() as client:
            health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "stuck")
        assert running.post(json.dumps({"model": "story", "messages": CHAT})).status_code == 200  # the other writer's desk
        silent.released.set()
        until(lambda: not running.house.desks["silent"].writing)
        with running.http() as client:
            assert client.get("/health").json()["status"] == "ok"


def test_who_waits_for_too_long_is_sent_away():
    story = Story(endless=True, pause_seconds=0.02)
    with serving(story, limits=Limits(wait_seconds=0.3)) as running:
        first = ask(running, {}, 0, max_tokens=60)  # 1.2 seconds
        until(lambda: story.begun == 1)
        for stream in (False, True):
            with running.openai() as client, pytest.raises(openai.RateLimitError, match=r"busy for 0\.3 seconds") as caught:
                list(client.chat.completions.create(model="story", messages=CHAT, stream=stream))
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
            assert caught.value.code == "rate_limit_exceeded"
        assert running.house.desks["story"].waiting == 0
        first.join()
        assert story.begun == 1
        assert running.metric("lmfuse_texts_total", ending="busy") == 2
        assert running.metric("lmfuse_texts_total", ending="length") == 1  # the time in line is not that of writing


def test_a_stream_in_line_says_that_it_is_alive(monkeypatch):
    for name, seconds in (("LOOK_SECONDS", 0.02), ("STATUS_SECONDS", 0.1), ("SIGN_SECONDS", 0.05)):
        monkeypatch.setattr(answers, name, seconds)
    story = Story(endless=True, pause_seconds=0.02)
    with serving(story) as running:
        first = ask(running, {}, 0, max_tokens=30)
        until(lambda: story.begun == 1)
        body = {"model": "story", "messages": CHAT, "max_tokens": 1, "stream": True}
        with running.http(timeout=10) as client, client.stream("POST", "/v1/chat/completions", content=json.dumps(body)) as answer:
            assert (answer.status_code, story.begun) == (200, 1)  # before its text is begun
            lines = [line for line in answer.iter_lines() if line]
        first.join()
        signs = [line for line in lines if line.startswith(":")]
        assert lines[: len(signs)] == signs
        assert 2 <= len(signs) < 15
        assert lines[-1] == "data: [DONE]"
        second = ask(running, {}, 0, max_tokens=30)
        until(lambda: story.begun == 3)
        with running.openai() as client:
            chunks = list(client.chat.completions.create(model="story", messages=CHAT, max_tokens=2, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Once upon a"
        second.join()


def test_threads_are_joined_together():
    house = House((Silent("x"), Silent("y"), Silent("z")), 1)

    async def send_and_close():
        house.start()
        for desk in house.desks.values():
            desk.submit(Job("", WritingSettings(), 60.0))
            while not desk.writing:
                await asyncio.sleep(0.001)
        house.close()
        began = time.monotonic()
        assert not house.join(0.3)
        assert time.monotonic() - began < 0.6
        for desk in house.desks.values():
            desk.writer.released.set()
        house.stop()
        assert house.join(5.0)

    asyncio.run(send_and_close())
