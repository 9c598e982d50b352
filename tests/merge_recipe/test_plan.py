"""From a recipe to a plan: which tensors of which models, of which type, by which numbers; and what stops it before a byte is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmfuse.errors import LmfuseError, RecipeError
from lmfuse.merge_recipe import MergeRecipe, parse_merge_recipe
from lmfuse.merge_recipe.layers import depths, origins, split_name
from lmfuse.merge_recipe.plan import make_merge_plan
from lmfuse.weights.plan import MergePlan
from lmfuse.yaml_strict import load_yaml
from tests.mergekit_yaml.oracle import model_family, untie
from tests.model_folders import edit_config, edit_weights, shard, write_index


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return model_family(tmp_path_factory.mktemp("family"), ["a", "b"])


@pytest.fixture
def family(made, tmp_path) -> Path:
    """A copy to spoil: ``base``, ``a`` and ``b``, of 4 layers each."""
    return Path(shutil.copytree(made, tmp_path / "models"))


def recipe(text: str) -> MergeRecipe:
    return parse_merge_recipe(load_yaml(text, "test"), "test")


def plan(text: str, folder: Path) -> MergePlan:
    return make_merge_plan(recipe(text), folder, folder.parent / "cache")


TIES = "models: [a, b, base]\nbase: base\nmethod: {name: ties, weights: [0.5, 0.25], density: 0.3}\n"
SLICES = """
models: [a, b]
method: {name: passthrough}
slices:
  - sources: [{model: a, layers: [0, 3]}]
  - sources: [{model: b, layers: [1, 4]}]
"""


def test_names_of_layers():
    assert split_name("transformer.h.12.attn.bias") == ("transformer.h.", 12, ".attn.bias")
    assert split_name("model.norm.weight") is None
    assert depths(["model.layers.0.x", "model.layers.3.x", "vision.blocks.1.y", "lm_head.weight"]) == {
        "model.layers.": 4,
        "vision.blocks.": 2,
    }


def test_every_tensor_of_the_models_once(family):
    found = plan(TIES, family)
    names = list(load_file(family / "base" / "model.safetensors"))
    assert sorted(each.name for each in found.tensors) == sorted(names)
    assert {len(each.sources) for each in found.tensors} == {2}
    assert {each.base.model for each in found.tensors if each.base} == {2}
    assert [model.label for model in found.models] == ["a", "b", "base"]
    assert found.base == 2


def test_numbers_by_layer(family):
    text = TIES + "overrides: [{parameter: density, gradient: [0.1, 0.4]}, {parameter: weights, model: a, layers: [3, 4], value: 9}]"
    found = {each.name: each.method for each in plan(text, family).tensors}
    densities = [found[f"model.layers.{layer}.mlp.up_proj.weight"].density for layer in range(4)]
    assert [each[0] for each in densities] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert found["model.embed_tokens.weight"].density == (0.1, 0.1)
    assert [found[f"model.layers.{layer}.input_layernorm.weight"].weights for layer in (2, 3)] == [(0.5, 0.25), (9.0, 0.25)]


def test_layers_from_slices(family):
    found = plan(SLICES, family)
    by_name = {each.name: each.sources[0] for each in found.tensors}
    origin = [
        (by_name[f"model.layers.{layer}.mlp.up_proj.weight"].model, by_name[f"model.layers.{layer}.mlp.up_proj.weight"].name)
        for layer in range(6)
    ]
    assert origin == [
        (0, "model.layers.0.mlp.up_proj.weight"), (0, "model.layers.1.mlp.up_proj.weight"), (0, "model.layers.2.mlp.up_proj.weight"),
        (1, "model.layers.1.mlp.up_proj.weight"), (1, "model.layers.2.mlp.up_proj.weight"), (1, "model.layers.3.mlp.up_proj.weight"),
    ]  # fmt: skip
    assert by_name["model.embed_tokens.weight"].model == 0
    assert by_name["model.norm.weight"].model == 1
    assert found.config["num_hidden_layers"] == 6


def test_lists_with_an_entry_per_layer_follow_the_slices(family):
    for name in ("a", "b"):
        edit_config(family / name, layer_kinds=["w", "x", "y", "z"], some_layers=[1])
    found = plan(SLICES, family)
    assert found.config["layer_kinds"] == ["w", "x", "y", "x", "y", "z"]
    assert any("some_layers" in line for line in found.warnings)


def test_models_of_different_depth_give_layers_to_one(family):
    shallow = family / "b"
    edit_weights(shallow, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.3." in name])
    edit_config(shallow, num_hidden_layers=3)
    found = plan(SLICES.replace("[1, 4]", "[1, 3]"), family)
    assert found.config["num_hidden_layers"] == 5
    with pytest.raises(RecipeError, match=r"slices\.1\.sources\.0: layers 1 to 4 of b, which has 3"):
        plan(SLICES, family)


@pytest.mark.parametrize(("asked", "stored", "expected"), [(None, ("bfloat16",) * 3, "BF16"), (None, ("bfloat16", "float16", "bfloat16"), "F32"),
                                                           ("float16", ("bfloat16", "float32", "float32"), "F16")])  # fmt: skip
def test_types(family, asked, stored, expected):
    for name, dtype in zip(("a", "b", "base"), stored, strict=True):
        edit_weights(
            family / name, lambda tensors, to=dtype: tensors.update({key: each.to(getattr(torch, to)) for key, each in tensors.items()})
        )
    found = plan(TIES + (f"dtype: {asked}" if asked else ""), family)
    assert {each.dtype for each in found.tensors} == {expected}
    assert found.config["dtype"] == {"BF16": "bfloat16", "F32": "float32", "F16": "float16"}[expected]


def test_the_recipe_in_the_card_names_no_folder_of_this_machine(family):
    found = plan(TIES.replace("[a, b, base]", f"[{family}/a, b, base]"), family)
    assert str(family) not in found.recipe_text
    assert parse_merge_recipe(load_yaml(found.recipe_text, "card"), "card").labels == ["a", "b", "base"]
    moved = shutil.copytree(family, family.parent / "elsewhere")
    assert plan(TIES, moved).key == plan(TIES, family).key == found.key


def test_special_ids_are_those_of_the_model_that_gives_the_tokenizer(family):
    edit_config(family / "a", eos_token_id=5, pad_token_id=6, bos_token_id=...)
    edit_config(family / "base", eos_token_id=2, sep_token_id=7)
    (family / "a" / "generation_config.json").write_text('{"eos_token_id": [5, 8]}')
    found = plan(TIES + "tokenizer: a", family)
    assert {key: value for key, value in found.config.items() if key.endswith("_token_id")} == {"eos_token_id": 5, "pad_token_id": 6}
    assert "eos_token_id is 2 in base, 5 or 8 in a; the result has the latter" in found.warnings
    other = plan(TIES, family)
    assert (other.config["eos_token_id"], other.config["sep_token_id"]) == (2, 7)
    assert "eos_token_id is 5 or 8 in a, 2 in base; the result has the latter" in other.warnings


def test_other_chat_templates_are_a_warning(family):
    for name, template in (("a", "one"), ("base", "two")):
        (family / name / "chat_template.jinja").write_text(template)
    assert "the chat template of a is another than that of base, which the result has" in plan(TIES, family).warnings
    (family / "a" / "chat_template.jinja").write_text("two")
    assert not [line for line in plan(TIES, family).warnings if "template" in line]


def test_a_model_without_tokenizer_files_is_a_warning(family):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (family / "b" / name).unlink()
    expected = "b has no tokenizer files: that its tokens are those of base was judged by the number of rows alone"
    assert expected in plan(TIES, family).warnings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("{parameter: density, filter: self_atn, value: 0.5}", r"overrides: density \(filter self_atn\) speaks of no tensor of the result"),
        ("{parameter: weights, model: b, filter: nothing, value: 1}", r"weights \(model b, filter nothing\) speaks of no tensor"),
        ("{parameter: density, layers: [50, 60], value: 0.5}", r"density \(layers \[50, 60\]\) speaks of no tensor"),
        ("{parameter: scale, filter: lm_head, value: 2}", r"scale \(filter lm_head\) speaks of no tensor"),
        ("{parameter: density, value: 0.5}, {parameter: density, filter: mlp, value: 0.9}", r"density \(filter mlp\) is never reached"),
        ("{parameter: scale, filter: mlp, value: 2}, {parameter: scale, filter: mlp.up_proj, value: 3}", "mlp.up_proj.*never reached"),
    ],
)
def test_overrides_that_nothing_hears_are_refused_by_name(family, override, message):
    with pytest.raises(RecipeError, match=message):
        plan(TIES + f"overrides: [{override}]", family)


def test_overrides_of_a_slice_that_its_layers_do_not_hear_are_refused(family):
    text = SLICES + "    overrides: [{parameter: scale, filter: mlp, layers: [0, 2], value: 0.5}]\n"
    with pytest.raises(RecipeError, match=r"slices\.1\.overrides: scale \(filter mlp, layers \[0, 2\]\) speaks of no tensor"):
        plan(text, family)
    assert plan(text.replace("[0, 2]", "[3, 4]"), family)


def test_a_base_of_another_type_does_not_change_that_of_the_result(family):
    for name in ("a", "b"):
        edit_weights(family / name, lambda tensors: tensors.update({key: each.bfloat16() for key, each in tensors.items()}))
    found = plan(TIES, family)
    assert {each.dtype for each in found.tensors} == {"BF16"}
    assert f"{len(found.tensors)} tensors are BF16, F32 in the base; the result's are BF16" in found.notes


def test_the_configurations_type_is_that_of_most_numbers(family):
    """Not of most rows: a wide tensor counts for more than a long one."""
    for name in ("a", "b", "base"):
        edit_weights(
            family / name, lambda tensors: tensors.update({"model.wide": torch.zeros(2, 99_000), "model.long": torch.zeros(9_000).half()})
        )
        edit_weights(
            family / name, lambda tensors: tensors.update({key: each.half() for key, each in tensors.items() if key != "model.wide"})
        )
    found = plan(TIES, family)
    assert {each.dtype for each in found.tensors} == {"F16", "F32"}
    assert found.config["dtype"] == "float32"


def test_masks_that_models_compute_do_not_block(family):
    edit_weights(family / "a", lambda tensors: tensors.update(
        {"model.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool), "model.layers.0.attention.masked_bias": torch.tensor(-1e9)}
    ))  # fmt: skip
    found = plan(TIES, family)
    assert not [each.name for each in found.tensors if "attention.bias" in each.name or "masked_bias" in each.name]
    assert "a: left out model.layers.0.attention.masked_bias: models compute it themselves" in found.notes
    edit_weights(family / "a", lambda tensors: tensors.update({"model.layers.0.attention.bias": torch.ones(8)}))  # one that is learnt
    with pytest.raises(LmfuseError, match=r"attention\.bias is missing"):
        plan(TIES, family)


def test_the_same_model_twice_is_a_warning(family):
    shutil.copytree(family / "a", family / "c")
    found = plan("{models: [a, c], method: {name: linear}}", family)
    assert "a and c hold the same weights" in found.warnings


def test_the_chat_template_that_most_have(family):
    for name, template in (("a", "one"), ("b", "two"), ("base", "two")):
        (family / name / "chat_template.jinja").write_text(template)
    assert plan(TIES + "chat_template: auto", family).tokenizer_from == 2
    with pytest.raises(RecipeError, match="chat_template auto is that of b, the tokenizer comes from a"):
        plan(TIES + "chat_template: auto\ntokenizer: a", family)


def rename_architecture(folder: Path) -> None:
    edit_config(folder, model_type="mistral", architectures=["MistralForCausalLM"])


def transpose(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({UP: tensors[UP].T.contiguous()}))


def escape(folder: Path) -> None:
    write_index(folder, shard(folder) | {"model.norm.weight": "../../secret.safetensors"})


def lose(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop(UP))


def integers(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({UP: tensors[UP].to(torch.int8)}))


def other_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    vocabulary = state["model"]["vocab"]
    one, other = list(vocabulary)[300:302]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(state))


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rename_architecture, "a is a mistral, base a llama"),
        (transpose, f"a: tensor {UP} is transposed"),
        (escape, "points outside its folder"),
        (lose, f"a: tensor {UP} is missing"),
        (integers, f"tensor {UP} is I8"),
        (untie, "ties its output to its embedding"),
        (other_tokens, "a: token"),
        (lambda folder: edit_config(folder, num_attention_heads=8), "num_attention_heads is 8 in a, 4 in base"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (shutil.rmtree, "a"),
    ],
)
def test_models_that_do_not_fit_are_one_line_that_names_them(family, spoil, message):
    spoil(family / "a")
    with pytest.raises(LmfuseError) as found:
        plan(TIES, family)
    assert message in str(found.value)
    assert "\n" not in str(found.value)
    assert found.value.exit_code == 2


def test_two_stacks_of_layers_cannot_be_sliced(family):
    tensors = load_file(family / "a" / "model.safetensors")
    save_file(tensors | {"other.blocks.0.weight": torch.zeros(2)}, family / "a" / "model.safetensors", metadata={"format": "pt"})
    names = {"a": (*tensors, "other.blocks.0.weight"), "b": tuple(tensors)}
    with pytest.raises(RecipeError, match="2 stacks of layers"):
        list(origins(recipe(SLICES), names))


def test_numbers_that_cannot_be_name_the_tensor(family):
    text = "{models: [a, b], method: {name: linear, weights: [1, 2]}, overrides: [{parameter: weights, model: b, filter: layers.2., value: -1}]}"
    with pytest.raises(RecipeError, match=r"model\.layers\.2\.\S+: linear .*sum to 0"):
        plan(text, family)
