import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests import runs
from tests.runs import lmfuse


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    runs.lay_out(folder)
    return folder


@pytest.fixture
def here(laid_out, tmp_path):
    """A fresh copy of models, text and recipe."""
    return shutil.copytree(laid_out, tmp_path / "here")


def test_help_names_every_command():
    code, text = lmfuse("--help")
    assert code == 0
    for command in (
        "plan",
        "run",
        "collect",
        "align",
        "train",
        "answer",
        "merge",
        "statistics",
        "evolve",
        "generate",
        "chat",
        "serve",
        "evaluate",
        "report",
        "methods",
        "demo",
    ):
        assert command in text


def test_version():
    from lmfuse import __version__

    assert __version__ in lmfuse("--version")[1]


def test_methods_lists_and_explains():
    assert "byte_law" in lmfuse("methods")[1]
    assert "arXiv:2401.10491" in lmfuse("methods", "avg_ce")[1]
    code, text = lmfuse("methods", "avgce")
    assert (code, "did you mean 'avg_ce'" in text) == (2, True)


def test_plan_says_what_a_run_needs(here):
    code, text = lmfuse("plan", here / "recipe.yaml", "--cache", here / "cache")
    assert (code, "nothing stands in the way" in text) == (0, True), text
    assert not (here / "cache").exists() or not list((here / "cache").glob("rows/*"))


def test_align_compares_two_tokenizers(here):
    code, text = lmfuse("align", here / "models" / "target", here / "models" / "a", "--text", here / "x-eval.jsonl")
    assert (code, "the byte law conditions" in text) == (0, True), text


def test_evaluate_compares_models(here):
    code, text = lmfuse(
        "evaluate", here / "models" / "target", here / "models" / "a", "--text", here / "x-eval.jsonl", "--window-tokens", 200
    )
    assert (code, "bits per byte" in text) == (0, True), text
    code, text = lmfuse("evaluate", here / "models" / "a", here / "models" / "a", "--text", here / "x-eval.jsonl")
    assert (code, "the same model is given twice" in text) == (2, True)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil_weights(path: Path) -> None:
    """Replace the first weights by NaN."""
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    data[start : start + 400] = struct.pack("<f", float("nan")) * 100
    path.write_bytes(data)


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def remote_code(folder: Path) -> None:
    edit(folder / "config.json", model_type="mystery", auto_map={"AutoModelForCausalLM": "modeling.Mystery"})


def outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated, "model.safetensors"),
        (pickled, "pickle"),
        (remote_code, "code"),
        (outside, "secret.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json"),
        (shutil.rmtree, "models/a"),
    ],
)
def test_a_spoilt_model_stops_the_plan(here, spoil, message):
    spoil(here / "models" / "a")
    code, text = lmfuse("plan", here / "recipe.yaml", "--cache", here / "cache")
    assert code == 2
    assert message in text
    assert "\n" not in text.strip()


def test_nan_weights_stop_the_run_before_anything_is_published(here):
    spoil_weights(here / "models" / "a" / "model.safetensors")
    code, text = lmfuse("run", here / "recipe.yaml", "--out", here / "out", "--cache", here / "cache")
    assert code == 2
    assert "models/a" in text or "not finite" in text or "NaN" in text
    assert not list((here / "cache").glob("rows/*/manifest.json"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "x-train.jsonl").unlink(), "x-train.jsonl"),
        (lambda folder: (folder / "x-train.jsonl").write_text(""), "x-train.jsonl"),
        (lambda folder: (folder / "x-train.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "\xff"}\n'), "line 2"),
        (lambda folder: (folder / "x-train.jsonl").write_text('{"text": "fine"}\n{"txt": "x"}\n'), "did you mean"),
        (lambda folder: shutil.copy(folder / "x-train.jsonl", folder / "x-eval.jsonl"), "also stand in the training text"),
    ],
)
def test_spoilt_text_stops_the_plan(here, spoil, message):
    spoil(here)
    code, text = lmfuse("plan", here / "recipe.yaml", "--cache", here / "cache")
    assert (code, message in text) == (2, True), text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fuse": {"name": "min_cee"}}, "did you mean 'min_ce'"),
        ({"sources": [{"model": "models/a"}, {"model": "models/a"}]}, "stands twice"),
        ({"rows": {"k": 4096}}, "rows.k is 4096, the vocabulary of"),
        ({"sources": [{"model": "models/a", "name": "p"}, {"model": "models/a", "name": "q"}]}, "'p' and 'q' are the same model"),
        ({"sources": [{"model": "models/target", "name": "p"}, {"model": "models/target", "name": "q"}]}, "are the same model"),
        ({"learning_rates": [-1e-4]}, "greater than 0"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"clm_weight": {"z": 0.5}}, "clm_weight: unknown 'z'"),
        ({"device": "cud"}, "device 'cud' cannot be used"),
        ({"fuse": {"unit": "byte"}}, "fuse.name: is missing"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_exit_2(here, changes, message):
    code, text = lmfuse("run", runs.write_recipe(here, **changes), "--out", here / "out", "--cache", here / "cache")
    assert (code, message in text) == (2, True), text
    assert not (here / "out" / "model").exists()
    assert not list((here / "cache").glob("models/*")), "an error before the cost"


def test_a_full_disk_is_foreseen(here, monkeypatch):
    monkeypatch.setattr("lmfuse.plan.free_disk", lambda _: 10_000)
    code, text = lmfuse("plan", here / "recipe.yaml", "--cache", here / "cache")
    assert (code, "GiB of disk" in text) == (5, True)


def test_a_small_memory_is_foreseen(here, monkeypatch):
    monkeypatch.setattr("lmfuse.plan.free_memory", lambda: 10_000)
    code, text = lmfuse("plan", here / "recipe.yaml", "--cache", here / "cache")
    assert (code, "GiB of memory" in text) == (5, True)


def test_errors_are_two_lines_on_the_terminal():
    found = subprocess.run([sys.executable, "-m", "lmfuse.cli", "methods", "nothing"], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.splitlines()[0].startswith("error: method: unknown 'nothing'")
    assert found.stderr.splitlines()[1].startswith("  try: ")
    assert "Traceback" not in found.stderr


def terminal(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person does."""
    return subprocess.run([sys.executable, "-m", "lmfuse.cli", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "RECIPE", "--out", "FILE/x", "--cache", "CACHE"), "FILE"),
        (("run", "RECIPE", "--out", "OUT", "--cache", "FILE"), "FILE"),
        (("evaluate", "A", "--text", "TEXT", "--limit", "0"), "limit: Input should be greater than"),
    ],
)
def test_paths_and_values_that_cannot_be_are_no_tracebacks(here, arguments, message):
    names = {"RECIPE": "recipe.yaml", "FILE": "x-eval.jsonl", "CACHE": "cache", "OUT": "out", "A": "models/a", "TEXT": "x-eval.jsonl"}
    given = [
        str(here / names.get(part.split("/")[0], "")) + part[len(part.split("/")[0]) :] if part.split("/")[0] in names else part
        for part in arguments
    ]
    found = terminal(*given)
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert message.replace("FILE", names["FILE"]) in found.stderr
    assert len(found.stderr.splitlines()) == 2


def test_a_disk_that_fills_up_is_exit_5(here):
    code = """
import errno, sys
import lmfuse.workspace
def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device", "events.jsonl")
lmfuse.workspace.Workspace.event = full
from lmfuse.cli import main
sys.argv[1:] = ["run", *sys.argv[1:]]
main()
"""
    arguments = [str(here / "recipe.yaml"), "--out", str(here / "out"), "--cache", str(here / "cache")]
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert found.returncode == 5, found.stderr
    assert "No space left on device" in found.stderr
    assert "Traceback" not in found.stderr
