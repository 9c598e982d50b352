"""mergekit's files as recipes: numbers by hand, every number of random files against mergekit's own resolver, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse.errors import RecipeError
from lmfuse.merge_recipe import MergeRecipe
from lmfuse.merge_recipe.values import Place, method_at
from lmfuse.mergekit_yaml.names import REQUIRED, TRANSLATIONS, Parameter, Translation
from lmfuse.mergekit_yaml.read import is_mergekit, read_mergekit
from lmfuse.mergekit_yaml.write import write_mergekit
from lmfuse.yaml_strict import load_yaml

NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight", "lm_head.weight")


def read(text: str) -> MergeRecipe:
    return read_mergekit(load_yaml(text, "merge.yml"), "merge.yml")[0]


def test_recognised_by_its_keys():
    assert is_mergekit({"merge_method": "linear"})
    assert is_mergekit({"models": [], "base_model": "a"})
    assert not is_mergekit({"models": ["a"], "method": {"name": "linear"}})
    assert not is_mergekit([])


def test_models_with_numbers_filters_and_gradients():
    found = read("""
models:
  - model: org/a
    parameters: {weight: 0.3}
  - model: org/b@v2
    parameters:
      weight: [{filter: mlp, value: [0, 1]}, {value: 1e-1}]
merge_method: task_arithmetic
base_model: org/base
parameters: {normalize: yes, lambda: 0.5, int8_mask: true}
dtype: float32
out_dtype: bfloat16
tokenizer_source: union
""")
    assert [(each.model, each.revision) for each in found.models] == [("org/a", None), ("org/b", "v2"), ("org/base", None)]
    assert (found.base, found.dtype, found.tokenizer) == ("base", "bfloat16", "union")
    assert (found.method.weights, found.method.normalise, found.method.scale) == ((0.3, 0.1), True, 0.5)
    assert [(each.model, each.filter, each.gradient) for each in found.overrides] == [("b", "mlp", (0.0, 1.0))]


def test_slices():
    found = read("""
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 3], parameters: {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}}]
merge_method: passthrough
""")
    assert [[(source.model, source.layers) for source in part.sources] for part in found.slices] == [[("a", (0, 2))], [("b", (1, 3))]]
    assert [(each.filter, each.value) for each in found.slices[1].overrides] == [("o_proj", 0.0), (None, 1.0)]


def test_models_stay_in_the_files_order():
    names = ["zeta", "alpha", "mid", "beta"]
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n" + "".join(f"  - model: org/{name}\n" for name in names)
    assert read(text).labels == names


def test_models_of_one_name_are_told_apart():
    assert read("{models: [{model: x/a}, {model: y/a}, {model: b}], merge_method: linear, parameters: {weight: 1}}").labels == [
        "x/a",
        "y/a",
        "b",
    ]


def test_notes_say_what_is_not_quite_the_same():
    _, notes = read_mergekit(
        load_yaml(
            "{models: [{model: a}, {model: b, parameters: {weight: 1}}], base_model: a, merge_method: task_arithmetic, dtype: float16}", "m"
        )
    )
    assert any("float16" in note and "float32" in note for note in notes)
    values = "{models: [{model: a, parameters: {weight: 2}}, {model: b, parameters: {weight: [{value: 1}, {filter: x, value: 3}]}}], "
    _, notes = read_mergekit(load_yaml(values + "base_model: a, merge_method: task_arithmetic}", "m"), "m")
    assert any("m: models.0.parameters.weight: the base has none" in note for note in notes)
    assert any("m: models.1.parameters.weight.1: never reached" in note for note in notes)


LINEAR = "merge_method: linear, models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{{{LINEAR}, modules: {{text: 1}}}}", "merge.yml: modules: is not supported"),
        (f"{{{LINEAR}, slices: []}}", None),
        (f"{{{LINEAR}, slices: [{{sources: []}}]}}", "models and slices given"),
        ("{merge_method: linear}", "neither models nor slices given"),
        ("{merge_method: linear, models: 7}", "merge.yml: models: must be a list"),
        ("{models: [{model: a}], base_model: a}", "merge.yml: merge_method: is missing"),
        ("{models: [{model: a}], merge_method: tis}", "merge.yml: merge_method: unknown 'tis'"),
        ("{models: [{model: a}], merge_method: nuslerp}", "merge.yml: merge_method: 'nuslerp' is not supported"),
        ("{models: [{model: a}], merge_method: breadcrumbs}", "'breadcrumbs' is not supported"),
        (f"{{{LINEAR}, foo: 1}}", "merge.yml: foo: unknown 'foo'"),
        (f"{{{LINEAR}, parameters: {{wieght: 1}}}}", "merge.yml: parameters.wieght: unknown 'wieght'; did you mean 'weight'?"),
        (f"{{{LINEAR}, parameters: {{density: 1}}}}", "merge.yml: parameters.density: unknown"),
        (f"{{{LINEAR}, out_dtype: float64}}", "merge.yml: out_dtype: unknown 'float64'"),
        (f"{{{LINEAR}, dtype: bf16}}", "merge.yml: dtype: unknown 'bf16'; did you mean 'bfloat16'?"),
        (f"{{{LINEAR}, chat_template: chatml}}", "merge.yml: chat_template: only auto is supported"),
        (f"{{{LINEAR}, tokenizer_source: c}}", "merge.yml: tokenizer_source: 'c' is not one of the models"),
        (f"{{{LINEAR}, tokenizer: {{source: base, tokens: {{x: {{source: a}}}}}}}}", "merge.yml: tokenizer.tokens: is not supported"),
        (f"{{{LINEAR}, tokenizer: {{pad_to_multiple_of: 8}}}}", "merge.yml: tokenizer.pad_to_multiple_of: is not supported"),
        (f"{{{LINEAR}, tokenizer: {{source: base}}, tokenizer_source: base}}", "stands beside tokenizer_source"),
        ("{merge_method: linear, models: [{parameters: {weight: 1}}]}", "merge.yml: models.0.model: is missing"),
        ("{merge_method: linear, models: [{model: a+lora, parameters: {weight: 1}}]}", "models.0.model: 'a+lora': an adapter"),
        ("{merge_method: linear, models: [{model: {model: {path: a}, lora: b}}]}", "models.0.model.lora: is not supported: an adapter"),
        ("{merge_method: linear, models: [{model: {model: a, override_architecture: X}}]}", "override_architecture: is not supported"),
        ("{merge_method: linear, models: [{model: a, layer_range: [0, 1]}]}", "models.0.layer_range: unknown"),
        (
            "{merge_method: linear, models: [{model: a, parameters: {weight: 1}}, {model: b}]}",
            "merge.yml: models.1.parameters.weight: is missing",
        ),
        (
            "{merge_method: linear, models: [{model: a, parameters: {weight: [{filter: mlp, value: 1}]}}]}",
            "models.0.parameters.weight: has a value only for some tensors; add one without filter",
        ),
        ("{merge_method: slerp, models: [{model: a}, {model: b}], base_model: a}", "merge.yml: parameters.t: is missing"),
        ("{merge_method: slerp, models: [{model: a}, {model: b}], parameters: {t: 0.5}}", "merge.yml: base_model: is missing"),
        (
            "{merge_method: slerp, models: [{model: a, parameters: {t: 0.5}}, {model: b}], base_model: a}",
            "models.0.parameters.t: is one for all models",
        ),
        (
            "{merge_method: task_arithmetic, models: [{model: a}, {model: b}], parameters: {weight: 1}}",
            "merge.yml: base_model: is missing; task_arithmetic needs one",
        ),
        (f"{{{LINEAR}, parameters: {{normalize: maybe}}}}", "parameters.normalize: must be true or false (got 'maybe')"),
        (f"{{{LINEAR}, parameters: {{normalize: [true, false]}}}}", "parameters.normalize: a list of values"),
        (f"{{{LINEAR}, parameters: {{weight: []}}}}", "parameters.weight: an empty list"),
        (f"{{{LINEAR}, parameters: {{weight: [1, {{value: 1}}]}}}}", "parameters.weight.0: must be a mapping"),
        (
            f"{{{LINEAR}, parameters: {{weight: {{value: 1, fliter: x}}}}}}",
            "parameters.weight.fliter: unknown 'fliter'; did you mean 'filter'?",
        ),
        (f"{{{LINEAR}, parameters: {{weight: {{filter: x}}}}}}", "parameters.weight: value is missing"),
        (f"{{{LINEAR}, parameters: {{weight: heavy}}}}", "parameters.weight: must be a number (got 'heavy')"),
        (f"{{{LINEAR}, parameters: {{weight: true}}}}", "parameters.weight: must be a number (got True)"),
        (f"{{{LINEAR}, parameters: {{weight: nan}}}}", "parameters.weight: must be a number (got 'nan')"),
        (f"{{{LINEAR}, parameters: 7}}", "parameters: must be a mapping (got 7)"),
        (
            "{merge_method: linear, slices: [{sources: [{model: a}]}]}",
            "slices.0.sources.0.layer_range: must be [first, the one behind the last]",
        ),
        ("{merge_method: linear, slices: [{sources: [{model: a, layer_range: [0]}]}]}", "layer_range: must be"),
        ("{merge_method: linear, slices: [{sources: [{model: a, layer_range: [4, 2]}]}], parameters: {weight: 1}}", "0 <= first < last"),
        (
            "{merge_method: linear, slices: [{residual_weight: 1.0, sources: [{model: a, layer_range: [0, 2]}]}]}",
            "residual_weight: is not supported",
        ),
        (
            "{merge_method: linear, base_model: a, slices: [{base_model: b, sources: [{model: a, layer_range: [0, 2]}]}]}",
            "slices.0.base_model: must be the base_model of the whole merge",
        ),
        (
            "{merge_method: model_stock, models: [{model: a}, {model: b}, {model: c}], base_model: a, parameters: {filter_wise: true}}",
            "filter_wise",
        ),
        ("{merge_method: linear, models: [{model: a, parameters: {weight: 1}}, {model: a, parameters: {weight: 1}}]}", "'a' stands twice"),
        ("{merge_method: linear, models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: -1}}]}", "sum to 0"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(text, message):
    if message is None:
        assert read(text)
        return
    with pytest.raises(RecipeError) as found:
        read(text)
    assert message in str(found.value)
    assert str(found.value).startswith("merge.yml: ")
    assert "\n" not in str(found.value)
    assert found.value.hint


class Drawn:
    """Draws a file for mergekit that it accepts; numbers are positive, so that no sum is 0."""

    def __init__(self, draw: Any, translation: Translation) -> None:
        self.draw, self.translation = draw, translation

    def one_of(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def number(self, parameter: Parameter) -> Any:
        if parameter.only:
            return parameter.default
        if parameter.kind is not float:
            return self.one_of(True, False) if parameter.kind is bool else self.one_of(1, 2, 9)
        return self.one_of(0.5, 0.4) if parameter.theirs == "density" else self.one_of(0.25, 0.3, 1e-2)

    def value(self, parameter: Parameter) -> Any:
        length = 0 if parameter.kind is not float else self.one_of(0, 0, 1, 3, 4)
        return [self.number(parameter) for _ in range(length)] or self.number(parameter)

    def setting(self, parameter: Parameter, *, complete: bool) -> Any:
        if self.one_of(True, False):
            return self.value(parameter)
        filters = [self.one_of("mlp", "attn", "layers.0", "lm_head") for _ in range(self.one_of(1, 2))]
        conditions = [{"filter": text, "value": self.value(parameter)} for text in filters]
        return conditions + (
            [{"value": self.value(parameter)} | self.one_of({}, {"filter": "*"})] if complete or self.one_of(True, False) else []
        )

    def scope(self, *, own: bool = False, needed: bool = False) -> dict[str, Any]:
        chosen = {}
        for parameter in self.translation.parameters:
            must = needed and parameter.default is REQUIRED
            if must or ((parameter.per_source or not own) and self.one_of(True, False)):
                chosen[parameter.theirs] = self.setting(parameter, complete=must)
        return {"parameters": chosen} if chosen else {}

    def file(self) -> dict[str, Any]:
        name = self.translation.theirs
        labels = ["a", "b", "c"][: {"passthrough": 1, "slerp": 2}.get(name, 3)]
        top = {"merge_method": name} | self.scope(needed=True)
        if self.translation.needs_base or (name == "multislerp" and self.one_of(True, False)):
            top["base_model"] = self.one_of(*labels)
        if self.one_of(True, False):
            return top | {"models": [{"model": label} | self.scope(own=True) for label in labels]}

        def sources() -> list[dict[str, Any]]:
            return [{"model": label, "layer_range": [0, 2]} | self.scope(own=True) for label in labels]

        return top | {"slices": [{"sources": sources()} | self.scope() for _ in range(self.one_of(1, 2))]}


@st.composite
def files(draw: Any) -> dict[str, Any]:
    return Drawn(draw, draw(st.sampled_from(sorted(TRANSLATIONS.values(), key=lambda each: each.theirs)))).file()


def resolved_by_mergekit(values: dict[str, Any], part: int, name: str, share: float) -> dict[str, Any]:
    """Return every parameter of one tensor as mergekit resolves it, those of each source by its name."""
    from mergekit import merge_methods
    from mergekit.config import ConfigReader, InputSliceDefinition, MergeConfiguration, OutputSliceDefinition
    from mergekit.parameter_resolver import resolve_parameters

    config = MergeConfiguration.model_validate(values)
    made = (
        [OutputSliceDefinition(sources=[InputSliceDefinition(layer_range=(0, 2), **dict(each)) for each in config.models])]
        if config.models
        else config.slices
    )
    reader = ConfigReader(config=config, t=share, slice_out=made[part])
    shared, own = resolve_parameters(
        merge_methods.get(config.merge_method).spec,
        tensor_name=name,
        inputs={source.model: name for source in made[part].sources},
        sources=reader.parameter_sources,
        base_model=reader.base_model,
        t=share,
    )
    words = {each.theirs: each.words for each in TRANSLATIONS[config.merge_method].parameters}
    return {key: words.get(key, {}).get(value, value) for key, value in shared.items()} | {str(model): each for model, each in own.items()}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@settings(max_examples=60, deadline=None)
@given(values=files())
def test_every_number_is_the_one_that_mergekit_takes(share, values):
    pytest.importorskip("mergekit")
    recipe = read_mergekit(values, "merge.yml")[0]
    translation = TRANSLATIONS[values["merge_method"]]
    parts = list(enumerate(recipe.slices)) if recipe.slices else [(0, None)]
    for index, part in parts:
        sources = recipe.sources_of(part)
        for name in NAMES:
            found = method_at(recipe, part, Place(name, dict.fromkeys(recipe.labels, name), 0, share))
            expected = resolved_by_mergekit(values, index, name, share)
            for parameter in (each for each in translation.parameters if each.ours):
                value = getattr(found, parameter.ours)
                if parameter.per_source:
                    mine = list(value) if isinstance(value, tuple) else [value] * len(sources)
                    theirs = [expected[label][parameter.theirs] for label in sources]
                    assert mine == [1.0 if each is None else each for each in theirs], (name, parameter)
                elif (translation.theirs, value) != ("karcher", parameter.default):  # ours goes on to the mean where nothing is said
                    assert value == expected[parameter.theirs], (name, parameter)


@settings(max_examples=60, deadline=None)
@given(values=files())
def test_written_and_read_again_it_is_the_same_recipe(values):
    recipe = read_mergekit(values, "merge.yml")[0]
    assert read_mergekit(load_yaml(write_mergekit(recipe), "again"), "again")[0] == recipe
