from __future__ import annotations

from pathlib import Path

import pytest

from lmfuse.arms import MERGES, Arm, MergedArm, resolve_arms, resolve_merges
from lmfuse.errors import RecipeError
from lmfuse.fuse.min_ce import MinCE
from lmfuse.fuse.uniform import Uniform
from lmfuse.merge.sce import Sce
from lmfuse.recipe import load_recipe, parse_recipe
from tests.runs import recipe

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def test_pairwise_is_one_arm_per_source_beside_the_target_with_the_recipes_methods():
    arms = resolve_arms(["pairwise", "all_at_once"], ["qwen", "gemma"], {"fuse": Uniform()})
    assert [(arm.name, arm.teacher, arm.include_target) for arm in arms] == [
        ("clm", "none", False), ("pair-qwen", "qwen", True), ("pair-gemma", "gemma", True), ("all_at_once", "sources", True),
    ]  # fmt: skip
    assert {arm.fuse for arm in arms[1:]} == {Uniform()}


def test_min_ce_in_pairs_judges_each_text_by_itself_as_published():
    (_, pair) = resolve_arms(["pairwise"], ["a"], {"fuse": MinCE(unit="token")})
    assert pair.fuse == MinCE(unit="token", judge="training_text", no_teacher=False)
    (_, fused) = resolve_arms(["fused"], ["a"], {"fuse": MinCE()})
    assert fused.fuse == MinCE()


def test_plain_training_may_be_written_out():
    (plain, _) = resolve_arms([Arm(name="clm", teacher="none", learning_rate=0.5), "self"], ["a"], {})
    assert plain.learning_rate == 0.5


def test_plain_training_takes_part_once_whatever_the_recipe_says():
    assert [arm.name for arm in resolve_arms(["self", "clm"], ["a"], {})] == ["clm", "self"]


def test_merges_are_words_or_written_out_and_merge_the_pairs_unless_they_say_what():
    arms = resolve_arms(["self", "pairwise"], ["a", "b"], {})
    merges = resolve_merges(["linear", MergedArm(name="best", method=Sce(tau=0.5), of=("self", "pair-b"))], arms, ["a", "b"])
    assert [(merge.name, merge.method.name, merge.of) for merge in merges] == [
        ("linear", "linear", ("pair-a", "pair-b")),
        ("best", "sce", ("self", "pair-b")),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"merges": ["linear"]}, "merges.linear: nothing to merge; add `pairwise` to arms"),
        ({"arms": ["pairwise"], "merges": ["liner"]}, "unknown 'liner'; did you mean 'linear'?"),
        ({"arms": ["pairwise"], "merges": [{"name": "m", "method": {"name": "linear"}, "of": ["pair-c"]}]}, "merges.m.of: unknown 'pair-c'"),
        ({"arms": ["pairwise"], "merges": [{"name": "m", "method": {"name": "slerp"}, "of": ["pair-a"]}]}, "merges.m: slerp: 1 source, expected 2"),
        ({"arms": ["pairwise"], "merges": [{"name": "m", "method": {"name": "sce", "tua": 1}}]}, "did you mean 'tau'?"),
        ({"arms": ["pairwise"], "merges": ["varm", "varm"]}, "two arms have the same name"),
        ({"arms": ["pairwise"], "merges": [{"name": "a", "method": {"name": "linear"}}]}, "'a' names both an arm and a model"),
        ({"called": {"target": "a"}}, "'a' means something else here"),
        ({"called": {"clm": "self"}}, "two arms have the same name"),
        ({"called": {"self": "x"}}, "called.self"),
        ({"result": "sce"}, "result: unknown 'sce'"),
        ({"arms": ["pairwise"], "merges": [{"name": "m", "method": {"name": "linear"}, "of": ["clm", "clm"]}]}, "merges.m.of: clm stands twice"),
        ({"arms": ["pairwise"], "merges": [{"name": "m", "method": {"name": "linear", "weights": [1, 1, 1]}}]}, "merges.m: "),
        ({"sources": [{"model": "models/a"}], "arms": ["pairwise", "all_at_once"],
          "merges": [{"name": "m", "method": {"name": "linear"}, "of": ["pair-a", "all_at_once"]}]}, "pair-a and all_at_once are the same training"),
        ({"sources": [{"model": "models/a", "name": "self"}]}, "'self' means something else here"),
        ({"called": {"clm": "a"}}, "'a' means something else here"),
        ({"arms": [{"name": "clm", "teacher": "sources"}]}, "arms.clm: this is the name of plain continued training"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(given, message):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe() | {"arms": ["clm", "self", "fused"], "result": "clm"} | given)
    assert message in str(caught.value)


def test_a_merge_may_be_the_result_and_the_report_may_have_names_of_its_own():
    found = parse_recipe(
        recipe() | {"arms": ["pairwise"], "merges": ["varm"], "result": "varm", "called": {"target": "pivot", "clm": "sft"}}
    )
    assert (found.result, found.shown("target"), found.shown("clm"), found.shown("varm")) == ("varm", "pivot", "sft", "varm")


def test_every_merge_method_can_be_named():
    assert {"linear", "slerp", "task_arithmetic", "model_stock", "varm", "sce"} <= set(MERGES)


@pytest.mark.parametrize(
    "path", [path for path in sorted(RECIPES.glob("*.yaml")) if not path.stem.startswith("evolver")], ids=lambda path: path.stem
)
def test_the_recipes_of_the_repository_load_and_survive_being_written_out(path):
    found = load_recipe(path)
    assert parse_recipe(__import__("yaml").safe_load(found.to_yaml())) == found
    assert all(isinstance(arm, Arm) for arm in found.resolved_arms)
