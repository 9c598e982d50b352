"""Training mode, inference mode and the ways from one to the other, through whole runs."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lmfuse import answer_stages, asking
from lmfuse.errors import InputError, LmfuseError
from lmfuse.inputs import Inputs
from lmfuse.pipeline import Pipeline
from lmfuse.plan import make_plan
from lmfuse.recipe import load_recipe
from lmfuse.store import RowStore
from lmfuse.types import Segment
from tests import chat_runs, runs


def run(folder, out="out", **changes):
    path = chat_runs.write_recipe(folder, **changes)
    with Pipeline.open(path, folder / out, folder / "cache") as pipeline:
        pipeline.run()
    return json.loads((folder / out / "report" / "report.json").read_text())


def events(folder, out="out"):
    return [json.loads(line) for line in (folder / out / "events.jsonl").read_text().splitlines()]


def manifests(folder, kind):
    found = (folder / "cache" / kind).glob("*/manifest.json")
    return {path.parent.name: json.loads(path.read_text()) for path in found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profuser")
    chat_runs.lay_out(folder)
    return folder, run(folder)


def opened(folder, out="again", **changes):
    return Pipeline.open(chat_runs.write_recipe(folder, **changes), folder / out, folder / "cache")


def test_every_arm_is_in_the_report_and_each_is_another_model(finished):
    _, report = finished
    assert list(report["arms"]) == ["target", "a", "b", *chat_runs.ARMS]
    assert len({values["macro"] for values in report["arms"].values()}) == len(report["arms"])
    assert {(c["a"], c["b"]) for c in report["comparisons"]} >= {("progressive", arm) for arm in chat_runs.ARMS[:-1]}


def test_the_report_says_who_wins_in_which_mode(finished):
    folder, report = finished
    answers = report["run"]["answers"]
    assert answers["questions"] == 13  # of the 14 conversations one is held out
    for key in ("win_rate_truth", "win_rate_answers"):
        assert sum(source[key] for source in answers["by_source"].values()) == pytest.approx(1)
    assert sum(map(sum, answers["winners"])) == 13
    assert answers["same_winner"] == pytest.approx(np.trace(answers["winners"]) / 13)
    assert report["counters"]["answers_read"] == 13
    assert report["counters"]["windows_without_question"] == 2
    page = (folder / "out" / "report" / "index.html").read_text()
    assert "<h2>Answers</h2>" in page
    assert "verifier - likelihood" in page


def test_every_model_answers_the_questions_of_a_task(finished):
    folder, report = finished
    (task,) = report["run"]["tasks"]
    assert list(task["accuracy"]) == list(report["arms"])
    assert (task["domain"], task["check"], task["questions"]) == ("sums", "final_number", 3)
    assert {(c["a"], c["b"]) for c in task["comparisons"]} == {(c["a"], c["b"]) for c in report["comparisons"]}
    assert "<h2>Right answers: sums</h2>" in (folder / "out" / "report" / "index.html").read_text()


def test_training_mode_wins_are_those_of_the_rows(finished):
    folder, report = finished
    with opened(folder) as pipeline:
        job = pipeline.job(pipeline.arms["progressive"], 0)
        stores = [pipeline.stages.rows(label) for label in job.teachers]
        windows = [w for w in pipeline.inputs.corpus.splits["train"] if w.is_conversation]
        best = [job.teachers[int(np.argmin([store[window.id].nats_per_byte for store in stores]))] for window in windows]
    assert {label: best.count(label) / 13 for label in job.teachers} == {
        label: source["win_rate_truth"] for label, source in report["run"]["answers"]["by_source"].items()
    }


def test_the_elected_answers_are_what_the_winners_said_and_only_they_have_rows_over_them(finished):
    folder, _ = finished
    with opened(folder) as pipeline:
        labels = ("target", "a", "b")
        answering = pipeline.stages.answering
        election, elected = answering.election(labels), answering.elected(labels)
        teacher = pipeline.stages.author_teacher(pipeline.job(pipeline.arms["progressive"], 0))
        windows = pipeline.inputs.corpus.splits["train"]
        for window, document in zip(windows, elected.documents, strict=True):
            if document is None:
                assert not window.is_conversation
                continue
            label, text = election.winners[window.id]
            assert document.segments[-1] == Segment(text, "assistant")
            assert text == election.replies[label][window.id].text
            author = teacher.sources[teacher.authors[document.id]]
            assert author.name == label
            assert document.id in author.store
            assert all(document.id not in other.store for other in teacher.sources if other is not author)
            encoding = pipeline.inputs.tokenizer("target").encode(document)
            fused = teacher(document, encoding)
            alone = teacher.align(author.store[document.id], encoding, author.pair)
            assert (fused.taught == alone.taught).all()
            assert set(fused.winner[fused.taught]) == {teacher.authors[document.id]}
            np.testing.assert_array_equal(fused.topk.log_probs[fused.taught], alone.topk.log_probs[fused.taught])
    stores = [RowStore.open(path.parent) for path in (folder / "cache" / "rows").glob("*/manifest.json")]
    assert sorted(len(store) for store in stores)[-3:] == [15, 15, 15]
    assert sum(sorted(len(store) for store in stores)[:-3]) == 13


def test_each_lesson_begins_with_the_model_of_the_one_before_unrounded_and_all_arms_read_as_many_samples(finished):
    folder, report = finished
    models = manifests(folder, "models")
    by_arm = {}
    for key, manifest in models.items():
        by_arm.setdefault(manifest["provenance"]["arm"], {})[key] = manifest["provenance"]
    assert {arm: len(made) for arm, made in by_arm.items()} == dict.fromkeys(chat_runs.ARMS, 1) | {"reversed": 2, "progressive": 2}
    for arm in ("reversed", "progressive"):
        last = next(made for made in by_arm[arm].values() if made["before"])
        assert by_arm[arm][last["before"]]["before"] is None
    curves = report["run"]["curves"]
    assert {arm: curve[-1]["step"] for arm, curve in curves.items()} == dict.fromkeys(chat_runs.ARMS, 8)  # 15 samples, 2 a step
    steps = [line["step"] for line in curves["progressive"]]
    assert steps == sorted(set(steps))


def test_of_a_bfloat16_target_only_the_last_lesson_is_rounded(tmp_path):
    chat_runs.lay_out(tmp_path)
    with opened(tmp_path, target={"model": "models/target", "dtype": "bfloat16"}) as pipeline:
        pipeline.train_only("progressive")
    types = {
        key: next(iter(load_file(tmp_path / "cache" / "models" / key / "model.safetensors").values())).dtype
        for key, manifest in manifests(tmp_path, "models").items() if manifest["provenance"]["arm"] == "progressive"
    }  # fmt: skip
    last = next(key for key, made in manifests(tmp_path, "models").items() if made["provenance"].get("before"))
    assert types.pop(last) == torch.bfloat16
    assert set(types.values()) == {torch.float32}


def test_what_an_arm_does_not_read_is_no_part_of_its_model(finished):
    """Another vote elects other answers: training mode and the first lesson of `reversed` are found in the cache."""
    folder, _ = finished
    before = manifests(folder, "models").keys()
    answers = chat_runs.recipe()["answers"] | {"judges": [{"name": "likelihood", "author": "left_out"}]}
    run(folder, "other", answers=answers)
    assert not [event for event in events(folder, "other") if event["stage"] == "answered" and event["model"] in ("target", "a", "b")]
    new = {key: made["provenance"]["arm"] for key, made in manifests(folder, "models").items() if key not in before}
    assert sorted(new.values()) == sorted(["inference_mode", "simultaneous", "reversed", "progressive", "progressive"])
    assert len([event for event in events(folder, "other") if event["stage"] == "elected"]) == 1


def test_a_second_run_asks_and_judges_nothing_again(finished, monkeypatch):
    folder, report = finished
    monkeypatch.setattr(asking, "answer_prompts", None)
    monkeypatch.setattr(answer_stages, "judge_answers", None)
    assert run(folder, "second") == report


def test_a_continued_optimizer_and_a_ramp_are_one_training_each(finished):
    folder, _ = finished
    arms = [{"name": "one", "include_target": True, "optimizer": "continued", "lessons": [{"truth": 0, "answers": 1, "share": 0.5},
             {"truth": 1, "answers": 0.1, "share": 0.5}]}, "progressive_smooth", "progressive"]  # fmt: skip
    report = run(folder, "ramps", arms=arms, result="one")
    made = [manifest["provenance"]["arm"] for manifest in manifests(folder, "models").values()]
    assert (made.count("one"), made.count("progressive_smooth")) == (1, 1)
    assert len({report["arms"][name]["macro"] for name in ("one", "progressive_smooth", "progressive")}) == 3


def test_answers_that_were_cut_are_no_candidates_unless_the_recipe_says_so(tmp_path):
    chat_runs.lay_out(tmp_path)
    answers = chat_runs.recipe()["answers"] | {"cut": "leave_out", "max_new_tokens": 1}
    with opened(tmp_path, answers=answers) as pipeline:
        with pytest.raises(InputError, match=r"not one elected answer can be read \(.*questions without winner 13"):
            pipeline.stages.answering.elected(("target", "a"))
        counters = [made["counters"] for made in manifests(tmp_path, "answers").values()]
    assert all((made["answers"], made["answers_cut"]) == (13, 13) for made in counters)


def test_a_prompt_that_a_model_cannot_read_leaves_it_without_a_candidate(tmp_path):
    chat_runs.lay_out(tmp_path)
    with opened(tmp_path, answers=chat_runs.recipe()["answers"] | {"max_new_tokens": 215}) as pipeline:
        replies = pipeline.stages.answering.answers("b")
    counters = next(iter(manifests(tmp_path, "answers").values()))["counters"]
    left_out = [reply for reply in replies.values() if reply.problem]
    assert 0 < len(left_out) == counters["prompts_left_out"]
    assert "exceed the context of 256" in left_out[0].problem
    assert counters["answers"] + len(left_out) == 13


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": chat_runs.recipe()["text"] | {"train": [{"domain": "sums", "path": "plain.jsonl"}]}}, "no conversation in the training text"),
        ({"answers": {"judges": [{"name": "reward_model", "model": "models/none"}]}}, "models/none"),
        ({"answers": {"judges": [{"name": "likelihood", "author": "left_out", "sources": ["a"]}]}}, "without its author nobody judges"),
        ({"train": chat_runs.recipe()["train"] | {"epochs": 0.05}}, "leave one of 2 lessons without any sample"),
    ],
)  # fmt: skip
def test_the_plan_stops_what_could_not_be_judged_before_anything_costs(tmp_path, changes, message):
    path = chat_runs.lay_out(tmp_path, **changes)
    problems = make_plan(Inputs(load_recipe(path), tmp_path, tmp_path / "cache")).problems
    assert len(problems) >= 1
    assert all(isinstance(problem, LmfuseError) for problem in problems)
    assert message in " ".join(map(str, problems))
    assert not (tmp_path / "cache" / "answers").exists()


def test_the_plan_counts_answers_and_the_models_between_lessons(tmp_path):
    chat_runs.lay_out(tmp_path)
    recipes = [load_recipe(chat_runs.write_recipe(tmp_path, arms=[arm], result=arm)) for arm in ("training_mode", "progressive")]
    plain, taught = (make_plan(Inputs(recipe, tmp_path, tmp_path)) for recipe in recipes)
    assert (plain.problems, taught.problems) == ((), ())
    between = taught.models[0].parameters * 4
    assert taught.disk_needed_bytes - plain.disk_needed_bytes > between


def test_one_arm_can_be_trained_alone(finished):
    folder, _ = finished
    path = chat_runs.write_recipe(folder)
    code, said = runs.lmfuse("train", path, "--arm", "inference_mode", "--out", folder / "out", "--cache", folder / "cache")
    assert code == 0, said
