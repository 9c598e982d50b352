import pytest

from lmfuse.errors import RecipeError
from lmfuse.merge_recipe import MergeRecipe, Override, parse_merge_recipe
from lmfuse.merge_recipe.values import Place, interpolated, method_at
from lmfuse.yaml_strict import load_yaml


def recipe(text: str) -> MergeRecipe:
    return parse_merge_recipe(load_yaml(text, "test"), "test")


TIES_LIKE = """
models: [org/a, org/b, {model: org/base, revision: main}]
base: base
method: {name: task_arithmetic, weights: [0.5, 0.25], scale: 2}
dtype: bfloat16
"""


def test_a_recipe_in_full():
    found = recipe(TIES_LIKE)
    assert found.labels == ["a", "b", "base"]
    assert found.sources_of() == ["a", "b"]
    assert found.donor == "base"
    assert found.models[2].spec.revision == "main"
    assert found.method.weights == (0.5, 0.25)


def test_yaml_and_back():
    text = (
        TIES_LIKE
        + "overrides: [{parameter: weights, model: a, filter: mlp, layers: [0, 2], gradient: [0, 1]}, {parameter: normalise, value: true}]"
    )
    assert recipe(recipe(text).to_yaml()) == recipe(text)


def test_the_base_of_slerp_is_where_it_starts():
    assert recipe("{models: [a, b], base: b, method: {name: slerp, t: 0.1}}").sources_of() == ["b", "a"]
    assert recipe("{models: [a, b], method: {name: slerp, t: 0.1}}").sources_of() == ["a", "b"]


def test_a_base_that_nothing_is_taken_from_is_a_source():
    assert recipe("{models: [a, b], base: b, method: {name: linear}}").sources_of() == ["a", "b"]


def test_the_order_of_overrides_for_different_models_means_nothing():
    one, other = "{parameter: weights, model: b, value: 1}", "{parameter: weights, value: 2}"
    assert recipe(f"{TIES_LIKE}overrides: [{one}, {other}]") == recipe(f"{TIES_LIKE}overrides: [{other}, {one}]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "a recipe is a mapping"),
        ("{models: [a, b], method: {name: liner}}", "method.name: unknown 'liner'; did you mean 'linear'?"),
        ("{models: [a, b], method: {weights: 1}}", "method.name: is missing"),
        ("{models: [a, b]}", "method: is missing"),
        ("{models: [a, b], method: {name: linear, weight: 1}}", "unknown 'weight'; did you mean 'weights'?"),
        ("{models: [a, b], method: {name: linear}, bse: a}", "unknown 'bse'; did you mean 'base'?"),
        ("{models: [{model: a, nam: x}, b], method: {name: linear}}", "unknown 'nam'; did you mean 'name'?"),
        ("{models: [], method: {name: linear}}", "models: "),
        ("{models: [x/a, y/a], method: {name: linear}}", "'a' stands twice; give each model its own name"),
        ("{models: [a, {model: a, name: b}], method: {name: linear}}", "'a' stands twice; name it once"),
        ("{models: [a, b], base: c, method: {name: linear}}", "base: unknown 'c'"),
        ("{models: [a, b], tokenizer: c, method: {name: linear}}", "tokenizer: unknown 'c'"),
        ("{models: [a, union], tokenizer: union, method: {name: linear}}", "'union' is also the name of a model"),
        ("{models: [a, b], dtype: float8, method: {name: linear}}", "dtype: "),
        ("{models: [a, b], method: {name: linear, weights: [1, -1]}}", "sum to 0"),
        ("{models: [a, b], method: {name: linear, weights: [1, 1, 1]}}", "method.weights: 3 numbers for 2 sources (a, b)"),
        ("{models: [a, b], method: {name: task_arithmetic}}", "task_arithmetic: no base model, expected one"),
        ("{models: [a, b, c], method: {name: slerp, t: 0.5}}", "slerp: 3 sources, expected 2"),
        ("{models: [a, b], method: {name: linear}, overrides: [{parameter: weights}]}", "give either value or gradient"),
        (
            "{models: [a, b], method: {name: linear}, overrides: [{parameter: weights, value: 1, gradient: [1]}]}",
            "give either value or gradient",
        ),
        ("{models: [a, b], method: {name: linear}, overrides: [{parameter: wights, value: 1}]}", "did you mean 'weights'?"),
        (
            "{models: [a, b], method: {name: linear}, overrides: [{parameter: weights, model: c, value: 1}]}",
            "overrides.0.model: unknown 'c'",
        ),
        ("{models: [a, b], method: {name: linear}, overrides: [{parameter: normalise, model: a, value: true}]}", "is one for all sources"),
        ("{models: [a, b], method: {name: linear}, overrides: [{parameter: weights, layers: [3, 3], value: 1}]}", "0 <= first < last"),
        ("{models: [a, b], method: {name: linear}, overrides: [{parameter: weights, filter: '*', value: 1}]}", "leave it out"),
        ("{models: [a, b], method: {name: linear}, slices: [{sources: [{model: a, layers: [2, 1]}]}]}", "0 <= first < last"),
        (
            "{models: [a], method: {name: passthrough}, slices: [{sources: [{model: b, layers: [0, 1]}]}]}",
            "slices.0.sources.0.model: unknown 'b'",
        ),
        (
            "{models: [a, b], method: {name: linear}, slices: [{sources: [{model: a, layers: [0, 2]}, {model: b, layers: [0, 3]}]}]}",
            "its sources have 2, 3 layers, expected the same number",
        ),
        (
            "{models: [a, b], method: {name: linear}, slices: [{sources: [{model: a, layers: [0, 2]}, {model: a, layers: [1, 3]}]}]}",
            "a model stands twice in one slice",
        ),
        (
            "{models: [a, b], base: b, method: {name: task_arithmetic}, slices: [{sources: [{model: a, layers: [0, 2]}]}]}",
            "slices.0: task_arithmetic: no base model",
        ),
        (
            "{models: [a, b], method: {name: passthrough}, slices: [{sources: [{model: a, layers: [0, 2]}, {model: b, layers: [0, 2]}]}]}",
            "slices.0: passthrough: 2 sources",
        ),
    ],
)
def test_wrong_recipes_are_one_line_that_names_the_place(text, message):
    with pytest.raises(RecipeError) as found:
        recipe(text)
    assert message in str(found.value)
    assert "\n" not in str(found.value)
    assert found.value.hint


def place(name: str = "model.layers.1.mlp.up_proj.weight", layer: int | None = 1, share: float = 0.5) -> Place:
    return Place(name, {"a": name, "b": name}, layer, share)


def weights_at(overrides: str, at: Place) -> tuple[float, ...]:
    return method_at(recipe(f"{TIES_LIKE}overrides: {overrides}"), None, at).weights


def test_gradients_by_hand():
    assert [interpolated((2.0,), share) for share in (0.0, 0.3, 1.0)] == [2.0, 2.0, 2.0]
    assert [interpolated((0.0, 0.4, 0.2), share) for share in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.2, 0.4, 0.2]


def test_without_overrides_the_method_is_the_recipes():
    assert method_at(recipe(TIES_LIKE), None, place()) is not None
    assert weights_at("[]", place()) == (0.5, 0.25)


def test_filters_layers_and_models():
    assert weights_at("[{parameter: weights, filter: mlp, value: 7}]", place()) == (7.0, 7.0)
    assert weights_at("[{parameter: weights, filter: attn, value: 7}]", place()) == (0.5, 0.25)
    assert weights_at("[{parameter: weights, model: b, value: 7}]", place()) == (0.5, 7.0)
    assert weights_at("[{parameter: weights, layers: [0, 1], value: 7}]", place()) == (0.5, 0.25)
    assert weights_at("[{parameter: weights, layers: [1, 2], value: 7}]", place()) == (7.0, 7.0)
    assert weights_at("[{parameter: weights, layers: [0, 99], value: 7}]", place("lm_head.weight", None, 0.0)) == (0.5, 0.25)
    assert weights_at("[{parameter: weights, gradient: [-1, 0]}]", place()) == (-0.5, -0.5)


def test_the_first_that_fits_holds_and_one_model_comes_before_all():
    both = (
        "[{parameter: weights, value: 1}, {parameter: weights, model: a, filter: mlp, value: 2}, {parameter: weights, model: a, value: 3}]"
    )
    assert weights_at(both, place()) == (2.0, 1.0)
    assert weights_at(both, place("model.norm.weight", None, 0.0)) == (3.0, 1.0)


def test_a_filter_of_one_sources_number_looks_at_the_name_in_that_source():
    at = Place("model.layers.5.x", {"a": "model.layers.0.x", "b": "model.layers.9.x"}, 5, 0.0)
    assert weights_at("[{parameter: weights, filter: layers.9., value: 7}]", at) == (0.5, 7.0)


def test_the_filter_of_a_shared_number_looks_at_the_name_in_the_result():
    at = Place("model.layers.5.x", {"a": "model.layers.0.x", "b": "model.layers.9.x"}, 5, 0.0)
    found = method_at(recipe(f"{TIES_LIKE}overrides: [{{parameter: scale, filter: layers.5., value: 7}}]"), None, at)
    assert found.scale == 7.0


def test_slices_come_before_the_recipe():
    text = """
models: [a, b]
method: {name: linear, weights: 1}
overrides: [{parameter: weights, value: 2}]
slices:
  - sources: [{model: a, layers: [0, 2]}, {model: b, layers: [0, 2]}]
    overrides: [{parameter: weights, model: b, filter: mlp, value: 5}, {parameter: weights, filter: norm, value: 4}]
"""
    found = recipe(text)
    assert method_at(found, found.slices[0], place()).weights == (2.0, 5.0)
    assert method_at(found, found.slices[0], place("model.norm.weight")).weights == (4.0, 4.0)


@pytest.mark.parametrize(
    ("override", "message"), [("{parameter: weights, value: much}", "weights"), ("{parameter: normalise, value: 17}", "normalise")]
)
def test_a_value_that_the_method_does_not_take_names_the_tensor(override, message):
    found = recipe(f"{TIES_LIKE}overrides: [{override}]")
    with pytest.raises(RecipeError, match=rf"model\.layers\.1\.mlp\.up_proj\.weight: task_arithmetic .*{message}"):
        method_at(found, None, place())


def test_an_override_that_makes_weights_sum_to_0_names_the_tensor():
    found = recipe(
        "{models: [a, b], method: {name: linear, weights: [1, 2]}, overrides: [{parameter: weights, model: b, filter: mlp, value: -1}]}"
    )
    with pytest.raises(RecipeError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: linear.*sum to 0"):
        method_at(found, None, place())


def test_overrides_are_plain_values():
    with pytest.raises(RecipeError, match="filter"):
        recipe("{models: [a, b], method: {name: linear}, overrides: [{parameter: weights, filter: '', value: 1}]}")
    assert Override(parameter="t", value=0.5).gradient is None
