"""``lmfuse evolve`` from the command line: a result that loads, a report, kills, and errors that lose nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lmfuse.evolve_recipe import load_evolve_recipe
from lmfuse.models import ModelSpec, load_model
from lmfuse.report.page import headline
from lmfuse.results import REPORT_SCHEMA
from lmfuse.yaml_strict import load_yaml
from tests.evolve_recipe.build import RECIPES, lay_out, pico_tunes
from tests.fakes import byte_bpe, metaspace_bpe, save_model
from tests.runs import lmfuse

ARMS = ["evolved", "tune-1", "tune-2", "tune-3", "average", "task_arithmetic", "greedy_soup", "best_random_draw"]


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evolve")
    lay_out(folder)
    return folder


@pytest.fixture
def here(laid_out, tmp_path):
    return shutil.copytree(laid_out, tmp_path / "here")


def evolve(here: Path, *more: object, **changes: object) -> tuple[int, str]:
    return lmfuse("evolve", lay_out(here, **changes), "--out", here / "out", "--cache", here / "cache", *more, columns=200)


def tree(folder: Path) -> dict[str, bytes]:
    """Return what does not depend on time."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "journal.jsonl"}


def test_a_recipe_becomes_a_model_and_a_report(here):
    code, said = evolve(here)
    assert code == 0, said
    out = here / "out"
    assert sorted(path.name for path in out.iterdir()) == ["journal.jsonl", "model", "recipe.yaml", "report", "result.json"]
    report = json.loads((out / "report" / "report.json").read_text())
    assert (report["schema"], report["metric"], report["domains"]) == (REPORT_SCHEMA, "bits_per_byte", ["x", "y"])
    assert list(report["arms"]) == ARMS
    assert [c["b"] for c in report["comparisons"] if c["domain"] == "macro"] == ARMS[1:]
    result = json.loads((out / "result.json").read_text())
    for arm in result["arms"]:
        assert report["arms"][arm["label"]]["macro"] == pytest.approx(-arm["report"], rel=1e-9)
    for comparison in (c for c in report["comparisons"] if c["domain"] == "macro"):
        difference = report["arms"]["evolved"]["macro"] - report["arms"][comparison["b"]]["macro"]
        assert comparison["mean"] == pytest.approx(difference, abs=1e-9)
        assert comparison["n"] == report["run"]["units"]["report"]
    best = min(ARMS[1:4], key=lambda label: report["arms"][label]["macro"])
    assert report["run"]["controls"] == [*ARMS[4:], best]
    assert sum(report["run"]["genes"]["values"][0]) == pytest.approx(1)
    for line in headline(report):
        assert line["text"] in said
    load_model(ModelSpec(str(out / "model"), dtype="float32"))
    card = (out / "model" / "README.md").read_text()
    assert "Evolved by interpolation with scalar genes" in card
    assert headline(report)[0]["text"] in card
    in_card = card.split("```yaml\n")[1].split("```")[0]
    assert load_yaml(in_card, "card") == load_yaml((out / "recipe.yaml").read_text(), "recipe.yaml")
    assert load_evolve_recipe(out / "recipe.yaml").name == "tiny"


def test_the_page_stands_alone_and_is_rendered_again(here):
    evolve(here, genes="layer", method={"name": "de_rand_1"})
    page = here / "out" / "report" / "index.html"
    text = page.read_text()
    child = not json.loads((here / "out" / "report" / "report.json").read_text())["run"]["is_parent"]
    assert text.count("<svg") == 3 + child  # generations, arms, intervals; a child also has genes
    assert ("no child was better" in text) == (not child)
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "")
    assert ("model.layers.0" in text) == child
    page.unlink()
    code, said = lmfuse("report", here / "out")
    assert (code, str(page) in said.replace("\n", "")) == (0, True)
    assert page.read_text() == text


def test_the_plan_makes_nothing(here):
    code, said = evolve(here, "--plan")
    assert (code, "nothing stands in the way" in said) == (0, True), said
    assert "24 units to evolve on, 12 to select on, 12 to report on" in said
    assert not (here / "out").exists()


def test_the_same_command_finds_everything_and_workers_change_nothing(here):
    evolve(here, generations=1)
    before = tree(here / "out")
    journal = (here / "out" / "journal.jsonl").read_bytes()
    assert evolve(here, generations=1)[0] == 0
    assert tree(here / "out") == before
    assert (here / "out" / "journal.jsonl").read_bytes() == journal
    shutil.rmtree(here / "out")
    assert evolve(here, "--workers", 2, generations=1)[0] == 0
    assert tree(here / "out") == before
    shutil.rmtree(here / "out")
    assert evolve(here, generations=1, resident=False)[0] == 0
    streamed = tree(here / "out")
    assert streamed["result.json"] == before["result.json"]
    assert streamed["model/model.safetensors"] == before["model/model.safetensors"]


KILLED = """
import os, sys
import lmfuse.evolution.journal as journal
real, left = journal.Journal._write, int(sys.argv.pop(1))
def write(self, line):
    global left
    if "genome" in line:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
    real(self, line)
journal.Journal._write = write
from lmfuse.cli import main
main()
"""


def test_kill_9_and_the_same_command_end_with_the_same_winner(here):
    evolve(here)
    before = tree(here / "out")
    lines = (here / "out" / "journal.jsonl").read_text().splitlines()
    shutil.rmtree(here / "out")
    arguments = ["evolve", str(here / "recipe.yaml"), "--out", str(here / "out"), "--cache", str(here / "cache")]
    for verdicts in (3, 9):
        found = subprocess.run([sys.executable, "-c", KILLED, str(verdicts), *arguments], capture_output=True, timeout=120, check=False)
        assert found.returncode == -9, found.stderr
        assert not (here / "out" / "model").exists()
    assert evolve(here)[0] == 0
    assert tree(here / "out") == before
    again = (here / "out" / "journal.jsonl").read_text().splitlines()
    assert len(again) == len(lines)  # what was published is not scored again


def test_questions_are_answered_and_more_is_better(here):
    code, said = evolve(here, text=None, fitness={"name": "choices"}, questions={"divided": [{"path": "questions.jsonl"}]})
    assert code == 0, said
    report = json.loads((here / "out" / "report" / "report.json").read_text())
    assert (report["metric"], report["domains"]) == ("accuracy", ["choices"])
    result = {arm["label"]: arm["report"] for arm in json.loads((here / "out" / "result.json").read_text())["arms"]}
    assert {arm: values["macro"] for arm, values in report["arms"].items()} == pytest.approx(result)
    assert all(0 <= value <= 1 for value in result.values())
    assert "accuracy, higher is better" in said
    assert "questions" in said
    assert "accuracy" in (here / "out" / "report" / "index.html").read_text()


def test_a_function_beside_the_recipe_is_asked(here):
    (here / "my_fitness.py").write_text(
        "from pathlib import Path\n"
        "def size(model, units):\n"
        "    values = model.values()\n"
        "    return [-sum(float(each.float().abs().mean()) for each in values) * (1 + int(unit)) for unit in units]\n"
    )
    changes = {"text": None, "fitness": {"name": "function", "function": "my_fitness:size"}, "units": {"count": 9}}
    code, said = evolve(here, "--workers", 2, **changes)
    assert code == 0, said
    report = json.loads((here / "out" / "report" / "report.json").read_text())
    assert (report["metric"], report["domains"]) == ("score", ["all"])
    code, said = evolve(here, **changes | {"fitness": {"name": "function", "function": "my_fitness:sise"}})
    assert (code, "my_fitness:sise cannot be imported" in said) == (2, True)


def test_bad_input_ends_with_2_and_one_line_before_anything_is_made(here):
    save_model(here / "models" / "wide", byte_bpe(), hidden=48)
    save_model(here / "models" / "other", metaspace_bpe())
    (here / "nan.py").write_text("def nan(model, units):\n    return [float('nan')] * len(units)\n")
    tune = {"model": "models/tune-1", "dtype": "float32"}
    wrong = {
        "head_dim is 12 in wide, 8 in tune-1": {"parents": [tune, {"model": "models/wide", "dtype": "float32"}], "base": None},
        "other: token '(' has id": {"parents": [tune, {"model": "models/other", "dtype": "float32"}], "base": None},
        "are the same model": {"parents": [tune, tune | {"name": "twin"}]},
        "budget: 0 evaluations": {"budget": {"evaluations": 0}},
        "budget: 2 evaluations, the first population alone needs 3": {"budget": {"evaluations": 2}},
        "cma_es needs coefficients": {"method": {"name": "cma_es"}},
        "no such file": {"text": {"divided": [{"domain": "x", "path": "z.jsonl"}]}},
        "also stand in earlier parts": {"text": {part: [{"domain": "x", "path": "x.jsonl"}] for part in ("evolve", "select", "report")}},
        "method.name: unknown 'de'": {"method": {"name": "de"}},
        "express: fisher: no statistics": {"genes": "layer", "express": {"name": "fisher"}},
        "models/none": {"parents": [tune, {"model": "models/none", "dtype": "float32"}]},
    }
    for message, changes in wrong.items():
        code, said = evolve(here, **changes)
        assert (code, message.lower() in said.lower()) == (2, True), said
        assert "\n" not in said
        assert not (here / "out").exists(), message
    code, said = evolve(here, text=None, fitness={"name": "function", "function": "nan:nan"}, units={"count": 9})
    assert (code, "0 of 3 models of the first population can be scored" in said) == (2, True), said
    assert not (here / "out" / "model").exists()


def test_too_little_room_ends_with_5(here, monkeypatch):
    monkeypatch.setattr("lmfuse.evolve_recipe.plan.free_disk", lambda _: 1000)
    code, said = evolve(here, resident=False)
    assert (code, "of disk in" in said) == (5, True), said
    monkeypatch.setattr("lmfuse.evolve_recipe.plan.free_disk", lambda _: 1 << 40)
    monkeypatch.setattr("lmfuse.evolve_recipe.plan.free_memory", lambda: 1000)
    code, said = evolve(here)
    assert (code, "of memory" in said, "resident: false" in said) == (5, True, True), said


def test_a_folder_of_something_else_is_refused(here):
    (here / "out").mkdir()
    (here / "out" / "thesis.txt").write_text("mine")
    code, said = evolve(here)
    assert (code, "is not empty: it holds thesis.txt" in said) == (2, True), said
    os.remove(here / "out" / "thesis.txt")
    assert evolve(here)[0] == 0
    code, said = evolve(here, seed=2)
    assert (code, "is of another search" in said) == (2, True), said


def test_the_pico_recipe_from_end_to_end(tmp_path):
    pico_tunes(tmp_path)
    shutil.copy(RECIPES / "evolver-pico.yaml", tmp_path)
    code, said = lmfuse("evolve", tmp_path / "evolver-pico.yaml", "--out", tmp_path / "out", "--cache", tmp_path / "cache", columns=200)
    assert code == 0, said
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    recipe = yaml.safe_load((tmp_path / "evolver-pico.yaml").read_text())
    assert report["run"]["evaluations"] <= recipe["budget"]["evaluations"]
    assert report["domains"] == ["code", "math", "prose"]
    parents = [source["name"] for source in report["run"]["sources"]]
    assert report["arms"]["evolved"]["macro"] < min(report["arms"][parent]["macro"] for parent in parents)
    assert any(line["text"].startswith("evolved is better than") for line in headline(report))
