"""Hub models: judged by their headers before weights are fetched, the same model as the folder it comes from afterwards."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmfuse.models import ModelSpec, inspect_model
from tests.fakes import byte_bpe, save_model
from tests.hub_server import hub
from tests.model_folders import edit_weights, shard, write_index

LOOK = """
import dataclasses, json, sys
from lmfuse.errors import LmfuseError
from lmfuse.models import ModelSpec, inspect_model, load_tokenizer
from lmfuse.model_files import local_folder
import lmfuse.hub
if "short" in sys.argv:
    lmfuse.hub.USUAL_HEADER = 64
try:
    spec = ModelSpec(sys.argv[1])
    facts = [inspect_model(spec)]
    load_tokenizer(spec)
    if "fetch" in sys.argv:
        local_folder(spec)
        facts.append(inspect_model(spec))
    print(json.dumps([dataclasses.asdict(each) for each in facts]))
except LmfuseError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A model whose weights are larger than what the hub's client reads to find a header."""
    return save_model(tmp_path_factory.mktemp("hub") / "large", byte_bpe(), hidden=160)


def look(server, home: Path, *arguments: str):
    """Look at a hub model in a process of its own: the hub's client reads its address when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    environment |= {"NO_PROXY": "*", "LMFUSE_CACHE": str(home / "lmfuse")}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_hub_model_is_judged_without_its_weights(large, tmp_path):
    whole = (large / "model.safetensors").stat().st_size
    with hub(large) as server:
        before, after = look(server, tmp_path, "owner/large", "fetch")
    here = inspect_model(ModelSpec(str(large)))
    assert before["bytes_to_fetch"] == whole
    assert (after["bytes_to_fetch"], after["key"], before["key"]) == (0, here.key, here.key)  # rows collected from it serve both
    assert {k: v for k, v in before.items() if k != "bytes_to_fetch"} == {k: v for k, v in after.items() if k != "bytes_to_fetch"}


def test_looking_fetches_headers_only(large, tmp_path):
    with hub(large) as server:
        look(server, tmp_path, "owner/large")
        assert server.sent["model.safetensors"] < (large / "model.safetensors").stat().st_size / 2
        assert server.sent["tokenizer.json"] > 0


def test_a_truncated_hub_model_and_a_pickled_one_are_refused_before_they_are_fetched(whole, tmp_path):
    short = Path(shutil.copytree(whole, tmp_path / "short"))
    content = (short / "model.safetensors").read_bytes()
    (short / "model.safetensors").write_bytes(content[: len(content) // 2])
    pickled = Path(shutil.copytree(whole, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with hub(short, pickled) as server:
        assert "truncated" in look(server, tmp_path / "home", "owner/short")
        assert "only pickled weights (pytorch_model.bin)" in look(server, tmp_path / "home", "owner/pickled")
        assert "cannot be fetched" in look(server, tmp_path / "home", "owner/absent")


def test_other_weights_are_another_model(whole, tmp_path):
    other = Path(shutil.copytree(whole, tmp_path / "other"))
    edit_weights(other, lambda tensors: tensors.update({name: tensor + 1 for name, tensor in tensors.items()}))
    with hub(whole, other) as server:
        assert look(server, tmp_path / "a", f"owner/{whole.name}")[0]["key"] != look(server, tmp_path / "b", "owner/other")[0]["key"]


def test_sharded_models_headers_longer_than_usual_and_servers_without_ranges(whole, tmp_path):
    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    shard(cut)
    with hub(cut) as server:
        server.knows_ranges = False
        assert look(server, tmp_path / "home", "owner/cut", "short")[0]["key"] == inspect_model(ModelSpec(str(cut))).key


def test_a_server_that_sends_everything_is_not_listened_to(tmp_path):
    wide = save_model(tmp_path / "wide", byte_bpe(), hidden=640, layers=4)
    with hub(wide) as server:
        server.knows_ranges = False
        look(server, tmp_path / "home", "owner/wide")
        assert server.sent["model.safetensors"] < (wide / "model.safetensors").stat().st_size / 2


def test_a_run_stays_at_the_commit_it_began_with(whole, tmp_path, monkeypatch):
    from lmfuse import model_files

    monkeypatch.setattr(model_files, "fetch_snapshot", lambda name, revision, weights: tmp_path / (revision or "c0ffee"))
    assert model_files.pinned(ModelSpec("owner/name")).revision == "c0ffee"
    assert model_files.pinned(ModelSpec(str(whole))).revision is None


def test_a_shard_that_would_never_be_fetched_is_missing(whole, tmp_path):
    odd = Path(shutil.copytree(whole, tmp_path / "odd"))
    names = shard(odd)
    for name in set(names.values()):
        (odd / name).rename(odd / f"weights-{name}")
    write_index(odd, {tensor: f"weights-{name}" for tensor, name in names.items()})
    with hub(odd) as server:
        assert "is missing, but the index names it" in look(server, tmp_path / "home", "owner/odd")


def test_what_is_here_needs_no_network(whole, tmp_path):
    with hub(whole) as server:
        there = look(server, tmp_path, f"owner/{whole.name}", "fetch")
    assert look(server, tmp_path, f"owner/{whole.name}")[0] == there[1]  # the server is gone
