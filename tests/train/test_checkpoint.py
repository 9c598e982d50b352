import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close

from lmfuse.errors import InputError, ResourceError, VerificationError
from lmfuse.models import ModelSpec, load_model
from lmfuse.train import checkpoint
from lmfuse.train.checkpoint import load_checkpoint, save_checkpoint, save_model
from lmfuse.train.loop import adamw
from tests.train.setups import quick, tiny, weights_of


def stepped(folder, seed=0):
    """Return a model and an optimizer that has taken a step."""
    model = tiny(folder, seed=seed)
    optimizer = adamw(model.module, quick())
    sum(p.square().sum() for p in model.module.parameters()).backward()
    optimizer.step()
    return model, optimizer


def test_what_is_saved_comes_back(tmp_path):
    model, optimizer = stepped(tmp_path / "model")
    path = save_checkpoint(tmp_path / "run", 7, model.module, optimizer, {"step": 7, "loss": 0.1 + 0.2}, run="a")
    assert path.name == "step-00000007"
    other = tiny(tmp_path / "model", seed=1)
    fresh = adamw(other.module, quick())
    assert load_checkpoint(tmp_path / "run", other.module, fresh, run="a") == {"step": 7, "loss": 0.1 + 0.2}
    for p, q in zip(model.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(p, q)
        for moment in checkpoint.MOMENTS:
            assert torch.equal(optimizer.state[p][moment], fresh.state[q][moment])


def test_only_the_newest_is_kept_and_read(tmp_path):
    model, optimizer = stepped(tmp_path / "model")
    for step in (9, 10, 100):
        save_checkpoint(tmp_path / "run", step, model.module, optimizer, {"step": step}, run="a")
        assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    assert load_checkpoint(tmp_path / "run", model.module, optimizer, run="a") == {"step": 100}


def test_nothing_saved_and_half_saved_are_no_checkpoint(tmp_path):
    model, optimizer = stepped(tmp_path / "model")
    assert load_checkpoint(tmp_path / "run", model.module, optimizer, run="a") is None
    path = save_checkpoint(tmp_path / "run", 1, model.module, optimizer, {}, run="a")
    (path / "manifest.json").unlink()
    assert load_checkpoint(tmp_path / "run", model.module, optimizer, run="a") is None


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_found(tmp_path, name):
    model, optimizer = stepped(tmp_path / "model")
    path = save_checkpoint(tmp_path / "run", 1, model.module, optimizer, {}, run="a")
    data = bytearray((path / name).read_bytes())
    data[-1] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(VerificationError, match=name):
        load_checkpoint(tmp_path / "run", model.module, optimizer, run="a")


def test_another_runs_checkpoint_and_another_models(tmp_path):
    model, optimizer = stepped(tmp_path / "model")
    save_checkpoint(tmp_path / "run", 1, model.module, optimizer, {}, run="a")
    with pytest.raises(InputError, match="another run"):
        load_checkpoint(tmp_path / "run", model.module, optimizer, run="b")
    with pytest.raises(VerificationError, match="other names"):
        load_checkpoint(tmp_path / "run", model.module.model, optimizer, run="a")


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    model, optimizer = stepped(tmp_path / "model")
    save_checkpoint(tmp_path / "run", 1, model.module, optimizer, {"step": 1}, run="a")

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ResourceError, match="no space"):
        save_checkpoint(tmp_path / "run", 2, model.module, optimizer, {"step": 2}, run="a")
    assert load_checkpoint(tmp_path / "run", model.module, optimizer, run="a") == {"step": 1}


# ------------------------------------------------------------------------------------------------------------- the finished model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_loads_again_as_it_was(tmp_path, dtype):
    model = tiny(tmp_path / "model", tokenizer="metaspace_bpe")
    (tmp_path / "model" / "LICENSE").write_text("free")
    (tmp_path / "model" / "README.md").write_text("the card of the model before")
    save_model(model, tmp_path / "out", dtype=dtype, source=tmp_path / "model")
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    again = load_model(ModelSpec(model=str(tmp_path / "out"), dtype="float32"))
    assert again.tokenizer.key == model.tokenizer.key
    for name, weight in weights_of(model).items():
        assert_close(weights_of(again)[name], weight.to(getattr(torch, dtype)).float(), rtol=0, atol=0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == dtype
    assert {k: v for k, v in config.items() if k != "dtype"} == {
        k: v for k, v in json.loads((tmp_path / "model" / "config.json").read_text()).items() if k != "dtype"
    }
    assert (tmp_path / "out" / "LICENSE").read_text() == "free"
    assert not (tmp_path / "out" / "README.md").exists()


def test_tied_weights_are_written_once_and_the_rest_in_one_type(tmp_path):
    model = tiny(tmp_path / "model")
    save_model(model, tmp_path / "out", dtype="bfloat16", source=tmp_path / "model")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in saved
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_saving_twice_gives_the_same_bytes(tmp_path):
    model = tiny(tmp_path / "model")
    for name in ("a", "b"):
        save_model(model, tmp_path / name, dtype="bfloat16", source=tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= files.keys()


def test_old_and_nested_configurations_say_the_new_type(tmp_path):
    config = {"torch_dtype": "float32", "model_type": "gemma3", "text_config": {"torch_dtype": "float32", "hidden": 3}, "rope": {"a": 1}}
    assert checkpoint._with_dtype(config, "bfloat16") == {
        "model_type": "gemma3", "dtype": "bfloat16", "text_config": {"hidden": 3, "dtype": "bfloat16"}, "rope": {"a": 1},
    }  # fmt: skip
