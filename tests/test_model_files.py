"""Bad folders: each is refused in one line, and before any weight is read."""

import shutil

import pytest
import torch

from lmfuse import models
from lmfuse.errors import ModelError
from lmfuse.model_files import local_folder
from lmfuse.models import ModelSpec, inspect_model, load_model
from tests.model_folders import (
    cut,
    duplicate,
    edit_config,
    float32,
    lie_about_shape,
    one_shard_lacks,
    pickle_only,
    shard,
    shard_missing,
    write_index,
)

torch.set_num_threads(1)


UNREAD = [  # must be refused by inspect_model already, before any weight is read
    ("no config", lambda f: (f / "config.json").unlink(), "config.json is missing"),
    ("broken config", lambda f: cut(f / "config.json", 0.5), "config.json is broken"),
    ("config no object", lambda f: (f / "config.json").write_text("[1]"), "holds a list, expected an object"),
    ("config not utf-8", lambda f: (f / "config.json").write_bytes(b"\xff{}"), "config.json is broken"),
    ("no model_type", lambda f: edit_config(f, model_type=...), "names no model_type"),
    ("unknown model_type", lambda f: edit_config(f, model_type="lama"), "unknown model_type 'lama'; did you mean 'llama'"),
    ("no language model", lambda f: edit_config(f, model_type="vit"), "model_type 'vit' has no causal language model"),
    ("encoder-decoder", lambda f: edit_config(f, model_type="t5", is_encoder_decoder=True), "'t5' is an encoder-decoder"),
    ("encoder-decoder by default", lambda f: edit_config(f, model_type="bart"), "'bart' is an encoder-decoder"),
    ("remote code", lambda f: edit_config(f, model_type="mine", auto_map={"AutoConfig": "m.C"}), "wants remote code .auto_map"),
    ("remote kernel", lambda f: edit_config(f, attn_implementation={"": "sdpa", "x": "who/kernel"}), "wants remote code .attn_impl"),
    ("impossible config", lambda f: edit_config(f, hidden_size="wide"), "config.json cannot be used"),
    ("quantized", lambda f: edit_config(f, quantization_config={"quant_method": "gptq", "bits": 4}), "is quantized .gptq"),
    ("adapter", lambda f: (f / "adapter_config.json").write_text("{}"), "is an adapter"),
    ("pickle only", pickle_only, "holds only pickled weights .pytorch_model.bin"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    ("truncated", lambda f: cut(f / "model.safetensors", 0.9), "model.safetensors is truncated: its header says"),
    ("truncated header", lambda f: cut(f / "model.safetensors", 0.001), "model.safetensors is truncated or no safetensors"),
    ("empty weights", lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is truncated or no safetensors"),
    ("weights with surplus", lambda f: (f / "model.safetensors").open("ab").write(b"more"), "bytes long, but its header says"),
    ("no safetensors", lambda f: (f / "model.safetensors").write_bytes(b"\x05" + bytes(7) + b"hello"), "broken safetensors header"),
    ("header lies", lie_about_shape, "99 values of F32 do not fill 128 bytes"),
    ("duplicate tensor", duplicate, "stands in model-00001-of-00002.safetensors and in"),
    ("shard lacks tensor", one_shard_lacks, "does not hold model.layers.9.weight"),
    ("shard missing", shard_missing, "is missing, but the index names it"),
    ("broken index", lambda f: (shard(f), cut(f / "model.safetensors.index.json", 0.5)), "index.json is broken"),
    ("empty index", lambda f: (shard(f), write_index(f, {})), "has no weight_map"),
    ("index names pickle", lambda f: write_index(f, shard(f) | {"x": "pytorch_model.bin"}), "is no .safetensors file"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), [case[1:] for case in UNREAD], ids=[case[0] for case in UNREAD])
def test_a_bad_folder_is_refused_before_weights_are_read(folder, spoil, message, monkeypatch):
    spoil(folder)
    monkeypatch.setattr(models, "_load_module", lambda *_: pytest.fail("weights were read"))
    for read in (inspect_model, load_model):
        with pytest.raises(ModelError, match=message) as caught:
            read(float32(folder))
        assert "\n" not in str(caught.value)
        assert (bool(caught.value.hint), caught.value.exit_code) == (True, 2)


@pytest.mark.parametrize(
    "name", ["../stolen.safetensors", "/etc/stolen.safetensors", "a/../../stolen.safetensors", "..\\stolen.safetensors"]
)
def test_an_index_that_points_outside_is_refused(folder, name):
    weight_map = shard(folder)
    for place in ((folder / name).resolve(), folder.parent / "stolen.safetensors"):
        if place.is_relative_to(folder.parent):
            shutil.copy(folder / min(weight_map.values()), place)
    write_index(folder, {tensor: name if file == min(weight_map.values()) else file for tensor, file in weight_map.items()})
    with pytest.raises(ModelError, match="points outside its folder"):
        inspect_model(ModelSpec(str(folder)))


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused_except_into_the_hubs_blobs(folder, tmp_path):
    first = min(shard(folder).values())
    hub = tmp_path / "models--a--b"
    (hub / "blobs").mkdir(parents=True)
    shutil.move(folder / first, hub / "blobs" / "0123")
    (folder / first).symlink_to(hub / "blobs" / "0123")
    with pytest.raises(ModelError, match="points outside its folder"):
        inspect_model(ModelSpec(str(folder)))
    (hub / "snapshots").mkdir()
    moved = folder.rename(hub / "snapshots" / "main")
    assert inspect_model(ModelSpec(str(moved))).parameters


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "with space"])
def test_what_is_neither_folder_nor_hub_name_is_refused_without_asking_the_hub(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match="neither a folder nor a hub name"):
        local_folder(ModelSpec(name))


def test_hub_names_fetch_weights_and_tokenizer_but_no_code(whole, monkeypatch):
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(whole)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert local_folder(ModelSpec("owner/name", revision="v1")) == whole
    from fnmatch import fnmatch

    def wanted(file: str) -> bool:
        matches = [any(fnmatch(file, pattern) for pattern in asked[kind]) for kind in ("allow_patterns", "ignore_patterns")]
        return matches[0] and not matches[1]

    assert (asked["name"], asked["revision"]) == ("owner/name", "v1")
    assert all(map(wanted, ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "README.md"]))
    assert not any(map(wanted, ["modeling.py", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors", "model.gguf"]))


def test_hub_failures_are_one_line(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match=r"cannot be fetched: no route$"):
        local_folder(ModelSpec("owner/name"))


def test_a_folder_has_no_revision(folder):
    with pytest.raises(ModelError, match="is a folder, but revision 'v1'"):
        local_folder(ModelSpec(str(folder), revision="v1"))


def test_spec_is_strict():
    with pytest.raises(ValueError, match="trust_remote_code"):
        ModelSpec(model="a", trust_remote_code=True)
    with pytest.raises(ValueError, match="dtype"):
        ModelSpec(model="a", dtype="int4")
    assert ModelSpec("owner/Name-1B").label == "Name-1B"
    assert ModelSpec("owner/Name-1B", name="teacher").label == "teacher"
