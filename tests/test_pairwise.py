"""Pairwise fusion with a pivot, and the merges of its targets, through whole runs."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lmfuse.errors import RecipeError
from lmfuse.merge.varm import Varm
from lmfuse.merge.whole import merge_tensors
from lmfuse.pipeline import Pipeline
from tests import runs

CHANGES = {
    "arms": ["self", "pairwise", "all_at_once"], "merges": ["linear", "varm", {"name": "two", "method": {"name": "sce"}, "of": ["clm", "pair-a"]}],
    "result": "varm", "sources_used": "all", "called": {"target": "pivot", "clm": "sft"},
    "fuse": {"name": "min_ce", "judge": "training_text", "no_teacher": False},
}  # fmt: skip


def text(folder, **more):
    """The text of a run's recipe, cut by the target's tokens alone."""
    runs.write_text(folder)
    return {**runs.recipe()["text"], "windows_by": "target", **more}


def run(folder, out, **changes):
    path = runs.write_recipe(folder, **{**CHANGES, "text": text(folder), **changes})
    with Pipeline.open(path, folder / out, folder / "cache") as pipeline:
        pipeline.run()
    return json.loads((folder / out / "report" / "report.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with one source, then one with two, over one cache; which models were read and trained in the second."""
    folder = tmp_path_factory.mktemp("pairs")
    runs.lay_out(folder)
    sources = runs.recipe()["sources"]
    merges = CHANGES["merges"][2:]
    run(folder, "first", sources=sources[:1], merges=merges, result="two")
    before = {path.name for path in (folder / "cache").glob("*/*")}
    report = run(folder, "second")
    events = [json.loads(line) for line in (folder / "second" / "events.jsonl").read_text().splitlines()]
    return folder, report, before, events


def test_the_report_has_an_arm_per_pair_and_merge_under_the_names_that_the_recipe_gives(finished):
    _, report, _, _ = finished
    assert list(report["arms"]) == ["pivot", "a", "b", "sft", "self", "pair-a", "pair-b", "all_at_once", "linear", "varm", "two"]
    assert report["run"]["controls"] == ["sft", "self", "pivot"]
    merges = report["run"]["merges"]
    assert {name: merge["of"] for name, merge in merges.items()} == {
        "linear": ["pair-a", "pair-b"],
        "varm": ["pair-a", "pair-b"],
        "two": ["sft", "pair-a"],
    }
    assert set(merges["varm"]["distances"]) == {"pair-a", "pair-b"}
    compared = {(c["a"], c["b"]) for c in report["comparisons"]}
    assert {
        ("varm", "sft"),
        ("varm", "self"),
        ("varm", "pivot"),
        ("varm", "linear"),
        ("varm", "a"),
        ("pair-a", "sft"),
        ("linear", "sft"),
    } <= compared
    assert set(report["sources"]) == {"pivot in pair-a", "a in pair-a", "pivot in pair-b", "b in pair-b"}
    for pair in ("pair-a", "pair-b"):
        assert sum(source["win_rate"] for name, source in report["sources"].items() if name.endswith(pair)) == pytest.approx(1, abs=0.02)


def test_a_source_that_is_added_later_trains_its_own_pair_and_reuses_the_rest(finished):
    folder, _, before, events = finished
    assert [event["model"] for event in events if event["stage"] == "collected"] == ["b"], "the pivot's and a's rows were there"
    trained = {event["arm"] for event in events if event["stage"] == "train"}
    assert trained == {"pair-b", "all_at_once"}
    assert before <= {path.name for path in (folder / "cache").glob("*/*")}
    assert [event["name"] for event in events if event["stage"] == "merged"] == ["linear", "varm"]


def test_the_result_is_the_merge_of_the_pairs_with_the_pivot_as_base(finished):
    folder, _, _, _ = finished
    models = {
        path.parent.name: json.loads(path.read_text())["provenance"] for path in (folder / "cache" / "models").glob("*/manifest.json")
    }
    pairs = [next(key for key, made in models.items() if made.get("arm") == name) for name in ("pair-a", "pair-b")]
    tensors = [load_file(folder / "cache" / "models" / key / "model.safetensors") for key in pairs]
    base = load_file(folder / "models" / "target" / "model.safetensors")
    result = load_file(folder / "second" / "model" / "model.safetensors")
    assert result.keys() == base.keys()
    for name, merged in result.items():
        assert torch.equal(merged, merge_tensors(Varm(), [each[name] for each in tensors], base[name], name)), name
    assert any(not torch.equal(merged, base[name]) for name, merged in result.items())


def test_the_card_and_the_page_name_what_was_merged(finished):
    folder, _, _, _ = finished
    page = (folder / "second" / "report" / "index.html").read_text()
    assert "varm is merged in weight space from pair-a, pair-b." in page
    assert "| varm |" in (folder / "second" / "model" / "README.md").read_text()


def test_one_merge_can_be_made_alone(finished, capsys):
    folder, _, _, _ = finished
    path = runs.write_recipe(folder, **{**CHANGES, "text": text(folder)})
    code, said = runs.lmfuse("train", path, "--arm", "linear", "--out", folder / "second", "--cache", folder / "cache")
    assert code == 0
    code, said = runs.lmfuse("train", path, "--arm", "linea", "--out", folder / "second", "--cache", folder / "cache")
    assert code == 2
    assert "did you mean 'linear'" in said


def test_a_merge_without_anything_to_merge_is_refused_before_anything_is_read(tmp_path):
    path = runs.write_recipe(tmp_path, arms=["clm"], merges=["linear"], result="clm")
    with pytest.raises(RecipeError, match="nothing to merge"):
        Pipeline.open(path, tmp_path / "out").__enter__()


def test_a_merge_carries_the_template_that_its_parts_were_trained_with(tmp_path):
    runs.lay_out(tmp_path)
    for name, lines in (("train", 24), ("eval", 6)):
        talks = [
            {"messages": [{"role": "user", "content": f"{name} {n}?"}, {"role": "assistant", "content": f"Anna has {n} apples."}]}
            for n in range(lines)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    talks = {
        "window_tokens": 200, "chat_template": "openchat", "train": [{"domain": "x", "path": "train.jsonl"}], "max_overlap": 1.0,
        "evaluation": [{"domain": "x", "path": "eval.jsonl"}],
    }  # fmt: skip
    run(tmp_path, "out", text=talks, arms=["pairwise"], merges=["linear", "varm"], result="varm")
    models = tmp_path / "cache" / "models"
    merged = [path for path in models.iterdir() if path.is_dir() and "merge" in json.loads((path / "manifest.json").read_text())["kind"]]
    templates = {(path / "chat_template.jinja").read_text() for path in (*merged, tmp_path / "out" / "model")}
    assert len(merged) == 2
    assert len(templates) == 1
    assert "GPT4 Correct" in templates.pop()


def test_a_bfloat16_target_over_float32_weights_is_the_base_that_training_began_with(tmp_path):
    runs.lay_out(tmp_path)
    target = {"model": "models/target", "dtype": "bfloat16"}
    run(tmp_path, "out", target=target, arms=["pairwise"], merges=["task_arithmetic"], result="task_arithmetic")
    result = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in result.values()} == {torch.bfloat16}
    folders = [folder for folder in (tmp_path / "cache" / "models").iterdir() if folder.is_dir()]
    base = load_file(tmp_path / "models" / "target" / "model.safetensors")
    as_trained = {name: tensor.to(torch.bfloat16) for name, tensor in base.items()}
    assert any(
        all(torch.equal(load_file(folder / "model.safetensors")[name], tensor) for name, tensor in as_trained.items()) for folder in folders
    )
