"""What a recipe of ``lmfuse evolve`` may say, and what is said of one that it may not."""

import re
from pathlib import Path

import pytest

from lmfuse.errors import RecipeError
from lmfuse.evolution.judge import Racing
from lmfuse.evolution.settings import SearchSettings
from lmfuse.evolve.cma_es import CmaEs
from lmfuse.evolve_recipe import EvolveRecipe, load_evolve_recipe, parse_evolve_recipe
from lmfuse.merge.ties import Ties
from lmfuse.yaml_strict import load_yaml
from tests.evolve_recipe.build import RECIPES, recipe

ROOT = Path(__file__).resolve().parents[2]


def test_what_a_recipe_leaves_out_is_what_a_search_has():
    """One default in two places: they must be the same."""
    bare = parse_evolve_recipe({key: value for key, value in recipe().items() if key not in ("generations", "seed")})
    assert bare.settings == SearchSettings()


def test_settings_reach_the_search():
    more = {"method": {"name": "cma_es"}, "genes": "layer", "express": {"name": "ties", "density": 0.5}, "budget": {"evaluations": 40}}
    found = parse_evolve_recipe(recipe(**more, accept="sign_test", racing={}, high=2, patience=3)).settings
    assert (found.method, found.genes, found.express) == (CmaEs(), "layer", Ties(density=0.5))
    assert (found.budget.evaluations, found.accept.test, found.racing) == (40, "sign_test", Racing())
    assert (found.high, found.patience, found.seed) == (2.0, 3, 1)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("evolver*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_repository_load_and_survive_being_written_out(path):
    found = load_evolve_recipe(path)
    assert parse_evolve_recipe(load_yaml(found.to_yaml(), "again")) == found


def test_the_published_settings_are_the_papers():
    found = load_evolve_recipe(RECIPES / "evolver.yaml").settings
    assert (found.method.name, found.method.f, found.method.cr, found.generations) == ("interpolation", 0.5, 0.5, 15)
    assert (found.genes, found.express, found.behind) == ("scalar", None, 0)


def test_the_readmes_recipe_loads():
    found = [each for each in re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL) if "parents:" in each]
    assert isinstance(parse_evolve_recipe(load_yaml(found[0], "README.md")), EvolveRecipe)


SPEC = {"domain": "x", "path": "x.jsonl"}
WRONG = {
    "an unknown key": ({"methd": {}}, "methd: unknown 'methd'; did you mean 'method'?"),
    "an unknown method": ({"method": {"name": "de_rand"}}, "method.name: unknown 'de_rand'; did you mean 'de_rand_1'?"),
    "an unknown parameter": ({"method": {"name": "de_rand_1", "ff": 1}}, "unknown 'ff'; did you mean 'f'?"),
    "an unknown fitness": ({"fitness": {"name": "bits"}}, "fitness.name: unknown 'bits'"),
    "one parent": ({"parents": [{"model": "a"}]}, "parents: Tuple should have at least 2 items"),
    "no data": ({"text": None}, "text: is missing; fitness bits_per_byte is measured on it"),
    "other data": ({"fitness": {"name": "choices"}}, "questions: is missing; fitness choices is measured on it"),
    "data too many": ({"units": {"count": 9}}, "units: fitness bits_per_byte is measured on text; leave units out"),
    "an empty split": (
        {"text": {"evolve": [SPEC], "select": [SPEC], "report": []}},
        "text: report is empty; give evolve, select and report",
    ),
    "two ways to split": ({"text": {"divided": [SPEC], "report": [SPEC]}}, "text: give either divided or evolve, select and report"),
    "a name twice": ({"parents": [{"model": "a/m"}, {"model": "b/m"}]}, "parents: 'm' stands twice"),
    "a name of an arm": ({"parents": [{"model": "a"}, {"model": "b", "name": "average"}]}, "'average' means something else in reports"),
    "types that differ": (
        {"parents": [{"model": "a"}, {"model": "b", "dtype": "float32"}], "base": None},
        "b: dtype is 'float32', of a 'bfloat16'",
    ),
    "a function that is none": (
        {"fitness": {"name": "function", "function": "f.py"}, "text": None, "units": {"count": 9}},
        "fitness.function.function",
    ),
    "no number": ({"high": float("nan")}, "high: Input should be a finite number"),
    "an unknown test": ({"accept": "always"}, "accept: Input should be 'strict', 'sign_test' or 'bootstrap'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_line(case):
    changes, message = WRONG[case]
    with pytest.raises(RecipeError) as caught:
        parse_evolve_recipe(recipe(**changes), "recipe.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("recipe.yaml: ")
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(("value", "got"), [(None, "nothing"), ([1], "a list"), ("x", "'x'")])
def test_what_is_no_mapping_is_refused(value, got):
    with pytest.raises(RecipeError, match=f"a recipe is a mapping of keys to values, got {got}"):
        parse_evolve_recipe(value)
