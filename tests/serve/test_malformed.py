"""Whatever is sent, the answer is OpenAI's error object with a 4xx status, and the server goes on."""

import json
import socket
from contextlib import suppress

import httpx2
import openai
import pytest

from lmfuse.serve.intake import Limits
from tests.serve.running import CHAT, rest, serving
from tests.serve.writers import Story

LIMITS = Limits(prompt_bytes=10_000, max_tokens=50)


@pytest.fixture(scope="module")
def running():
    with serving(Story(), limits=LIMITS) as found:
        yield found


def refused(answer: httpx2.Response) -> dict:
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def chat(**changes) -> str:
    return json.dumps({"model": "story", "messages": CHAT} | changes)


NOT_JSON = [
    b"",
    b"{",
    b"hello",
    b'{"model": "story",}',
    b"\xff\xfe\x00",
    b"[" * 50_000,
    b'{"model": "\\ud800"}',
    b'{"a": 1} {"b": 2}',
    b'"\x00"',
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[:20]))
def test_what_is_not_json(running, path, body):
    answer = running.post(body, path)
    assert answer.status_code == 400
    error = refused(answer)
    assert (error["code"], error["param"], error["type"]) == ("invalid_json", None, "invalid_request_error")


WRONG = [
    ("[]", None), ("null", None), ("{}", "model"), (chat(model=None), "model"), (chat(model=7), "model"), (chat(messages=[]), "messages"),
    ('{"model": "story"}', "messages"), (chat(messages="Hi"), "messages"), (chat(messages=[7]), "messages[0]"),
    (chat(messages=[{"role": "user"}]), "messages[0].content"), (chat(messages=[{"content": "Hi"}]), "messages[0].role"),
    (chat(messages=[{"role": "tool", "content": "Hi"}]), "messages[0].role"), (chat(messages=[{"role": "user", "content": None}]), "messages[0].content"),
    (chat(messages=[{"role": "user", "content": []}]), "messages[0].content"),
    (chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]), "messages[0].content[0].type"),
    (chat(messages=[*CHAT, {"role": "assistant", "content": "", "tool_calls": [{}]}]), "messages[1].tool_calls"),
    (chat(messages=[{"role": "user", "content": ""}] * 2049), "messages"),
    (chat(max_tokens=0), "max_tokens"), (chat(max_tokens=-1), "max_tokens"), (chat(max_tokens=51), "max_tokens"), (chat(max_tokens="5"), "max_tokens"),
    (chat(max_tokens=5.5), "max_tokens"), (chat(max_tokens=True), "max_tokens"), (chat(max_tokens=2**70), "max_tokens"),
    (chat(max_completion_tokens=-5), "max_completion_tokens"), (chat(max_completion_tokens=51), "max_completion_tokens"),
    (chat(temperature=-0.1), "temperature"), (chat(temperature=2.1), "temperature"), (chat(temperature="hot"), "temperature"),
    (chat(temperature=float("nan")), "temperature"), (chat(temperature=float("inf")), "temperature"), (chat(top_p=1.1), "top_p"), (chat(top_p=-1), "top_p"),
    (chat(n=0), "n"), (chat(n=2), "n"), (chat(n=-1), "n"), (chat(seed=0.5), "seed"), (chat(seed=2**63), "seed"), (chat(stream="yes"), "stream"),
    (chat(stream=1), "stream"), (chat(stop=5), "stop"), (chat(stop=""), "stop"), (chat(stop=["a", ""]), "stop[1]"), (chat(stop=["a"] * 17), "stop"),
    (chat(stop="x" * 2000), "stop"), (chat(stream_options={"include_usage": True}), "stream_options"),
    (chat(stream=True, stream_options={"include_usage": "yes"}), "stream_options.include_usage"), (chat(stream=True, stream_options=[]), "stream_options"),
    (chat(tools=[{"type": "function"}]), "tools"), (chat(response_format={"type": "json_object"}), "response_format"), (chat(logprobs=True), "logprobs"),
    (chat(presence_penalty=1), "presence_penalty"), (chat(logit_bias={"5": 1}), "logit_bias"),
    (chat(messages=[{"role": "user", "content": "x" * 10_001}]), "messages"), (chat(top_k=5), "top_k"), (chat(repetition_penalty=1.7), "repetition_penalty"),
    (chat(min_p=0.1), "min_p"), (chat(guided_json={}), "guided_json"), (chat(reasoning_effort="high"), "reasoning_effort"), (chat(echo=1), "echo"),
    (chat(made_up=None), "made_up"), (chat(temprature=1), "temprature"), (chat(messages=[CHAT[0] | {"made_up": 1}]), "messages[0].made_up"),
    (chat(messages=[{"role": "user", "content": [{"type": "text", "text": "x", "made_up": 1}]}]), "messages[0].content[0].made_up"),
    (chat(stream=True, stream_options={"made_up": 1}), "stream_options.made_up"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), WRONG, ids=lambda value: str(value)[:60])
def test_wrong_chats_name_the_field(running, body, param):
    answer = running.post(body)
    assert answer.status_code == 400, answer.text
    assert refused(answer)["param"] == param


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        (5, "prompt"),
        ([], "prompt"),
        (["a", "b"], "prompt"),
        ([1], "prompt[0]"),
        ([1, 2], "prompt"),
        ([[1]], "prompt[0]"),
        ("é" * 5001, "prompt"),
    ],
)
def test_wrong_prompts(running, prompt, param):
    answer = running.post(json.dumps({"model": "story", "prompt": prompt}), "/v1/completions")
    assert answer.status_code == 400
    assert refused(answer)["param"] == param


@pytest.mark.parametrize("field", [{"echo": True}, {"best_of": 2}, {"suffix": "x"}, {"logprobs": 0}, {"logprobs": 5}], ids=str)
def test_what_a_completion_cannot_do(running, field):
    answer = running.post(json.dumps({"model": "story", "prompt": "x"} | field), "/v1/completions")
    assert answer.status_code == 400
    assert refused(answer) == {
        "message": f"{next(iter(field))}: is not supported", "type": "invalid_request_error", "param": next(iter(field)), "code": "unsupported_parameter",
    }  # fmt: skip


def test_a_misspelt_field_is_refused_in_openais_words(running):
    error = refused(running.post(chat(temprature=1)))
    assert error == {
        "message": "Unrecognized request argument supplied: temprature", "type": "invalid_request_error", "param": "temprature",
        "code": "unknown_parameter",
    }  # fmt: skip
    assert len(refused(running.post(chat(**{"x" * 5000: 1})))["message"]) < 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405), ("POST", "/", 405), ("GET", "/v1/nothing", 404), ("GET", "/docs", 404),
        ("GET", "/v1/models/nobody", 404), ("GET", "/v1/models/", 404), ("POST", "/v1/chat/completions/", 404), ("GET", "/%00%ff/../x", 404),
    ],
)  # fmt: skip
def test_wrong_routes(running, method, path, status):
    with running.http() as client:
        answer = client.request(method, path)
    assert answer.status_code == status
    refused(answer)


def test_a_prompt_of_ten_megabytes(running):
    with running.openai() as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="story", messages=[{"role": "user", "content": "x" * 10_000_000}])
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    with running.openai() as client:
        assert client.chat.completions.create(model="story", messages=CHAT).choices


def test_a_body_whose_length_nobody_announced(running):
    answer = running.post(b"x" * 100_000 for _ in range(50))
    assert answer.status_code == 413
    assert refused(answer)["code"] == "request_too_large"


HUGE = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n"


def test_a_length_that_is_only_announced(running):
    """The answer comes before the body, and of that no more is read than a client needs that answers only when it is done."""
    with running.raw(HUGE + b"\r\n") as raw:
        assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")
        sent_megabytes = 0
        with suppress(ConnectionError):
            while sent_megabytes < 64:
                raw.sendall(b"x" * 2**20)
                sent_megabytes += 1
        assert sent_megabytes < 64


def test_who_asks_whether_to_send_is_told_not_to(running):
    with running.raw(HUGE + b"Expect: 100-continue\r\n\r\n") as raw:
        answer = rest(raw)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b" 100 " not in answer
    body = chat().encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    with running.raw(head) as raw:
        assert raw.recv(1000).startswith(b"HTTP/1.1 100 ")
        raw.sendall(body)
        assert raw.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_clients_that_leave_before_their_body_is_complete(running):
    host, port = running.url.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert running.post(chat()).status_code == 200
