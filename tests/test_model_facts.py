"""Facts about models, known before any weight is read."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from lmfuse import model_facts
from lmfuse.models import ModelSpec, inspect_model, load_model
from tests.fakes import byte_bpe
from tests.model_folders import edit_config, edit_weights, float32

torch.set_num_threads(1)
SIZE = byte_bpe().get_vocab_size()


def test_facts_by_hand(folder):
    facts = inspect_model(ModelSpec(str(folder)))
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32  # q and o, k and v, gate up and down, two norms
    assert facts.parameters == SIZE * 32 + 2 * block + 32
    assert (facts.architecture, facts.context, facts.hidden_size, facts.num_layers) == ("LlamaForCausalLM", 256, 32, 2)
    assert (facts.vocab_size, facts.tokenizer_size, facts.dtype, facts.licence) == (SIZE, SIZE, "F32", "")
    assert facts.bytes_on_disk == (folder / "model.safetensors").stat().st_size


def test_key_follows_content_and_nothing_else(folder, whole, tmp_path):
    key = inspect_model(ModelSpec(str(whole))).key
    assert inspect_model(ModelSpec(str(folder))).key == key == load_model(float32(folder)).key
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].mul_(1.5))
    assert inspect_model(ModelSpec(str(folder))).key != key
    other = Path(shutil.copytree(whole, tmp_path / "other"))
    edit_config(other, rms_norm_eps=1e-3)
    assert inspect_model(ModelSpec(str(other))).key != key
    cut = Path(shutil.copytree(whole, tmp_path / "cut"))  # the same weights behind a tokenizer that cuts elsewhere
    state = json.loads((cut / "tokenizer.json").read_text(encoding="utf-8"))
    state["model"]["merges"] = state["model"]["merges"][:-1]
    (cut / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    assert inspect_model(ModelSpec(str(cut))).key != key


def test_hash_of_a_large_file_is_remembered_until_it_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(model_facts, "WORTH_CACHING", 1)
    cache, spec = tmp_path / "cache", ModelSpec(str(folder))
    key = inspect_model(spec, cache).key
    (remembered,) = (cache / "hashes").iterdir()
    remembered.write_text("0" * 64)
    assert inspect_model(spec, cache).key != key, "what was remembered is used"
    state = (folder / "model.safetensors").stat()
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].mul_(1.5))
    os.utime(folder / "model.safetensors", ns=(state.st_atime_ns, state.st_mtime_ns))
    changed = inspect_model(spec, cache).key
    assert changed != key
    assert len(list((cache / "hashes").iterdir())) == 2
    assert changed == inspect_model(spec, tmp_path / "elsewhere").key
    (tmp_path / "file").write_text("no folder")
    assert changed == inspect_model(spec, tmp_path / "file").key, "a cache that cannot be written costs time only"


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("README.md", "---\nlanguage: en\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("README.md", "---\nlicense: other\nlicense_name: 'tiny-1.0'\n---\n", "tiny-1.0"),
        ("README.md", "# license: mit", ""),
        ("LICENSE", "\n  MIT License\n\nCopyright", "MIT License"),
    ],
)
def test_licence_is_read_from_the_folder(folder, name, text, licence):
    (folder / name).write_text(text)
    assert inspect_model(ModelSpec(str(folder))).licence == licence


def test_context_of_recurrent_models_is_unlimited():
    from transformers import MambaConfig, OPTConfig

    assert model_facts.context_of(MambaConfig()) == model_facts.UNLIMITED_CONTEXT
    assert model_facts.context_of(OPTConfig(max_position_embeddings=64)) == 64
