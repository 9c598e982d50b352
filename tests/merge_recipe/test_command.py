"""``lmfuse merge`` from the command line: results that load, what is said on the way, and errors that leave nothing behind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lmfuse.locks import lock
from lmfuse.merge_recipe import parse_merge_recipe
from lmfuse.mergekit_yaml.names import TRANSLATIONS
from lmfuse.yaml_strict import load_yaml
from tests.mergekit_yaml.oracle import model_family, tensors_of
from tests.model_folders import edit_weights, poison, shard
from tests.runs import lmfuse


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return model_family(tmp_path_factory.mktemp("family"), ["a", "b"])


@pytest.fixture
def here(made, tmp_path) -> Path:
    """A folder with ``models/base``, ``models/a``, ``models/b``."""
    shutil.copytree(made, tmp_path / "models")
    return tmp_path


TIES = "models: [models/a, models/b, models/base]\nbase: base\nmethod: {name: ties, weights: [0.5, 0.25], density: 0.3}\n"
MERGEKIT = """
models: [{model: models/a, parameters: {weight: 0.5}}, {model: models/b, parameters: {weight: 0.25}}]
merge_method: ties
base_model: models/base
parameters: {density: 0.3}
"""


def merge(here: Path, text: str | None, *more: object) -> tuple[int, str]:
    arguments = list(more)
    if text is not None:
        (here / "merge.yml").write_text(text)
        arguments = [here / "merge.yml", *more]
    return lmfuse("merge", *arguments, "--cache", here / "cache", columns=200)


def test_a_recipe_becomes_a_model_that_loads_and_writes(here):
    code, said = merge(here, TIES, here / "out", "--threads", 1)
    assert code == 0, said
    for word in ("base", "licence", "0.1 M", "MB/s", str(here / "out")):
        assert word in said
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(here / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False).shape == (1, 6)


def test_our_form_and_mergekits_make_the_same_weights(here):
    assert merge(here, TIES, here / "ours")[0] == 0
    code, said = merge(here, MERGEKIT, here / "theirs")
    assert code == 0, said
    mine, yours = tensors_of(here / "ours"), tensors_of(here / "theirs")
    assert all(torch.equal(mine[name], yours[name]) for name in mine | yours)


def test_without_a_file(here):
    models = [argument for name in ("a", "b") for argument in ("--model", here / "models" / name)]
    settings = ("--set", "weights=[0.5, 0.25]", "--set", "density=0.3", "--set", "dtype=float32")
    code, said = merge(here, None, "ties", here / "short", *models, "--base", here / "models" / "base", *settings)
    assert code == 0, said
    assert merge(here, TIES, here / "long")[0] == 0
    mine, yours = tensors_of(here / "short"), tensors_of(here / "long")
    assert all(torch.equal(mine[name], yours[name]) for name in mine | yours)


def test_without_a_file_folders_of_one_name_are_told_apart(here):
    for name in ("a", "b"):
        (here / name).mkdir()
        shutil.move(here / "models" / name, here / name / "model")
    models = [argument for name in ("a", "b") for argument in ("--model", f"{here / name}/model/")]
    code, said = merge(here, None, "task_arithmetic", here / "out", *models, "--base", here / "a" / "model", "--set", "weights=0.5")
    assert code == 0, said
    name = "model.norm.weight"
    one, two, out = (tensors_of(folder)[name] for folder in (here / "a" / "model", here / "b" / "model", here / "out"))
    torch.testing.assert_close(out, (one + two) / 2)


def test_the_same_command_again_finds_the_result(here):
    assert merge(here, TIES, here / "out")[0] == 0
    before = (here / "out" / "model.safetensors").stat().st_mtime_ns
    code, said = merge(here, TIES, here / "out")
    assert (code, "there already" in said) == (0, True)
    assert (here / "out" / "model.safetensors").stat().st_mtime_ns == before


def test_plan_writes_nothing(here):
    code, said = merge(here, TIES, "--plan")
    assert (code, "nothing stands in the way" in said) == (0, True), said
    assert merge(here, TIES, here / "out", "--plan")[0] == 0
    assert not (here / "out").exists()


def test_layers_from_slices_load_with_as_many_layers(here):
    text = "slices:\n  - sources: [{model: models/a, layer_range: [0, 4]}]\n  - sources: [{model: models/b, layer_range: [1, 4]}]\n"
    code, said = merge(here, text + "merge_method: passthrough\n", here / "tall")
    assert code == 0, said
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(here / "tall", output_loading_info=True)
    assert (model.config.num_hidden_layers, not report["missing_keys"], not report["unexpected_keys"]) == (7, True, True)
    last, source = load_file(here / "tall" / "model.safetensors"), load_file(here / "models" / "b" / "model.safetensors")
    assert torch.equal(last["model.layers.6.mlp.up_proj.weight"], source["model.layers.3.mlp.up_proj.weight"])


def test_to_mergekit_writes_a_file_that_reads_as_the_same_merge(here):
    assert merge(here, TIES, "--to-mergekit", here / "theirs.yml")[0] == 0
    written = yaml.safe_load((here / "theirs.yml").read_text())
    assert written["base_model"] == str((here / "models" / "base").resolve())
    assert merge(here, TIES, here / "ours")[0] == 0
    code, said = lmfuse("merge", here / "theirs.yml", here / "again", "--cache", here / "cache")
    assert code == 0, said
    mine, yours = tensors_of(here / "ours"), tensors_of(here / "again")
    assert all(torch.equal(mine[name], yours[name]) for name in mine | yours)
    assert merge(here, TIES, "--to-mergekit", here / "theirs.yml")[0] == 0  # the same again
    (here / "theirs.yml").write_text("mine")
    code, said = merge(here, TIES, "--to-mergekit", here / "theirs.yml")
    assert (code, "exists and holds something else" in said) == (2, True)


def test_to_mergekit_writes_nothing_unless_the_plan_stands(here):
    poisoned = TIES.replace("density: 0.3", "density: 0.3}\noverrides: [{parameter: density, filter: nothing, value: 1}")
    assert merge(here, poisoned, here / "out", "--to-mergekit", here / "theirs.yml")[0] == 2
    assert not (here / "theirs.yml").exists()


@pytest.mark.parametrize("plan", [["--plan"], []])
def test_the_place_is_looked_at_before_anything_is_merged(here, monkeypatch, plan):
    (here / "taken").mkdir()
    (here / "taken" / "mine").write_text("x")
    code, said = merge(here, TIES, here / "taken", *plan)
    assert (code, "is not empty: it holds mine" in said) == (2, True), said
    (here / "out.partial").write_text("x")
    code, said = merge(here, TIES, here / "out", *plan)
    assert (code, "and is no folder" in said) == (2, True), said
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    code, said = merge(here, TIES, here / "small", *plan)
    assert (code, "small needs 0.00 GiB" in said) == (5, True), said
    assert merge(here, "models: [none]\nmethod: {name: linear}\n", "/", *plan) == merge(here, TIES, "/", *plan)  # before a model is


def test_paths_begin_at_the_recipes_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "models"))
    assert merge(here, TIES.replace("models/a", "~/a"), here / "out", "--plan")[0] == 0
    monkeypatch.chdir(here)
    (here / "recipes").mkdir()
    (here / "recipes" / "merge.yml").write_text(TIES)
    code, said = lmfuse("merge", here / "recipes" / "merge.yml", "--plan", "--cache", here / "cache", columns=200)
    assert (code, "models/a is in the current folder, but not beside the recipe" in said) == (2, True), said


def test_one_folder_is_one_model_however_it_is_spelt(here, monkeypatch):
    code, said = merge(here, TIES.replace("models/b,", "{model: ./models/../models/a, name: b},"), "--plan")
    assert (code, "a and b are one folder" in said) == (2, True), said
    monkeypatch.chdir(here / "models" / "a")
    code, said = merge(here, None, "linear", here / "out", "--model", ".", "--model", "../b")
    assert code == 0, said
    assert (here / "out" / "README.md").read_text().count("| a |") == 1
    code, said = merge(here, None, "linear", here / "other", "--model", ".", "--model", "../a")
    assert (code, "stands twice" in said) == (2, True), said
    code, said = merge(here, None, "task_arithmetic", here / "based", "--model", ".", "--model", "../b", "--base", "../../models/a")
    assert code == 0, said
    (here / "merge.yml").write_text("models: [., models/b]\nmethod: {name: linear}\n")
    code, said = lmfuse("merge", here / "merge.yml", "--plan", columns=200)
    assert (code, "'.' is no name" in said) == (2, True), said


def test_what_may_be_wrong_is_a_warning_and_fallbacks_are_sentences(here):
    shutil.rmtree(here / "models" / "b")
    shutil.copytree(here / "models" / "base", here / "models" / "b")
    code, said = merge(here, TIES.replace("ties, weights: [0.5, 0.25], density: 0.3", "model_stock"), here / "out")
    assert code == 0, said
    assert "warning: b is identical to the base base" in said
    assert re.search(r"note: \d+ units of tensors had a source that equals the base: its cosines count as 0 \(model_stock_no_angle\)", said)


LINEAR = "method: {name: linear}\n"


@pytest.mark.parametrize("text", ["- a\n", "", f"models: 3\n{LINEAR}", "models: [a]\nmethod: linear\n", f"models: [[a]]\n{LINEAR}"])
def test_errors_name_no_class_of_python(here, text):
    code, said = merge(here, text, here / "out")
    assert code == 2
    assert not re.search(
        r"NoneType|\b(dict|tuple|str)\b|[a-z][A-Z]\w+|instance", said.split("merge.yml", 1)[1].replace("docs/merge.md", "")
    ), said


def test_files_of_the_wanted_size(here):
    code, said = merge(here, TIES + "max_shard_gb: 0.0001\n", here / "out")
    assert code == 0, said
    assert len(list((here / "out").glob("model-*.safetensors"))) == 3
    code, said = merge(here, TIES + "max_shard_gb: 0.0001\n", "--to-mergekit", here / "theirs.yml")
    assert (code, "max_shard_gb cannot be written for mergekit" in said) == (2, True), said


def test_fallbacks_and_differences_are_told(here):
    shutil.copytree(here / "models" / "base", here / "models" / "copy")
    code, said = merge(here, "models: [models/copy, models/base]\nbase: base\nmethod: {name: varm}\n", here / "out")
    assert code == 0, said
    assert "38 units of tensors were the base's in all sources, which weigh the same then (varm_no_change)" in said
    assert "copy and base hold the same weights" in said


def test_licences_are_shown(here):
    (here / "models" / "a" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    (here / "models" / "b" / "README.md").write_text("---\nlicense: mit\n---\n")
    code, said = merge(here, TIES, here / "out")
    assert (code, "cc-by-nc-4.0" in said, "forbids commercial use" in said) == (0, True, True), said


def foreign(here: Path) -> None:
    (here / "out").mkdir()
    shutil.copy(here / "models" / "a" / "model.safetensors", here / "out")


@pytest.mark.parametrize(
    ("text", "spoil", "message"),
    [
        (TIES, lambda here: poison(float("nan"))(here / "models" / "a"), "model.layers.1.mlp.up_proj.weight"),
        (TIES, foreign, "out"),
        (TIES.replace("models/b,", "./models/c,"), None, "'./models/c' is neither a folder nor a hub name"),
        (
            TIES,
            lambda here: shard(here / "models" / "a") and (here / "models" / "a" / "model-00001-of-00002.safetensors").unlink(),
            "is missing",
        ),
        (TIES.replace("0.25]", "-0.5]") + "dtypo: 1\n", None, "unknown 'dtypo'; did you mean 'dtype'?"),
        (TIES.replace("base: base\n", ""), None, "no base model"),
        ("models: [models/a, models/b]\nmethod: {name: linear, weights: [1, -1]}\n", None, "sum to 0"),
        (MERGEKIT + "chat_template: chatml\n", None, "merge.yml: chat_template"),
        (MERGEKIT.replace("ties", "nuslerp"), None, "merge.yml: merge_method: 'nuslerp' is not supported"),
        ("models: &x [models/a]\nmethod: {name: linear}\n", None, "anchors and aliases are not accepted"),
        ("models: !!python/tuple [models/a]\nmethod: {name: linear}\n", None, "tags are not accepted"),
        ("- 7\n", None, "a recipe is a mapping"),
        (
            "slices: [{sources: [{model: models/a, layer_range: [0, 9]}]}]\nmerge_method: passthrough\n",
            None,
            "slices.0.sources.0: layers 0 to 9 of a, which has 4",
        ),
    ],
)
def test_errors_are_one_line_and_leave_nothing(here, text, spoil, message):
    if spoil:
        spoil(here)
    before = sorted(path.name for path in (here / "out").iterdir()) if (here / "out").exists() else None
    code, said = merge(here, text, here / "out")
    assert (code, message in said) == (2, True), said
    assert "\n" not in said.splitlines()[-1]
    assert (sorted(path.name for path in (here / "out").iterdir()) if (here / "out").exists() else None) == before


def test_a_folder_in_use_is_exit_3(here):
    with lock(here / "out.partial"):
        code, said = merge(here, TIES, here / "out")
    assert (code, "out" in said) == (3, True), said
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("RECIPE",), "no folder for the result"),
        (("nothing.yml", "OUT"), "no recipe at nothing.yml"),
        (("tis", "OUT", "--model", "A"), "did you mean 'ties'?"),
        (("linear", "OUT", "--model", "A", "--set", "weights"), "expected name=value"),
        (("linear", "OUT", "--model", "A", "--set", "wieghts=1"), "did you mean 'weights'?"),
        (("RECIPE", "OUT", "--model", "A"), "unknown 'RECIPE'"),
    ],
)
def test_wrong_arguments_are_exit_2(here, arguments, message):
    (here / "merge.yml").write_text(TIES)
    names = {"RECIPE": str(here / "merge.yml"), "OUT": str(here / "out"), "A": str(here / "models" / "a")}
    code, said = lmfuse("merge", *(names.get(each, each) for each in arguments), "--cache", here / "cache")
    assert (code, message.replace("RECIPE", names["RECIPE"]) in said) == (2, True), said
    assert not (here / "out").exists()


def test_a_merge_of_the_base_with_itself_is_the_base(here):
    settings = ("--set", "weights=1", "--model", here / "models" / "base")
    shutil.copytree(here / "models" / "base", here / "models" / "twin")
    assert merge(here, None, "linear", here / "out", *settings, "--model", here / "models" / "twin")[0] == 0
    mine, yours = tensors_of(here / "out"), tensors_of(here / "models" / "base")
    assert all(torch.equal(mine[name], yours[name]) for name in mine | yours)


def test_the_card_holds_the_recipe(here):
    edit_weights(here / "models" / "a", lambda tensors: tensors["model.norm.weight"].add_(1))
    assert merge(here, MERGEKIT, here / "out")[0] == 0
    card = (here / "out" / "README.md").read_text()
    assert "name: ties" in card
    assert str(here) not in card
    assert json.loads((here / "out" / "manifest.json").read_text())["provenance"]["models"][2]["label"] == "base"


DOCS = Path(__file__).resolve().parents[2] / "docs" / "merge.md"


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL))
def test_the_recipes_in_the_docs_load_and_survive_a_round_trip(block):
    recipe = parse_merge_recipe(load_yaml(block, "merge.md"), "merge.md")
    assert parse_merge_recipe(load_yaml(recipe.to_yaml(), "again"), "again") == recipe


def test_the_docs_name_every_method_and_parameter_that_is_read_of_mergekit():
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for name, translation in TRANSLATIONS.items():
        row = next(line for line in rows if f"`{name}`" in line.split("|")[1])
        told = row if "the same" not in row else row + next(line for line in rows if "`dare_ties`" in line)
        for parameter in translation.parameters:
            assert f"`{parameter.theirs}" in told or parameter.only, (name, parameter.theirs)
