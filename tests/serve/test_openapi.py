"""The OpenAPI document says what the server does: schemathesis asks everything that it allows, and a lot that it does not."""

import re
import subprocess
import sys

import pytest

from lmfuse.serve.intake import Limits
from tests.serve.running import serving
from tests.serve.writers import Story


@pytest.fixture(scope="module")
def running():
    with serving(Story(), Story("org/model-7b"), limits=Limits(max_tokens=100)) as found:
        yield found


def test_every_answer_is_one_that_the_document_names(running, tmp_path):
    """Its own command line: its pytest plugin does not know this pytest."""
    options = ["--max-examples", "30", "--seed", "1", "--no-color"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{running.url}/openapi.json", *options]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stdout[-20_000:]
    passed = re.search(r"(\d+) generated, (\d+) passed", found.stdout)
    assert passed, found.stdout
    assert int(passed[1]) == int(passed[2]) > 300
    assert running.metric("lmfuse_requests_total", route="/v1/chat/completions", status="200") > 20
    assert running.metric("lmfuse_requests_total", route="/v1/chat/completions", status="400") > 20
    assert running.thread.is_alive()


def test_the_document_covers_every_route_and_this_servers_limits(running):
    with running.http() as client:
        found = client.get("/openapi.json").json()
    assert set(found["paths"]) == {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/health"}
    fields = found["components"]["schemas"]["ChatRequest"]["properties"]
    assert fields["model"]["enum"] == ["story", "org/model-7b"]
    assert {"type": "integer", "minimum": 1, "maximum": 100} in fields["max_tokens"]["anyOf"]
    assert "lmfuse" in found["components"]["schemas"]["ChatCompletion"]["properties"]
