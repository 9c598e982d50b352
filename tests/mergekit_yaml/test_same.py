"""The same file, merged by mergekit 0.1.5 and by us: the same tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer

from tests.mergekit_yaml.oracle import mergekit, model_family, tensors_of
from tests.model_folders import edit_config, edit_weights
from tests.runs import lmfuse


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """A base of 4 layers, two models near it, and one that has nothing to do with it."""
    folder = model_family(tmp_path_factory.mktemp("family"), ["a", "b"])
    shutil.copytree(folder / "base", folder / "far")
    torch.manual_seed(99)
    edit_weights(folder / "far", lambda tensors: [each.copy_(torch.randn(each.shape) * 0.2) for each in tensors.values()])
    return folder


def ours(text: str, folder: Path) -> dict[str, torch.Tensor]:
    (folder / "merge.yml").write_text(text)
    code, said = lmfuse("merge", folder / "merge.yml", folder / "ours", "--cache", folder / "cache")
    assert code == 0, said
    return tensors_of(folder / "ours")


def assert_same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], relative: float) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype
        worst = float((mine[name].double() - tensor.double()).abs().max())
        assert worst <= relative * float(tensor.double().abs().max()), (name, worst)


MODELS = "models:\n  - {model: F/a, parameters: {weight: 0.3}}\n  - {model: F/b, parameters: {weight: [0.2, 0.9, 0.1]}}\n"
NEAR = MODELS + "base_model: F/base\n"
PAIR = "  - sources:\n      - {model: F/base, layer_range: [0, 4]}\n      - {model: F/%s, layer_range: [0, 4]}\n"
GRADIENT = (
    "parameters: {t: [{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}, {value: 0.5}]}\n"
)

FILES = {
    "linear": MODELS + "merge_method: linear",
    "linear, not normalised": MODELS + "merge_method: linear\nparameters: {normalize: false}",
    "linear with a base that is averaged too": NEAR + "merge_method: linear\nparameters: {weight: [{filter: mlp, value: 2}, {value: 1}]}",
    "linear, filters": """
models:
  - model: F/a
    parameters: {weight: [{filter: layers.1., value: 0.9}, {filter: mlp, value: [0.1, 0.8]}, {value: 0.5}]}
  - model: F/b
    parameters: {weight: [{filter: norm, value: 0.0}, {value: 0.5}]}
merge_method: linear""",
    "slerp, far": "slices:\n" + PAIR % "far" + "base_model: F/base\nmerge_method: slerp\n" + GRADIENT,
    "slerp, the base last": "models: [{model: F/far}, {model: F/base}]\nbase_model: F/base\nmerge_method: slerp\nparameters: {t: 0.1}",
    "multislerp": MODELS + "  - {model: F/far, parameters: {weight: 0.2}}\nmerge_method: multislerp",
    "multislerp around a base": NEAR + "merge_method: multislerp\nparameters: {normalize_weights: false}",
    "task arithmetic": NEAR + "merge_method: task_arithmetic\nparameters: {lambda: [0.5, 1.5]}",
    "task arithmetic, normalised": NEAR + "merge_method: task_arithmetic\nparameters: {normalize: true}",
    "ties": NEAR + "merge_method: ties\nparameters: {density: [{filter: mlp, value: [0.2, 0.7]}, {value: 0.4}]}",
    "ties, not normalised": NEAR + "merge_method: ties\nparameters: {density: 0.4, normalize: false, lambda: 0.7, int8_mask: true}",
    "sce": "models: [{model: F/a}, {model: F/b}]\nbase_model: F/base\nmerge_method: sce\nparameters: {select_topk: 0.3}",
    "sce, everything": "models: [{model: F/a}, {model: F/b}]\nbase_model: F/base\nmerge_method: sce\nparameters: {int8_mask: true}",
    "model stock": "models: [{model: F/a}, {model: F/b}, {model: F/far}]\nbase_model: F/base\nmerge_method: model_stock",
    "dare, nothing dropped": NEAR + "merge_method: dare_ties\nparameters: {density: 1.0}",
    "della, nothing dropped": NEAR + "merge_method: della_linear\nparameters: {lambda: 1.1}",
    "della ties, nothing dropped": NEAR + "merge_method: della\nparameters: {density: 1}",
    "dare, everything dropped": NEAR + "merge_method: dare_linear\nparameters: {density: 0.0}",
    "layers from three models": """
slices:
  - sources: [{model: F/a, layer_range: [0, 3]}]
  - sources: [{model: F/b, layer_range: [1, 3], parameters: {scale: [{filter: o_proj, value: 0.0}, {value: [1.0, 0.5]}]}}]
  - sources: [{model: F/far, layer_range: [3, 4]}]
merge_method: passthrough""",
    "layers of different places averaged": """
slices:
  - sources:
      - {model: F/a, layer_range: [0, 2], parameters: {weight: [{filter: layers.0, value: 3}, {value: 1}]}}
      - {model: F/b, layer_range: [2, 4], parameters: {weight: [{filter: layers.2, value: 2}, {value: 1}]}}
  - sources: [{model: F/b, layer_range: [0, 4]}]
parameters: {weight: 1}
merge_method: linear""",
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_tensors(name, family, tmp_path):
    text = FILES[name].replace("F/", f"{family}/") + "\ndtype: float32\n"
    assert_same(ours(text, tmp_path), mergekit(text, tmp_path / "theirs"), 1e-6)


def test_karcher_goes_on_where_mergekit_stops(family, tmp_path):
    text = f"models: [{{model: {family}/a}}, {{model: {family}/b}}, {{model: {family}/far}}]\nmerge_method: karcher\n"
    assert_same(ours(text, tmp_path), mergekit(text + "parameters: {max_iter: 100, tol: 1.0e-9}\n", tmp_path / "theirs"), 1e-5)


def test_slerp_of_near_models_differs_by_what_the_note_says(family, tmp_path):
    text = f"models: [{{model: {family}/a}}, {{model: {family}/base}}]\nbase_model: {family}/base\nmerge_method: slerp\nparameters: {{t: 0.5}}\n"
    assert_same(ours(text, tmp_path), mergekit(text, tmp_path / "theirs"), 1.3e-4)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_methods_keep_the_same_share_and_size(method, family, tmp_path):
    text = f"models: [{{model: {family}/a}}]\nbase_model: {family}/base\nmerge_method: {method}\nparameters: {{weight: 1, density: 0.4}}\ndtype: float32\n"
    base, name = tensors_of(family / "base"), "model.embed_tokens.weight"
    changes = [each[name] - base[name] for each in (ours(text, tmp_path), mergekit(text, tmp_path / "theirs"))]
    kept = [float((each != 0).float().mean()) for each in changes]
    assert abs(kept[0] - kept[1]) < 0.03
    assert abs(kept[0] - 0.4) < 0.03
    sizes = [float(each.abs().sum()) for each in changes]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-5), "both keep the L1 norm of the change"


def test_float32_arithmetic_and_one_rounding(family, tmp_path):
    text = NEAR.replace("F/", f"{family}/") + "merge_method: ties\nparameters: {density: 0.4}\ndtype: float32\nout_dtype: bfloat16\n"
    mine, theirs = ours(text, tmp_path), mergekit(text, tmp_path / "theirs")
    assert_same(mine, theirs, 2**-8)
    different = sum(int((mine[name] != tensor).sum()) for name, tensor in theirs.items())
    assert different <= 1e-3 * sum(tensor.numel() for tensor in theirs.values())


def test_models_with_an_output_of_their_own(tmp_path):
    family = model_family(tmp_path, ["a", "b"], tied=False)
    text = NEAR.replace("F/", f"{family}/") + "merge_method: ties\nparameters: {density: 0.4}\n"
    mine = ours(text, tmp_path)
    assert "lm_head.weight" in mine
    assert_same(mine, mergekit(text, tmp_path / "theirs"), 1e-6)


def add_token(folder: Path, token: str) -> None:
    """Give a model one more token and one more row."""
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(token, special=True)])
    tokenizer.save(str(path))
    rows = tokenizer.get_vocab_size()

    def widen(tensors):
        old = tensors["model.embed_tokens.weight"]
        tensors["model.embed_tokens.weight"] = torch.cat([old, torch.full((rows - len(old), old.shape[1]), 0.5)])

    edit_weights(folder, widen)
    edit_config(folder, vocab_size=rows)


def test_united_vocabularies(family, tmp_path):
    for name, token in (("a", "<|one|>"), ("b", "<|two|>")):
        shutil.copytree(family / name, tmp_path / name)
        add_token(tmp_path / name, token)
    text = f"models: [{{model: {tmp_path}/a}}, {{model: {tmp_path}/b}}]\nbase_model: {family}/base\nmerge_method: task_arithmetic\n"
    text += "parameters: {weight: 0.5}\ntokenizer_source: union\ndtype: float32\n"
    mine, theirs = ours(text, tmp_path), mergekit(text, tmp_path / "theirs")
    ids = [Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")).get_vocab() for name in ("ours", "theirs")]
    assert ids[0].keys() == ids[1].keys()
    name = "model.embed_tokens.weight"
    for token in ids[0]:
        torch.testing.assert_close(mine[name][ids[0][token]], theirs[name][ids[1][token]], msg=token)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["vocab_size"] == len(mine[name])
    assert_same({key: each for key, each in mine.items() if key != name}, {key: each for key, each in theirs.items() if key != name}, 1e-6)


def test_written_for_mergekit_it_is_the_same_merge(family, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"""
models: [{family}/a, {family}/b, {family}/base]
base: base
method: {{name: ties, weights: [0.7, 0.3], density: 0.5}}
dtype: float32
overrides: [{{parameter: density, filter: mlp, gradient: [0.2, 0.8]}}, {{parameter: weights, model: a, filter: attn, value: 0.1}}]
""")
    assert (
        lmfuse("merge", tmp_path / "recipe.yaml", tmp_path / "ours", "--to-mergekit", tmp_path / "theirs.yml", "--cache", tmp_path / "c")[0]
        == 0
    )
    assert_same(tensors_of(tmp_path / "ours"), mergekit((tmp_path / "theirs.yml").read_text(), tmp_path / "theirs"), 1e-6)


def test_the_same_layers_stand_before_and_behind_the_stack_as_in_mergekit():
    pytest.importorskip("mergekit")
    from mergekit.architecture.json_definitions import JSON_ARCHITECTURES

    from lmfuse.merge_recipe.layers import _BEFORE

    for architecture in JSON_ARCHITECTURES:
        if not all(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architecture.architectures):
            continue
        for module in architecture.modules.values():
            definition = module.architecture.definition
            assert [each.name for each in definition.pre_weights if not _BEFORE.search(each.name)] == []
            assert [each.name for each in definition.post_weights if _BEFORE.search(each.name)] == []
