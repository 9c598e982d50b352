"""`lmfuse serve` itself, with the models that ship with the package."""

import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import openai
import pytest

from lmfuse.errors import InputError
from lmfuse.named_models import NamedModels
from lmfuse.pico import model_folder
from lmfuse.serve import command
from lmfuse.serve.command import Serving, serve
from lmfuse.serve.ending import ending_quietly
from lmfuse.serve.server import KEY_VARIABLE
from tests.runs import lmfuse

TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


@contextmanager
def started(folders, *arguments):
    """Run the command until it says where it listens; end it with SIGTERM, which is no failure."""
    models = [word for folder in folders for word in ("--models", str(folder))]
    call = [
        sys.executable,
        "-m",
        "lmfuse.cli",
        "serve",
        *models,
        *map(str, arguments),
        "--port",
        "0",
        "--dtype",
        "float32",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert "chat at http://127.0.0.1:" in line, line + process.stderr.read()
        yield line.split("API at ")[1].split(";")[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_three_models_together_and_each_alone(tmp_path):
    (tmp_path / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
    (tmp_path / "key").write_text("a-key", encoding="utf-8")
    folders = [model_folder(name) for name in ("prose", "code", "math")]
    with started(folders, "--chat-template", tmp_path / "template.jinja", "--api-key-file", tmp_path / "key", "--max-tokens", 30) as url:
        with openai.OpenAI(base_url=url, api_key="other") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with openai.OpenAI(base_url=url, api_key="a-key", max_retries=0) as client:
            assert {model.id: model.models for model in client.models.list()} == {
                "lmfuse": ["prose", "code", "math"], "prose": ["prose"], "code": ["code"], "math": ["math"],
            }  # fmt: skip
            found = client.chat.completions.create(
                model="lmfuse", messages=[{"role": "user", "content": "Tell me of the sea"}], max_tokens=12
            )
            assert found.choices[0].message.content == "".join(passage["text"] for passage in found.lmfuse["passages"])
            assert {passage["author"] for passage in found.lmfuse["passages"]} <= {"prose", "code", "math"}
            assert all(set(passage["scores"]) <= {"prose", "code", "math"} for passage in found.lmfuse["passages"])
            assert 0 < found.usage.completion_tokens <= 12
            assert found.usage.prompt_tokens > 5
            whole = client.completions.create(model="code", prompt="def add(a, b):", max_tokens=20).choices[0].text
            chunks = client.completions.create(model="code", prompt="def add(a, b):", max_tokens=20, stream=True)
            assert "".join(chunk.choices[0].text for chunk in chunks) == whole  # greedy: the same again
            with pytest.raises(openai.BadRequestError, match="max_tokens: 31 is too large, at most 30"):
                client.completions.create(model="code", prompt="x", max_tokens=31)
            with pytest.raises(openai.BadRequestError) as caught:
                client.completions.create(model="code", prompt="word " * 5000)
            assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")  # more than the model reads at once


def test_a_text_that_is_cut_has_usage():
    with (
        started([model_folder("prose"), model_folder("code")], "--max-seconds", 0.1, "--chat-template", "none") as url,
        openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client,
    ):
        for model, labels in (("prose", {"prose"}), ("lmfuse", {"prose", "code"})):
            found = client.completions.create(model=model, prompt="Once upon a time", max_tokens=480, temperature=1, seed=1)
            assert found.lmfuse["ended_by_time"]
            assert found.usage.prompt_tokens > 3
            assert 0 <= found.usage.completion_tokens < 480
            assert set(found.lmfuse["tokens"]) == labels
            assert found.lmfuse["text_bytes"] == len(found.choices[0].text.encode())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_models_load_is_no_failure(number):
    code = """
import sys, time
from lmfuse import cli
from lmfuse.named_models import NamedModels
NamedModels.load = lambda self: (print("loading", flush=True), time.sleep(60))
sys.argv = ["lmfuse", "serve", "--models", "a", "--port", "0"]
cli.main()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 0


def test_a_signal_that_was_caught_is_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, ending_quietly():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before
    thread = threading.Thread(target=lambda: ending_quietly().__enter__())  # which may catch none, and says nothing of it
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_options_reach_the_server(monkeypatch):
    seen = []
    monkeypatch.setattr(command, "serve", lambda loading, serving, say: seen.append(serving))
    code, text = lmfuse(
        "serve", "--models", "a", "--max-wait", "7", "--max-seconds", "3", "--allow-host", "x", "--allow-host", "y", "--queue", "2"
    )
    assert code == 0, text
    assert (seen[0].limits.wait_seconds, seen[0].limits.seconds, seen[0].names, seen[0].places) == (7.0, 3.0, ("x", "y"), 2)


def test_names_that_may_be_asked_for():
    serving = Serving(names=("GPU-7.lab",))
    assert serving.access(None, loopback=True).names == {"gpu-7.lab"}
    assert serving.access(None, loopback=False).names > {"gpu-7.lab"}
    assert serving.access("key", loopback=False).names == {"gpu-7.lab"}
    for name in ("http://gpu", "gpu:80", "", "a b"):
        with pytest.raises(InputError, match="--allow-host"):
            Serving(names=(name,)).access(None, loopback=True)


def test_one_model_has_one_name():
    with (
        started([model_folder("math")], "--chat-template", "none", "--name", "sums") as url,
        openai.OpenAI(base_url=url, api_key="x") as client,
    ):
        assert [model.id for model in client.models.list()] == ["sums"]
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model="sums", messages=[{"role": "user", "content": "1 + 1"}])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "coool"], "coool"), (["--set", "length=0"], "length"), (["--dtype", "int8"], "--dtype: unknown 'int8'"),
        (["--models", "no/such"], "--models: no/such, no/such"), (["--api-key-file", "no-such-file"], "API key file no-such-file"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"), (["--device", "cpu", "--device", "cpu"], "1 models on 2 devices"),
        (["--models", "b", "--name", "b"], "--name b: a model is called so"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_a_model_is_looked_for(arguments, message):
    code, text = lmfuse("serve", "--models", "no/such", *arguments, "--port", "0")
    assert code == 2
    assert message in text
    assert "neither a folder" not in text


def test_a_server_for_others_without_a_key_is_warned_of(monkeypatch, tmp_path):
    said, loading, serving = [], NamedModels((str(tmp_path / "nothing"),)), Serving(host="0.0.0.0", port=0)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(InputError, match="neither a folder"):
        serve(loading, serving, said.append)
    assert said == [f"warning: whoever reaches 0.0.0.0 can use this server: it has no API key (${KEY_VARIABLE} or --api-key-file)"]
    said.clear()
    monkeypatch.setenv(KEY_VARIABLE, "a-key")
    with pytest.raises(InputError, match="neither a folder"):
        serve(loading, serving, said.append)
    assert said == []


def test_a_missing_library_is_named(monkeypatch):
    from lmfuse import serve as package

    monkeypatch.setattr(package, "find_spec", lambda name: None if name == "fastapi" else object())
    with pytest.raises(InputError, match="serve needs fastapi") as caught:
        package.check_installed()
    assert caught.value.hint == "pip install 'lmfuse[serve]'"
