import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from lmfuse.errors import BusyError, InputError
from lmfuse.pipeline import Pipeline
from tests import runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run, used by the tests that only look."""
    folder = tmp_path_factory.mktemp("run")
    path = runs.lay_out(folder, arms=["clm", "self", "fused", "best_single", "paper"], learning_rates=[1e-3, 3e-3])
    with Pipeline.open(path, folder / "out", folder / "cache") as pipeline:
        pipeline.run()
    return folder


def test_the_report_has_the_documented_shape(finished):
    report = json.loads((finished / "out" / "report" / "report.json").read_text())
    assert (report["schema"], report["metric"], report["domains"]) == (1, "bits_per_byte", ["x", "y"])
    assert set(report["arms"]) == {"target", "a", "b", "clm", "self", "fused", "best_single", "paper"}
    for values in report["arms"].values():
        assert values["macro"] == pytest.approx((values["x"] + values["y"]) / 2)
    assert {"a", "b", "domain", "mean", "ci95", "n"} == set(report["comparisons"][0])
    assert ("fused", "clm", "macro") in {(c["a"], c["b"], c["domain"]) for c in report["comparisons"]}
    assert set(report["sources"]) == {"a", "b"}
    for source in report["sources"].values():
        assert source["coverage"] > 0.99
        assert 0 <= source["lost_mass"] < 1
    assert sum(source["win_rate"] for source in report["sources"].values()) > 0.99
    assert report["run"]["learning_rate"] in (1e-3, 3e-3)
    assert report["counters"]["tokens"] > 1000
    assert str(finished) not in json.dumps(report), "a report tells nothing of the machine's folders"


def test_the_model_loads_in_transformers_and_has_a_card(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "out" / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "out" / "model")
    assert model(**tokenizer("the quick brown", return_tensors="pt")).logits.isfinite().all()
    card = (finished / "out" / "model" / "README.md").read_text()
    assert "Licences of what it was made from: unknown" in card
    assert "name: tiny" in card


def test_running_again_computes_nothing_and_changes_nothing(finished, monkeypatch):
    before = (finished / "out" / "report" / "report.json").read_bytes()
    monkeypatch.setattr("lmfuse.stages.load_model", lambda *_: pytest.fail("a model was loaded"))
    with Pipeline.open(finished / "recipe.yaml", finished / "out", finished / "cache") as pipeline:
        pipeline.run()
    assert (finished / "out" / "report" / "report.json").read_bytes() == before


def test_a_new_arm_reuses_rows_and_models(finished, tmp_path, monkeypatch):
    path = runs.write_recipe(finished, name="more", arms=["clm", "fused", {"name": "low", "loss": {"name": "kl", "clm_weight": 0.1}}], result="low",
                             learning_rates=[1e-3, 3e-3])  # fmt: skip
    trained = []
    from lmfuse.stages import Stages

    original = Stages._train
    monkeypatch.setattr(Stages, "_train", lambda self, job, *rest: (trained.append(job.arm.name), original(self, job, *rest))[1])
    monkeypatch.setattr("lmfuse.stages.collect", lambda *_, **__: pytest.fail("rows were collected again"))
    with Pipeline.open(path, tmp_path / "out", finished / "cache") as pipeline:
        pipeline.run()
    runs.write_recipe(finished, arms=["clm", "self", "fused", "best_single", "paper"], learning_rates=[1e-3, 3e-3])
    assert trained == ["low"]


def test_two_processes_do_not_share_a_run(finished):
    with Pipeline.open(finished / "recipe.yaml", finished / "out", finished / "cache"), pytest.raises(BusyError):
        with Pipeline.open(finished / "recipe.yaml", finished / "out", finished / "cache"):
            pass


def test_a_source_that_is_the_target_teaches_nothing_new(tmp_path):
    """Self-fusion: with the whole weight on the fusion loss, full rows and no decay, the loss is 0 and no weight moves."""
    runs.lay_out(tmp_path)
    path = runs.write_recipe(
        tmp_path, arms=["clm", "self"], result="self", loss={"name": "kl", "clm_weight": 0.0}, rows={"k": 409, "precision": "float32"},
        train=runs.recipe()["train"] | {"weight_decay": 0.0, "epsilon": 1e-3},
    )  # fmt: skip
    with Pipeline.open(path, tmp_path / "out", tmp_path / "cache") as pipeline:
        pipeline.run()
        arm = pipeline.arms["self"]
        model = pipeline.stages.trained(pipeline.job(arm, 0))
    assert max(line["fusion_nats"] for line in model.curve) < 1e-6
    moved, still = load_file(model.folder / "model.safetensors"), load_file(tmp_path / "models" / "target" / "model.safetensors")
    for name, tensor in still.items():
        np.testing.assert_allclose(moved[name], tensor, atol=2e-5)


def test_sources_that_are_no_better_are_named_and_stop_an_automatic_run(tmp_path, capsys):
    path = runs.lay_out(tmp_path, sources_used="auto", fuse={"name": "min_ce"}, train=runs.recipe()["train"] | {"learning_rate": 1e-2})
    with Pipeline.open(path, tmp_path / "out", tmp_path / "cache") as pipeline, pytest.raises(InputError, match="there is nothing to fuse"):
        pipeline.run()
    assert "source a is nowhere better than plain training" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model").exists()


def test_a_single_stage_can_be_run(tmp_path):
    path = runs.lay_out(tmp_path)
    with Pipeline.open(path, tmp_path / "out", tmp_path / "cache") as pipeline:
        pipeline.collect_only("a")
        assert len(list((tmp_path / "cache" / "rows").glob("*/manifest.json"))) == 1
        pipeline.train_only("clm")
        assert len(list((tmp_path / "cache" / "models").glob("*/manifest.json"))) == 1
        with pytest.raises(InputError, match="did you mean 'fused'"):
            pipeline.train_only("fussed")
        with pytest.raises(InputError, match="source: unknown 'c'"):
            pipeline.collect_only("c")


def test_a_run_over_other_text_replaces_the_model(tmp_path):
    path = runs.lay_out(tmp_path, arms=["clm"], result="clm")
    with Pipeline.open(path, tmp_path / "out", tmp_path / "cache") as pipeline:
        pipeline.run()
    before = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    lines = (tmp_path / "x-train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "x-train.jsonl").write_text("".join(lines[:-4]))
    with Pipeline.open(path, tmp_path / "out", tmp_path / "cache") as pipeline:
        pipeline.run()
        trained = pipeline.stages.trained(pipeline.job(pipeline.arms["clm"], 0))
    after = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    assert after == (trained.folder / "model.safetensors").read_bytes()
    assert after != before


def test_training_is_watched_on_held_out_text_and_by_a_tracker(tmp_path):
    pytest.importorskip("tensorboard")
    path = runs.lay_out(
        tmp_path, arms=["clm"], result="clm", train=runs.recipe()["train"] | {"evaluate_steps": 2, "tracker": "tensorboard"}
    )
    with Pipeline.open(path, tmp_path / "out", tmp_path / "cache") as pipeline:
        pipeline.run()
        trained = pipeline.stages.trained(pipeline.job(pipeline.arms["clm"], 0))
    evaluations = json.loads((trained.folder / "training.json").read_text())["evaluations"]
    assert [line["step"] for line in evaluations][:2] == [2, 4]
    assert set(evaluations[0]["values"]) == {"x", "y"}
    assert list((tmp_path / "out" / "tracker").rglob("*tfevents*"))


def test_losses_that_want_more_than_rows_are_given_it(finished):
    """Chunks of both tokenizations, and rows in a source's own vocabulary: trained in a run, each to a model of its own."""

    def arm(name, loss, align):
        fuse = {"name": "min_ce", "judge": "training_text"}
        return {"name": name, "teacher": "a", "align": align, "fuse": fuse, "loss": {"name": loss, "clm_weight": 0.2}}

    unmapped = [arm(name, loss, {"name": "join", "map": "none"}) for name, loss in (("shape", "uld"), ("projected", "projected_kl"))]
    arms = ["clm", arm("chunks", "chunk_likelihood", {"name": "byte_law"}), *unmapped]
    path = runs.write_recipe(finished, name="losses", arms=arms, result="projected")
    with Pipeline.open(path, finished / "losses", finished / "cache") as pipeline:
        pipeline.run()
    report = json.loads((finished / "losses" / "report" / "report.json").read_text())
    values = [report["arms"][name]["macro"] for name in ("clm", "chunks", "shape", "projected")]
    assert np.isfinite(values).all()
    assert len(set(values)) == 4
