"""What cannot be merged is said in one line before a byte is written: model, tensor, what was found, what expected."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmfuse.errors import InputError, ModelError
from lmfuse.merge.linear import Linear
from lmfuse.merge.slerp import Slerp
from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.weights.check import check_models, check_plan
from lmfuse.weights.engine import execute
from lmfuse.weights.plan import MergePlan, OutputTensor, TensorRef
from tests.fakes import byte_bpe, save_model
from tests.model_folders import edit_config, edit_weights, shard
from tests.weights.plans import family, fine_tune, opened, plan_of

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folders(tmp_path):
    return family(tmp_path / "models")


def refused(folders, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        check_models(opened(folders))
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_models_of_one_architecture_agree(folders):
    shard(folders[1], 3)
    found = check_models(opened(folders))
    assert set(found.names) == set(load_file(folders[0] / "model.safetensors"))
    assert (found.notes, found.warnings) == ((), ())


def test_another_architecture(folders):
    edit_config(folders[2], model_type="qwen2")
    refused(folders, r"^tune-2 is a qwen2, base a llama \(model_type\)$")


@pytest.mark.parametrize(("key", "value"), [("num_attention_heads", 8), ("num_hidden_layers", 3), ("intermediate_size", 99)])
def test_other_sizes(folders, key, value):
    edit_config(folders[1], **{key: value})
    refused(folders, rf"^{key} is {value} in tune-1, \d+ in base \(config\.json\)$")


def test_differences_that_weights_do_not_show_are_warned_about(folders):
    edit_config(folders[1], rope_parameters={"rope_theta": 5e5, "rope_type": "default"}, rms_norm_eps=1e-5, max_position_embeddings=512)
    edit_config(folders[2], bos_token_id=7, use_cache=False, initializer_range=1.0, dtype="float16", unsloth_fixed=True)
    assert check_models(opened(folders)).warnings == (
        "max_position_embeddings is 512 in tune-1, 256 in base; the result has the latter",
        "rms_norm_eps is 1e-05 in tune-1, 1e-06 in base; the result has the latter",
        "rope_parameters.rope_theta is 500000.0 in tune-1, 10000.0 in base; the result has the latter",
    )


def test_old_and_new_ways_to_write_a_configuration_are_the_same(folders):
    edit_config(folders[1], rope_parameters=..., rope_theta=10000.0, dtype=..., torch_dtype="float32", head_dim=...)
    assert check_models(opened(folders)).warnings == ()


def test_a_transposed_tensor_is_recognised(folders):
    edit_weights(folders[1], lambda tensors: tensors.update({UP: tensors[UP].T.contiguous()}))
    refused(folders, rf"^tune-1: tensor {UP} is transposed: it has shape \[32, 64\], in base it has \[64, 32\]$")


def test_another_shape(folders):
    edit_weights(folders[1], lambda tensors: tensors.update({UP: tensors[UP][:60].contiguous()}))
    refused(folders, rf"^tune-1: tensor {UP} has shape \[60, 32\], in base it has \[64, 32\]$")


def test_names_that_one_side_lacks(folders):
    edit_weights(folders[1], lambda tensors: tensors.pop(UP))
    refused(folders, rf"^tune-1: tensor {UP} is missing, base has it$")
    edit_weights(folders[1], lambda tensors: tensors.pop("model.norm.weight"))
    refused(folders, rf"^tune-1: tensor {UP} and 1 more is missing, base has it$")


def test_a_name_that_only_one_has(folders):
    edit_weights(folders[2], lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)}))
    refused(folders, r"^base: tensor model\.extra\.weight is missing, tune-2 has it$")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.int32])
def test_types_that_cannot_be_merged(folders, dtype):
    edit_weights(folders[1], lambda tensors: tensors.update({UP: tensors[UP].to(dtype)}))
    refused(folders, rf"^tune-1: tensor {UP} is (F64|F8_E4M3|I32), expected one of F32, F16, BF16$")


def untie(folder) -> None:
    edit_config(folder, tie_word_embeddings=False)
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}))


def test_tied_and_untied_mixed(folders):
    untie(folders[1])
    refused(folders, r"^base ties its output to its embedding, tune-1 has a tensor of its own for it$")
    untie(folders[0])
    refused(folders, r"^tune-2 ties its output to its embedding, base has a tensor of its own for it$")
    untie(folders[2])
    assert "lm_head.weight" in check_models(opened(folders)).names


def test_a_tied_head_that_is_stored_all_the_same(folders):
    edit_weights(folders[1], lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    found = check_models(opened(folders))
    assert "lm_head.weight" not in found.names
    assert found.notes == ("tune-1: left out lm_head.weight: it is tied to the embedding",)
    edit_weights(folders[1], lambda tensors: tensors["lm_head.weight"].add_(1))
    refused(folders, r"^tune-1: config\.json ties lm_head\.weight to model\.embed_tokens\.weight, but they differ$")


def test_ties_that_a_configuration_leaves_to_its_class(folders):
    """Llamas are not tied by default: a folder that does not say so and has no head of its own is not like the others."""
    edit_config(folders[2], tie_word_embeddings=...)
    refused(folders, r"^base ties its output to its embedding, tune-2 has a tensor of its own for it$")


def test_what_models_compute_is_left_out(folders):
    edit_weights(folders[0], lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    found = check_models(opened(folders))
    assert not [name for name in found.names if "inv_freq" in name]
    assert found.notes == ("base: left out model.layers.0.self_attn.rotary_emb.inv_freq: models compute it themselves",)


def test_layers_may_differ_where_they_are_picked(tmp_path, folders):
    deep = save_model(tmp_path / "deep", byte_bpe(), layers=3)
    refused([folders[0], deep], r"^num_hidden_layers is 3 in deep, 2 in base")
    assert check_models(opened([folders[0], deep]), layers_may_differ=True).warnings == ()
    edit_weights(deep, lambda tensors: tensors.update({"model.norm.weight": torch.ones(5)}))
    with pytest.raises(ModelError, match=r"^deep: tensor model\.norm\.weight has shape \[5\], in base it has \[32\]$"):
        check_models(opened([folders[0], deep]), layers_may_differ=True)


def tensor(name: str, *refs: TensorRef, shape=(64, 32), dtype="F32", method=None, base=None) -> OutputTensor:
    return OutputTensor(name, shape, dtype, method or Linear(), refs, base)


PLANS = [
    ([tensor(UP, TensorRef(0, UP)), tensor(UP, TensorRef(1, UP))], InputError, rf"the result would hold tensor {UP} twice"),
    ([tensor(UP, TensorRef(0, UP), method=Slerp())], InputError, rf"{UP}: slerp: 1 source, expected 2"),
    ([tensor(UP, TensorRef(0, UP), method=TaskArithmetic())], InputError, rf"{UP}: task_arithmetic: no base model, expected one"),
    ([tensor(UP, TensorRef(1, "model.nothing"))], ModelError, r"tune-1: tensor model\.nothing is missing"),
    (
        [tensor(UP, TensorRef(1, UP), shape=(32, 64))],
        ModelError,
        r"is transposed: it has shape \[64, 32\], in the result it has \[32, 64\]",
    ),
    ([tensor(UP, TensorRef(1, UP), dtype="F64")], ModelError, rf"tune-1: tensor {UP} is F32, the result's F64"),
    ([tensor(UP, TensorRef(1, UP, (0, 64)), shape=(2, 32))], ModelError, rf"tensor {UP} has 64 rows, row 64 was asked for"),
]


@pytest.mark.parametrize(("tensors", "kind", "message"), PLANS, ids=[message for *_, message in PLANS])
def test_plans_that_contradict_themselves(folders, tmp_path, tensors, kind, message):
    plan = MergePlan(opened(folders), tuple(tensors), {})
    with pytest.raises(kind, match=message):
        check_plan(plan)
    with pytest.raises(kind, match=message):
        execute(plan, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_the_same_model_may_come_twice(folders, tmp_path):
    fine_tune(folders[0], tmp_path / "models" / "again", 1)
    found = execute(plan_of([folders[0], folders[1], tmp_path / "models" / "again"], Linear()), tmp_path / "out")
    assert found.counters == {}


def test_weights_that_were_saved_with_other_names_of_types(folders):
    save_file(load_file(folders[1] / "model.safetensors"), folders[1] / "model.safetensors")  # without metadata
    assert check_models(opened(folders)).names
