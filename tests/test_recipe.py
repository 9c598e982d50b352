import copy

import pytest

from lmfuse.arms import PAPER
from lmfuse.errors import RecipeError
from lmfuse.recipe import load_recipe, model_specs, parse_recipe, recipe_schema
from lmfuse.yaml_strict import load_yaml
from tests import runs


def changed(path: str, value: object) -> dict:
    """Return the small recipe with one value replaced, named by a dotted path."""
    values = copy.deepcopy(runs.recipe())
    place, *rest = path.split(".")[::-1]
    node = values
    for part in rest[::-1]:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    node[place] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "fuse",
            {"name": "min_cee"},
            r"fuse.name: unknown 'min_cee'; did you mean 'min_ce'\? \(known: avg_ce, min_ce, posterior, uniform\)",
        ),
        ("align", {"name": "bytelaw"}, "did you mean 'byte_law'"),
        ("arms", ["clm", "fussed"], "did you mean 'fused'"),
        (
            "merges",
            [{"name": "f", "of": ["fused", "self"], "method": {"name": "fisher"}}],
            "merges.f: fisher: no statistics, expected those of",
        ),
        ("train.lerning_rate", 1e-3, r"train.lerning_rate: unknown 'lerning_rate'; did you mean 'learning_rate'\?"),
        ("sorces", [], "sorces: unknown 'sorces'; did you mean 'sources'"),
        ("text.train.0.pth", "x", "did you mean 'path'"),
        ("rows.k", 0, r"rows.k: .*greater than or equal to 1.*\(got 0\)"),
        ("target.dtype", "fp16", "target.dtype"),
        ("loss", {"name": "kl", "clm_weight": 1.5}, "clm_weight"),
        ("loss", {"name": "kl", "weight": 0.5}, "unknown 'weight'; did you mean 'clm_weight'"),
        ("name", "../escape", "name"),
        ("result", "fuse", "result: unknown 'fuse'; did you mean 'fused'"),
        ("arms", ["fused", {"name": "one", "teacher": "c"}], "arms.one.teacher: unknown 'c'"),
        ("arms", [{"name": "a", "teacher": "a"}, "fused"], "names both an arm and a model"),
        ("seeds", [], "seeds"),
        (
            "loss",
            {"name": "projected_kl"},
            r"arms.self: loss projected_kl reads rows in the source's vocabulary; use align: \{name: join, map: none\}",
        ),
        (
            "align",
            {"name": "join", "map": "none"},
            r"arms.self: align.map none leaves rows in the source's vocabulary, loss kl reads the target's",
        ),
        ("loss", {"name": "chunk_likelihood", "temperature": 0}, "temperature"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_a_suggestion(path, value, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(changed(path, value))


def test_a_source_listed_twice_is_refused():
    with pytest.raises(RecipeError, match="sources: 'a' stands twice"):
        parse_recipe(runs.recipe(sources=[{"model": "models/a"}, {"model": "other/a"}]))


def test_a_missing_section_is_named():
    values = runs.recipe()
    del values["text"]
    with pytest.raises(RecipeError, match="text: is missing"):
        parse_recipe(values)


def test_a_recipe_written_in_full_is_the_same_recipe():
    recipe = parse_recipe(
        runs.recipe(arms=["clm", "paper", {"name": "low", "loss": {"name": "cross_entropy", "clm_weight": 0.1}}], result="low")
    )
    again = parse_recipe(load_yaml(recipe.to_yaml(), "again"))
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()


def test_plain_training_always_takes_part_and_comes_first():
    assert [arm.name for arm in parse_recipe(runs.recipe(arms=["fused"])).resolved_arms] == ["clm", "fused"]


def test_the_papers_arm_is_the_published_setting():
    assert (PAPER.align.name, PAPER.align.accept, PAPER.align.one_hot, PAPER.align.collision) == ("dtw", "min_ed", "current", "first")
    assert (PAPER.fuse.unit, PAPER.fuse.judge, PAPER.fuse.reward_dtype, PAPER.include_target) == (
        "token",
        "training_text",
        "bfloat16",
        True,
    )
    assert (PAPER.loss.name, PAPER.loss.clm_weight, PAPER.loss.tail) == ("cross_entropy", 0.9, "renormalise")


def test_a_folder_beside_the_recipe_is_found_and_a_hub_name_left_alone(tmp_path):
    (tmp_path / "models" / "a").mkdir(parents=True)
    specs = model_specs(parse_recipe(runs.recipe()), tmp_path)
    assert specs["a"].model == str(tmp_path / "models" / "a")
    assert specs["b"].model == "models/b"


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no recipe at"), (b"name: \xff", "not UTF-8 at byte 6"), (b"[1]", "a recipe is a mapping")]
)
def test_a_file_that_is_no_recipe(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_the_schema_knows_every_method():
    text = str(recipe_schema())
    assert all(name in text for name in ("byte_law", "dtw", "min_ce", "avg_ce", "cross_entropy"))


@pytest.mark.parametrize("name", ["uld", "projected_kl"])
def test_rows_in_a_sources_vocabulary_are_those_of_one_source(name):
    methods = {"align": {"name": "join", "map": "none"}, "loss": {"name": name}}
    with pytest.raises(RecipeError, match=r"arms.fused: align.map none with 2 sources, whose vocabularies differ; name one source"):
        parse_recipe(runs.recipe(arms=["clm", "self", "fused"], **methods))
    with pytest.raises(RecipeError, match=r"arms.one: align.map none with 2 sources"):
        parse_recipe(runs.recipe(arms=[{"name": "one", "teacher": "a", "include_target": True, **methods}], result="one"))
    for arms in (["clm", "self", "best_single"], [{"name": "best_single", "teacher": "a", **methods}]):
        assert parse_recipe(runs.recipe(arms=arms, result="best_single", **methods)).loss.name == name


def test_uld_takes_rows_of_any_vocabulary():
    assert parse_recipe(runs.recipe(loss={"name": "uld"}, arms=["clm", "fused"])).loss.name == "uld"
