"""Recipes written for mergekit: by hand, random ones read back, and what mergekit cannot say."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse.errors import RecipeError
from lmfuse.merge_recipe import MergeRecipe, parse_merge_recipe
from lmfuse.merge_recipe.values import Place, method_at
from lmfuse.mergekit_yaml.read import read_mergekit
from lmfuse.mergekit_yaml.write import write_mergekit
from lmfuse.yaml_strict import load_yaml

NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight", "lm_head.weight")


def recipe(text: str) -> MergeRecipe:
    return parse_merge_recipe(load_yaml(text, "test"), "test")


def written(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(write_mergekit(recipe(text)))
    return found


def again(found: MergeRecipe) -> MergeRecipe:
    return read_mergekit(load_yaml(write_mergekit(found), "again"), "again")[0]


def test_by_hand():
    text = """
models: [org/a, {model: org/b, revision: v2}, org/base]
base: base
method: {name: ties, weights: [0.5, 0.25], density: 0.3}
dtype: bfloat16
tokenizer: a
overrides:
  - {parameter: density, filter: mlp, gradient: [0.1, 0.9]}
  - {parameter: weights, model: a, filter: attn, value: 2}
"""
    assert written(text) == {
        "merge_method": "ties",
        "base_model": "org/base",
        "models": [
            {"model": "org/a", "parameters": {"weight": [{"filter": "attn", "value": 2}, {"value": 0.5}]}},
            {"model": "org/b@v2", "parameters": {"weight": 0.25}},
            {"model": "org/base"},
        ],
        "parameters": {"density": [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 0.3}]},
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "tokenizer_source": "org/a",
    }
    assert again(recipe(text)) == recipe(text)


def test_slices_by_hand():
    text = """
models: [a, b]
method: {name: passthrough}
slices:
  - sources: [{model: a, layers: [0, 3]}]
  - sources: [{model: b, layers: [1, 4]}]
    overrides: [{parameter: scale, filter: o_proj, value: 0}]
"""
    assert written(text)["slices"] == [
        {"sources": [{"model": "a", "layer_range": [0, 3]}]},
        {"sources": [{"model": "b", "layer_range": [1, 4]}], "parameters": {"scale": [{"filter": "o_proj", "value": 0}]}},
    ]
    assert again(recipe(text)) == recipe(text)


def test_slerp_starts_at_the_first_model_where_no_base_is_named():
    assert written("{models: [a, b], method: {name: slerp, t: 0.25}}")["base_model"] == "a"


def test_random_methods_and_their_words():
    found = written("{models: [a, b], base: b, method: {name: dare, rescale: none, then: ties, density: 0.5}}")
    assert (found["merge_method"], found["parameters"]["rescale"]) == ("dare_ties", False)
    assert again(recipe("{models: [a, b], base: b, method: {name: della, rescale: l1}}")).method.rescale == "l1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{models: [a, b], base: b, method: {name: varm}}", "method.name cannot be written for mergekit: mergekit has no varm"),
        (
            "{models: [a, b, c], base: b, method: {name: sce}}",
            "method.variant cannot be written for mergekit: mergekit has only 'mergekit' (got 'paper')",
        ),
        ("{models: [a, b], base: b, method: {name: ties, granularity: model}}", "method.granularity"),
        ("{models: [a, b], method: {name: karcher, weights: [1, 2]}}", "method.weights"),
        ("{models: [a, b], base: b, method: {name: dare, rescale: l1, seed: 7}}", "method.seed cannot be written for mergekit"),
        ("{models: [a, b], base: b, method: {name: dare}}", "rescale cannot be written for mergekit: mergekit has no 'probability'"),
        ("{models: [a, b], method: {name: linear}, overrides: [{parameter: weights, layers: [0, 1], value: 2}]}", "overrides.0.layers"),
        ("{models: [a+b, b], method: {name: linear}}", "models cannot be written for mergekit: mergekit reads + and @"),
        ("{models: [a, b], method: {name: karcher}, overrides: [{parameter: weights, filter: x, value: 2}]}", "overrides.0.parameter"),
    ],
)
def test_what_mergekit_cannot_say_is_refused_by_its_key(text, message):
    with pytest.raises(RecipeError) as found:
        write_mergekit(recipe(text))
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@st.composite
def recipes(draw: Any) -> MergeRecipe:
    """Draw a recipe with filters, gradients, slices and numbers for single models in any order."""

    def one_of(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    name = one_of("linear", "ties", "task_arithmetic", "multislerp")
    base = one_of("a", "b", "c") if name in ("ties", "task_arithmetic") else one_of(None, "b")
    apart = base if name != "linear" else None
    sources = [label for label in ("a", "b", "c") if label != apart]
    sliced = one_of(True, False)

    def override(*, single: bool) -> dict[str, Any]:
        chosen = {"parameter": one_of("weights", "density") if name == "ties" else "weights"}
        chosen |= one_of({}, {"filter": "mlp"}, {"filter": "layers.1"}) | (one_of({}, {"model": one_of(*sources)}) if single else {})
        return chosen | one_of({"value": 0.5}, {"value": 0.25}, {"gradient": [0.25, 0.75, 0.5]})

    def overrides(*, single: bool) -> list[dict[str, Any]]:
        return [override(single=single) for _ in range(one_of(0, 1, 3))]

    numbers = [one_of(0.5, 0.3) for _ in sources]
    values: dict[str, Any] = {
        "models": ["a", "b", "c"],
        "base": base,
        "method": {"name": name, "weights": one_of(0.5, numbers)} | ({"density": one_of(0.5, numbers)} if name == "ties" else {}),
        "overrides": overrides(single=not sliced),
    }
    if sliced:
        of_all = [{"model": label, "layers": [0, 2]} for label in ("a", "b", "c")]
        values["slices"] = [{"sources": of_all, "overrides": overrides(single=True)} for _ in range(one_of(1, 2))]
    return parse_merge_recipe(values)


@settings(max_examples=60, deadline=None)
@given(found=recipes())
def test_every_tensor_has_the_same_numbers_after_being_written_and_read(found):
    other = again(found)
    parts = list(zip(found.slices, other.slices, strict=True)) or [(None, None)]
    for mine, yours in parts:
        for name in NAMES:
            for share in (0.0, 0.3, 1.0):
                place = Place(name, dict.fromkeys("abc", name), 0, share)
                one, two = method_at(found, mine, place), method_at(other, yours, place)
                for parameter in ("weights", "density"):
                    both = [getattr(each, parameter, 0) for each in (one, two)]
                    filled = [each if isinstance(each, tuple) else (each,) * len(found.sources_of(mine)) for each in both]
                    assert filled[0] == filled[1]
    assert again(other) == other
