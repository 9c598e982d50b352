"""Who may ask, and from where."""

import json
import socket

import openai
import pytest

from lmfuse.serve.gate import Access, own_names
from tests.serve.running import CHAT, rest, serving
from tests.serve.writers import Story

BODY = json.dumps({"model": "story", "messages": CHAT})
KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def locked():
    with serving(Story(), access=Access(KEY)) as found:
        yield found


@pytest.fixture(scope="module")
def unlocked():
    with serving(Story()) as found:
        yield found


def test_the_right_key_opens(locked):
    with locked.openai(KEY) as client:
        assert client.chat.completions.create(model="story", messages=CHAT).choices
        assert [model.id for model in client.models.list()] == ["story"]


@pytest.mark.parametrize("key", ["wrong", KEY + "x", KEY[:-1], KEY.upper()])
def test_no_other_key_does(locked, key):
    with locked.openai(key) as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model="story", messages=CHAT)
    assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")
    assert caught.value.response.headers["www-authenticate"] == "Bearer"
    assert KEY not in caught.value.message


@pytest.mark.parametrize("header", [None, KEY, f"Basic {KEY}", "Bearer", "Bearer \xe9\xff", f"Bearer x {KEY}"])
def test_other_headers_do_not(locked, header):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = locked.post(BODY, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("path", "status"), [("/", 200), ("/health", 200), ("/openapi.json", 200), ("/metrics", 401), ("/v1/models", 401), ("/x", 401)]
)
def test_what_is_open_without_a_key(locked, path, status):
    with locked.http() as client:
        assert client.get(path).status_code == status


def test_a_body_is_not_read_before_the_key_is_right(locked):
    assert locked.post(b"x" * 10**7).status_code == 401


def test_with_a_key_every_name_of_the_machine_is_good(locked):
    headers = {"Authorization": f"Bearer {KEY}", "Host": "example.org", "Origin": "https://example.org"}
    assert locked.post(BODY, headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "127.0.0.1:1", "[::1]:80", "x.localhost"])
def test_names_of_this_machine(unlocked, host):
    assert unlocked.post(BODY, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::1", "10.0.0.1", ""])
def test_a_name_that_only_points_here_is_refused(unlocked, host):
    """A page of evil.example whose address changed to 127.0.0.1 must not read what this server writes."""
    answer = unlocked.post(BODY, headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "", "http://[::1"])
def test_pages_from_elsewhere_are_refused(unlocked, origin):
    answer = unlocked.post(BODY, headers={"Origin": origin, "Content-Type": "text/plain"})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "wrong_origin"


def test_our_own_page_is_not(unlocked):
    assert unlocked.post(BODY, headers={"Origin": unlocked.url}).status_code == 200


@pytest.fixture(scope="module")
def public():
    with serving(Story(), access=Access(loopback=False, names=frozenset({"gpu-7.lab"}))) as found:
        yield found


@pytest.mark.parametrize(
    "host", ["gpu-7.lab", "GPU-7.lab.:8000", "10.0.0.1", "192.0.2.7:8000", "[2001:db8::1]:80", "localhost", "127.0.0.1"]
)
def test_what_a_server_for_others_is_called(public, host):
    assert public.post(BODY, headers={"Host": host}).status_code == 200
    assert public.post(BODY, headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200
    assert public.post(BODY, headers={"Host": host, "Origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "gpu-7.lab.evil.example", "10.0.0.1.evil.example", "gpu-8.lab", "evil@10.0.0.1", "1.2.3", ""]
)
def test_a_name_that_was_pointed_at_a_server_for_others_is_refused(public, host):
    """A page of evil.example whose address changed to this machine's has the same origin as its host."""
    answer = public.post(BODY, headers={"Host": host, "Origin": f"http://{host}"})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "wrong_host"
    assert "--allow-host" in answer.json()["error"]["message"]


def test_this_machine_knows_its_own_name():
    assert socket.gethostname().lower() in own_names()


def test_names_of_models_are_worth_a_key(locked, unlocked):
    with locked.http() as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert "story" in client.get("/health", headers={"Authorization": f"Bearer {KEY}"}).json()["models"]
        assert "story" not in client.get("/openapi.json").text
        assert "story" not in client.get("/").text
    with unlocked.http() as client:
        assert "story" in client.get("/health").json()["models"]
        assert "story" in client.get("/openapi.json").text


def test_who_is_refused_here_is_counted_apart(locked):
    before, others = count(locked, status="401", route="gate"), count(locked, route="other")
    locked.post(BODY)
    locked.post(BODY, path="/made/up")
    assert count(locked, status="401", route="gate") == before + 2
    assert count(locked, route="other") == others


def count(running, **labels):
    with running.http(headers={"Authorization": f"Bearer {KEY}"}) as client:
        lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("lmfuse_requests_total") and all(f'{key}="{labels[key]}"' in line for key in labels)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def test_two_lengths_are_refused_and_the_connection_is_closed(unlocked):
    """What follows could be another request to a proxy than it is to us."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    with unlocked.raw(head + b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as raw:
        answer = rest(raw)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b'"type":"invalid_request_error"' in answer
