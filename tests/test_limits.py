"""Limits of a recipe: what stops a run, when, and what is said."""

import json

import pytest

from lmfuse.align.byte_law import ByteLaw
from lmfuse.errors import InputError, LimitError, RecipeError
from lmfuse.inputs import Inputs
from lmfuse.limits import Fit, Limits, refuse_lossy, refuse_misfit
from lmfuse.pipeline import Pipeline
from lmfuse.plan import make_plan, show
from lmfuse.recipe import load_recipe, parse_recipe
from tests import runs

FIT = Fit("a", coverage=0.8, masked=0.02, shared_vocabulary=0.3, documents=512, bytes=10**5)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"min_coverage": 0.9}, "source a: by byte_law only 80.0% of the target's tokens get a row of it on 512 training windows; limits.min_coverage is 90"),
        ({"max_masked": 0.01}, "2.0% of the bytes on 512 training windows; limits.max_masked is 1.0%"),
        ({"min_shared_vocabulary": 0.5}, "it spells 30.0% of the target's vocabulary the same; limits.min_shared_vocabulary is 50.0%"),
    ],
)  # fmt: skip
def test_an_error_names_source_value_limit_and_remedy(limits, words):
    with pytest.raises(LimitError) as error:
        refuse_misfit(FIT, ByteLaw(), Limits(**limits))
    assert words in str(error.value)
    assert error.value.hint
    assert error.value.exit_code == 2


def test_a_value_at_its_limit_passes():
    refuse_misfit(FIT, ByteLaw(), Limits(min_coverage=0.8, max_masked=0.02, min_shared_vocabulary=0.3))
    refuse_lossy("a", 0.1, 0.2, Limits(max_lost_mass=0.1, max_one_hot=0.2))


@pytest.mark.parametrize("values", [(0.11, 0.0), (0.0, 0.21)])
def test_rows_beyond_a_limit_are_refused(values):
    with pytest.raises(LimitError, match=r"limits\.max_"):
        refuse_lossy("a", *values, Limits(max_lost_mass=0.1, max_one_hot=0.2))


def test_null_is_no_limit():
    none = Limits(min_coverage=None, max_masked=None)
    refuse_misfit(Fit("a", 0.0, 1.0, 0.0, 1, 1), ByteLaw(), none)
    refuse_lossy("a", 1.0, 1.0, none)
    assert not none.need_rows
    assert Limits(max_one_hot=0.5).need_rows


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"min_coverage": 50}, "limits.min_coverage: Input should be less than or equal to 1"),
        ({"min_coverag": 0.5}, "limits.min_coverag: unknown 'min_coverag'; did you mean 'min_coverage'"),
    ],
)
def test_a_wrong_limit_is_a_line(limits, words):
    with pytest.raises(RecipeError) as error:
        parse_recipe(runs.recipe(limits=limits))
    assert words in str(error.value)


def planned(folder, **changes):
    path = runs.lay_out(folder, **changes)
    return make_plan(Inputs(load_recipe(path), folder, folder / "cache"))


def test_the_plan_says_how_each_source_fits(tmp_path, capsys):
    plan = planned(tmp_path)
    assert [found.source for found in plan.fits] == ["a", "b"]
    for found in plan.fits:
        assert 0.99 < found.coverage <= 1
        assert found.masked == 0
        assert found.documents > 10
    assert plan.to_json()["fits"][0]["coverage"] == plan.fits[0].coverage
    json.dumps(plan.to_json())
    show(plan)
    shown = " ".join(capsys.readouterr().err.split())
    assert "a: 100.0% of the target's tokens get a row of it" in shown


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limits": {"min_shared_vocabulary": 0.99}}, "limits.min_shared_vocabulary is 99.0%"),
        ({"limits": {"min_coverage": 1.0}, "align": {"name": "join"}}, "by join only"),
        ({"limits": {"min_coverage": 1.0}, "align": {"name": "dtw", "accept": "equal"}}, "by dtw only"),
    ],
)
def test_a_plan_beyond_a_limit_is_refused_before_any_cost(tmp_path, changes, words):
    path = runs.lay_out(tmp_path, **changes)
    with pytest.raises(LimitError) as error:
        show(make_plan(Inputs(load_recipe(path), tmp_path, tmp_path / "cache")))
    assert words in str(error.value)
    with Pipeline.open(path, tmp_path / "out", tmp_path / "cache") as pipeline, pytest.raises(InputError, match=r"limits\."):
        pipeline.run()
    assert not (tmp_path / "cache" / "rows").exists()
    assert not (tmp_path / "cache" / "models").exists()
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["fits"][0]["source"] == "a"


def test_rows_beyond_a_limit_stop_a_run_before_it_trains(tmp_path, capsys):
    path = runs.lay_out(tmp_path, align={"name": "join", "map": "exact"}, limits={"max_lost_mass": 0.0})
    with Pipeline.open(path, tmp_path / "out", tmp_path / "cache") as pipeline, pytest.raises(LimitError, match=r"max_lost_mass is 0\.00%"):
        pipeline.run()
    assert list((tmp_path / "cache" / "rows").glob("*/manifest.json")), "rows are kept"
    assert not list((tmp_path / "cache").glob("models/*"))
    assert "lost mass" in capsys.readouterr().err


def test_a_single_arm_is_judged_too_and_an_arm_of_another_alignment_is_not(tmp_path):
    path = runs.lay_out(tmp_path, limits={"max_one_hot": 0.0}, arms=["clm", "fused", "paper"])
    with Pipeline.open(path, tmp_path / "out", tmp_path / "cache") as pipeline:
        pipeline.train_only("paper")
        assert not pipeline.judged, "the limits are about the recipe's own align"
        pipeline.train_only("fused")
        assert pipeline.judged == {"a", "b"}
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    judged = [event for event in events if "lost_mass" in event]
    assert [(event["source"], event["one_hot"]) for event in judged] == [("a", 0.0), ("b", 0.0)]
