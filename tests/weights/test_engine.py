"""Merges from folder to folder: what every tensor is, that threads and interruptions leave no trace, and what is refused."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmfuse.artefacts import verify
from lmfuse.errors import BusyError, InputError, ModelError, VerificationError
from lmfuse.locks import lock
from lmfuse.merge.linear import Linear
from lmfuse.merge.passthrough import Passthrough
from lmfuse.merge.sce import Sce
from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.merge.ties import Ties
from lmfuse.merge.varm import Varm
from lmfuse.merge.whole import merge_models
from lmfuse.weights.engine import execute
from tests.fakes import byte_bpe, save_model
from tests.model_folders import edit_config, edit_weights, poison, shard
from tests.weights.plans import METHODS, SEVERAL_PIECES, contents, family, fine_tune, plan_of, weights


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A base and two fine-tunes, with tensors of several pieces."""
    return family(tmp_path_factory.mktemp("large"), hidden=SEVERAL_PIECES)


@pytest.fixture
def small(tmp_path):
    return family(tmp_path / "models")


@pytest.mark.parametrize(("method", "base"), METHODS, ids=lambda value: repr(value)[:60])
def test_every_tensor_is_what_the_method_makes_of_the_whole_tensors(large, tmp_path, method, base):
    """The engine's pieces, threads and sums against the same method over tensors in memory, bit for bit."""
    folders = large if base is not None else large[1:]
    execute(plan_of(folders, method, base=base), tmp_path / "out", threads=3)
    models = [weights(folder) for folder in folders]
    sources = [model for index, model in enumerate(models) if index != base]
    expected = merge_models(method, sources, None if base is None else models[base])
    found = weights(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_numbers_by_hand(small, tmp_path):
    """Weights 1 and 3 of the values 8 and 4 are a quarter and three quarters: 5."""
    for folder, value in zip(small[1:], (8.0, 4.0), strict=True):
        edit_weights(folder, lambda tensors, value=value: [tensor.fill_(value) for tensor in tensors.values()])
    execute(plan_of(small[1:], Linear(weights=(1, 3))), tmp_path / "out")
    assert all(bool((tensor == 5).all()) for tensor in weights(tmp_path / "out").values())


def test_the_result_loads_and_speaks(small, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for folder in small:
        (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    shard(small[1], 3)
    execute(plan_of(small, Ties(), base=0, dtype="BF16", max_shard_bytes=40_000), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert next(model.parameters()).dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "The quick"}], return_tensors="pt", return_dict=True)
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] == ids["input_ids"].shape[1] + 3


def test_it_is_an_artefact_that_says_what_it_was_made_of(small, tmp_path):
    (small[1] / "README.md").write_text("---\nlicense: mit\n---\n")
    plan = plan_of(small, Varm(), base=0, notes=("a note",))
    merged = execute(plan, tmp_path / "out")
    manifest = verify(tmp_path / "out")
    assert sorted(manifest.files) == sorted(set(contents(tmp_path / "out")) - {"manifest.json"})
    assert manifest.provenance["plan"] == plan.key
    assert [model["licence"] for model in manifest.provenance["models"]] == ["", "mit", ""]
    assert merged.counters == manifest.counters
    assert merged.bytes_read == 3 * merged.bytes_written
    card = (tmp_path / "out" / "README.md").read_text()
    assert "a note" in card
    assert all(model.key in card for model in plan.models)
    assert str(tmp_path) not in "".join(path.read_text(errors="ignore") for path in (tmp_path / "out").iterdir())


def test_types_in_and_out(small, tmp_path):
    """float16 and bfloat16 in, merged in float32 and rounded once."""
    for folder, dtype in zip(small[1:], (torch.float16, torch.bfloat16), strict=True):
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    one, other = (weights(folder) for folder in small[1:])
    for dtype, kind in (("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)):
        execute(plan_of(small[1:], Linear(), dtype=dtype), tmp_path / dtype)
        found = weights(tmp_path / dtype)
        expected = merge_models(Linear(), [{n: t.float() for n, t in model.items()} for model in (one, other)])
        assert all(torch.equal(found[name], expected[name].to(kind)) for name in found)
        assert json.loads((tmp_path / dtype / "config.json").read_text())["dtype"] == str(kind).removeprefix("torch.")


def test_a_value_too_large_for_the_type_is_refused(small, tmp_path):
    edit_weights(small[1], lambda tensors: tensors["model.norm.weight"].view(-1)[3].fill_(2e5))
    with pytest.raises(InputError, match=r"model\.norm\.weight: the merged value 1000\d\d at element \[3\] is none of F16"):
        execute(plan_of(small[1:], Linear(), dtype="F16"), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("model", [0, 2])
def test_a_value_that_is_not_finite_is_named(small, tmp_path, value, model):
    poison(value)(small[model])
    label = ["base", "", "tune-2"][model]
    with pytest.raises(ModelError, match=rf"{label}: tensor model\.layers\.1\.mlp\.up_proj\.weight holds {value} at element \[0, 7\]"):
        execute(plan_of(small, Sce(), base=0), tmp_path / "out", threads=2)
    assert not list(tmp_path.glob("out*"))


def test_integers_are_copied_where_they_are_equal_and_refused_where_not(small, tmp_path):
    for folder in small:
        edit_weights(
            folder, lambda tensors: tensors.update({"model.steps": torch.arange(5), "model.mask": torch.ones(3, dtype=torch.bool)})
        )
    execute(plan_of(small[1:], Linear()), tmp_path / "out")
    assert weights(tmp_path / "out")["model.steps"].tolist() == [0, 1, 2, 3, 4]
    edit_weights(small[2], lambda tensors: tensors["model.steps"][1].fill_(7))
    with pytest.raises(ModelError, match=r"tune-2: tensor model\.steps \(I64\) is not that of tune-1"):
        execute(plan_of(small[1:], Linear()), tmp_path / "other")
    assert not list(tmp_path.glob("other*"))


def test_distances_from_the_base_are_told_and_judged(small, tmp_path):
    """A copy of the base, a fine-tune, and a model of other ancestry."""
    fine_tune(small[0], tmp_path / "models" / "copy", 9, 0.0)
    stranger = save_model(tmp_path / "models" / "stranger", byte_bpe(), seed=5)
    folders = [small[0], tmp_path / "models" / "copy", small[1], stranger]
    merged = execute(plan_of(folders, TaskArithmetic(weights=0.3), base=0), tmp_path / "out")
    distances = merged.distances
    assert distances["copy"] == 0
    assert 0.01 < distances["tune-1"] < 0.2
    assert 1 < distances["stranger"] < 2
    about = [line for line in merged.warnings if "base base" in line]
    assert about[0] == "copy is identical to the base base: it adds nothing"
    assert re.fullmatch(r"stranger differs from the base base by \d\.\d+ times its size, .*: is base its ancestor\?", about[1])
    assert len(about) == 2
    assert all(line in (tmp_path / "out" / "README.md").read_text() for line in about)


def test_repeated_merges_are_reused_and_other_ones_refused(small, tmp_path):
    plan = plan_of(small, Linear())
    first = execute(plan, tmp_path / "out")
    before = contents(tmp_path / "out")
    again = execute(plan, tmp_path / "out")
    assert (first.reused, again.reused) == (False, True)
    assert (again.counters, again.warnings) == (first.counters, first.warnings)
    with pytest.raises(InputError, match=r"holds another artefact \(merged model\)"):
        execute(plan_of(small, Linear(weights=(1.0, 1.0, 2.0))), tmp_path / "out")
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(VerificationError, match=r"config\.json"):
        execute(plan, tmp_path / "out")


def test_shards_beside_a_foreign_model_are_refused(small, tmp_path):
    (tmp_path / "out").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "out" / "model.safetensors")
    with pytest.raises(InputError, match=r"holds a model\.safetensors, which would be loaded in place of the \d+ shards"):
        execute(plan_of(small, Linear(), max_shard_bytes=40_000), tmp_path / "out")
    with pytest.raises(InputError, match=r"is not empty: it holds model\.safetensors"):
        execute(plan_of(small, Linear()), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "model.safetensors"]


def test_an_empty_folder_is_filled_and_a_models_own_folder_never(small, tmp_path):
    (tmp_path / "out").mkdir()
    assert verify(execute(plan_of(small, Linear()), tmp_path / "out").path)
    before = contents(small[0])
    with pytest.raises(InputError, match="not empty"):
        execute(plan_of(small, Linear()), small[0])
    assert contents(small[0]) == before


def test_a_second_process_is_told_that_the_first_is_at_work(small, tmp_path):
    with lock(tmp_path / "out.partial"), pytest.raises(BusyError, match=f"process {os.getpid()}"):
        execute(plan_of(small, Linear()), tmp_path / "out")


def test_a_full_disk_is_one_line_and_leaves_nothing(small, tmp_path):
    code = (
        "import sys, resource, signal\nfrom pathlib import Path\nfrom lmfuse.errors import ResourceError\nfrom lmfuse.merge.linear import Linear\n"
        "from lmfuse.weights.engine import execute\nfrom tests.weights.plans import plan_of\n"
        "plan = plan_of([Path(each) for each in sys.argv[2:]], Linear())\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))\n"
        "try:\n    execute(plan, Path(sys.argv[1]))\nexcept ResourceError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out"), *map(str, small)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"no space left while writing {tmp_path / 'out'}"), done.stderr
    assert not list(tmp_path.glob("out*"))


def test_a_file_that_changes_under_the_merge_is_noticed(small, tmp_path):
    def spoil(done: int, total: int) -> None:
        path = small[1] / "model.safetensors"
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))

    with pytest.raises(ModelError, match=r"model\.safetensors was changed while it was read"):
        execute(plan_of(small, Linear()), tmp_path / "out", progress=spoil)
    assert not list(tmp_path.glob("out*"))


def test_a_methods_own_complaint_is_one_line(small, tmp_path):
    with pytest.raises(InputError, match=r"model\.\S+: linear: weights: 2 numbers for 3 sources"):
        execute(plan_of(small, Linear(weights=(0.5, 0.5))), tmp_path / "out")
    with pytest.raises(InputError, match=r"sce: no base model, expected one"):
        execute(plan_of(small, Sce()), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_one_model_passes_through(small, tmp_path):
    execute(plan_of(small[1:2], Passthrough()), tmp_path / "out")
    assert all(torch.equal(tensor, weights(small[1])[name]) for name, tensor in weights(tmp_path / "out").items())


def test_untied_heads_and_configs_without_names_of_types(small, tmp_path):
    for folder in small:
        edit_config(folder, tie_word_embeddings=False, dtype=..., torch_dtype="float32")
        edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}))
    execute(plan_of(small, Linear(), dtype="BF16"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert "lm_head.weight" in weights(tmp_path / "out")
