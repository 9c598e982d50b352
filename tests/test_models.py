"""Models: loaded whole or refused in one line; hidden states and head give the model's own logits."""

import os
from pathlib import Path

import pytest
import torch

from lmfuse import models
from lmfuse.errors import InputError, ModelError, ResourceError
from lmfuse.models import ModelSpec, inspect_model, load_model, load_tokenizer
from lmfuse.types import Document
from tests.fakes import KINDS, TEXT, byte_bpe, save_model
from tests.model_folders import edit_config, edit_weights, float32, poison, shard

torch.set_num_threads(1)
SIZE = byte_bpe().get_vocab_size()
SENTENCE = Document.plain("the dog sleeps on. 12 + 7 = 19")


@pytest.mark.parametrize("kind", KINDS)
def test_head_of_hidden_states_is_the_models_own_logits(kind, tmp_path):
    model = load_model(float32(save_model(tmp_path, KINDS[kind]())))
    ids = torch.tensor(model.tokenizer.encode(SENTENCE).ids[None].astype("int64"))
    with torch.no_grad():
        expected = model.module(input_ids=ids).logits[0]
        hidden = model.hidden(ids)
    assert hidden.shape == (1, ids.shape[1], 32)
    torch.testing.assert_close(model.head.logits(hidden[0]), expected[:, : model.tokenizer.vocabulary.size])
    assert not model.module.training
    assert (model.context, model.device.type, model.dtype) == (256, "cpu", torch.float32)


@pytest.mark.parametrize(("dtype", "type_"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_dtype_is_the_one_asked_for(folder, dtype, type_):
    model = load_model(ModelSpec(str(folder), dtype=dtype))
    assert {weight.dtype for weight in model.module.parameters()} == {type_}
    assert model.head.logits(model.hidden(torch.tensor([[1, 2]]))[0]).dtype == torch.float32


def test_right_padding_changes_nothing_before_it(folder):
    model = load_model(float32(folder))
    ids = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        alone = model.hidden(ids[1:, :3])
        for given in (mask, mask.bool(), None):
            torch.testing.assert_close(model.hidden(ids, given)[1:, :3], alone, rtol=1e-4, atol=1e-5)


def test_sharded_weights_are_the_same_weights(folder, whole):
    shard(folder)
    expected, found = load_model(float32(whole)), load_model(float32(folder))
    for (name, a), (_, b) in zip(expected.module.named_parameters(), found.module.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_rows_beyond_the_tokenizer_are_padding(folder):
    def pad(tensors):
        rows = tensors["model.embed_tokens.weight"]
        tensors["model.embed_tokens.weight"] = torch.cat([rows, torch.full((12, rows.shape[1]), 9.0)])

    edit_weights(folder, pad)
    edit_config(folder, vocab_size=SIZE + 12)
    model = load_model(float32(folder))
    assert model.head.logits(torch.ones(1, 32)).shape == (1, SIZE)
    assert inspect_model(float32(folder)).vocab_size == SIZE + 12


def test_a_tokenizer_with_more_ids_than_rows_is_refused(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:400].clone()}))
    edit_config(folder, vocab_size=400)
    for read in (inspect_model, load_model):
        with pytest.raises(ModelError, match=f"the tokenizer has {SIZE} ids, the model only 400 rows"):
            read(float32(folder))


def test_tokens_to_predict_are_counted(folder):
    model = load_model(float32(folder))
    rows = sum(int((model.tokenizer.encode(d).starts >= 0).sum()) for d in (SENTENCE, SENTENCE))
    assert model.count_tokens([SENTENCE, SENTENCE]) == rows


def test_tokenizer_alone(folder):
    assert load_tokenizer(ModelSpec(str(folder))).vocabulary.size == SIZE


WEIGHTS = [
    ("missing tensor", lambda f: edit_weights(f, lambda t: t.pop("model.norm.weight")), "1 missing tensors, first model.norm.weight"),
    ("missing head", lambda f: edit_config(f, tie_word_embeddings=False), "1 missing tensors, first lm_head.weight"),
    ("unexpected tensor", lambda f: edit_weights(f, lambda t: t.update(extra=torch.ones(2))), "1 unexpected tensors, first extra"),
    ("misshapen tensor", lambda f: edit_weights(f, lambda t: t.update({"model.norm.weight": torch.ones(31)})), r"norm.weight has shape \[31\], expected"),
    ("nan", poison(float("nan")), "tensor model.layers.1.mlp.up_proj.weight holds 1 values that are not finite"),
    ("infinity", poison(float("inf")), "tensor model.layers.1.mlp.up_proj.weight holds 1 values that are not finite"),
    ("impossible layers", lambda f: edit_config(f, num_attention_heads=5, head_dim=...), "(cannot be loaded|has shape|cannot be used)"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), [case[1:] for case in WEIGHTS], ids=[case[0] for case in WEIGHTS])
def test_weights_that_are_not_whole_are_refused(folder, spoil, message, capfd):
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(float32(folder))
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_weights_too_large_for_float16_are_refused_with_a_way_out(folder):
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(1e6))
    with pytest.raises(ModelError, match=r"not finite \(as float16\)") as caught:
        load_model(ModelSpec(str(folder), dtype="float16"))
    assert "bfloat16" in caught.value.hint
    assert load_model(ModelSpec(str(folder), dtype="bfloat16")).key


def test_buffers_of_older_versions_are_harmless(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert load_model(float32(folder)).key


def test_known_architectures_load_natively_even_if_they_bring_code(folder):
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_llama.Mine"})
    (folder / "modeling_llama.py").write_text("raise SystemExit('remote code ran')")
    assert type(load_model(float32(folder)).module).__module__.startswith("transformers.")


def test_memory_that_does_not_suffice_is_a_resource_error(folder, monkeypatch):
    monkeypatch.setattr(models, "available_memory", lambda: 1000)
    with pytest.raises(ResourceError, match="GiB are free"):
        load_model(float32(folder))
    monkeypatch.setattr(models, "available_memory", lambda: None)

    def exhausted(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(models, "_load_module", exhausted)
    with pytest.raises(ResourceError, match="out of memory: loading"):
        load_model(float32(folder))


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(folder, device):
    with pytest.raises(InputError, match=f"device '{device}' cannot be used"):
        load_model(float32(folder), device)


@pytest.mark.real
@pytest.mark.parametrize("name", ["stories15m", "smollm2", "gemma3"])
def test_real_models_give_their_own_logits(name):
    if not os.environ.get("LMFUSE_REAL_MODELS"):
        pytest.skip("set LMFUSE_REAL_MODELS to the folder of real models")
    model = load_model(float32(Path(os.environ["LMFUSE_REAL_MODELS"]) / name))
    ids = torch.tensor(model.tokenizer.encode(Document.plain("".join(TEXT))).ids[None, :100].astype("int64"))
    with torch.inference_mode():
        expected = model.module(input_ids=ids).logits[0, :, : model.head.vocab_size]
        torch.testing.assert_close(model.head.logits(model.hidden(ids)[0]), expected, rtol=1e-4, atol=1e-3)
