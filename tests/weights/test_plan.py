"""Plans: opening models, and a key that changes with everything that can change a byte."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest

from lmfuse.errors import ModelError
from lmfuse.merge.linear import Linear
from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.model_files import ModelSpec
from lmfuse.weights.plan import MergePlan, TensorRef, open_model, open_models
from tests.hub_server import COMMIT, hub
from tests.model_folders import edit_config, edit_weights
from tests.weights.plans import family, fine_tune, plan_of


@pytest.fixture
def folders(tmp_path):
    return family(tmp_path / "models")


def test_a_folder_opens_with_its_licence_and_its_own_name(folders, tmp_path):
    (folders[0] / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    model = open_model(ModelSpec(str(folders[0]), name="pivot"), tmp_path / "cache")
    assert (model.label, model.source, model.revision, model.licence, len(model.key)) == ("pivot", "base", "", "apache-2.0", 32)
    assert model.entry("model.norm.weight").shape == (32,)
    with pytest.raises(ModelError, match=r"^pivot: tensor model\.nothing is missing$"):
        model.entry("model.nothing")


def test_models_open_in_order_and_the_first_error_is_raised(folders, tmp_path):
    specs = [ModelSpec(str(folder)) for folder in folders]
    assert [each.label for each in open_models(specs, tmp_path / "cache")] == ["base", "tune-1", "tune-2"]
    for folder in folders[1:]:
        (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="tune-1"):
        open_models(specs, tmp_path / "cache")
    assert open_models([]) == ()


def test_the_key_changes_with_everything_but_places(folders, tmp_path):
    plan = plan_of(folders, TaskArithmetic(), base=0)
    keys = {plan.key}

    def changed(**more) -> MergePlan:
        return dataclasses.replace(plan, **more)

    first, *others = plan.tensors
    for other in (
        changed(config={**plan.config, "x": 1}),
        changed(tokenizer_from=1),
        changed(notes=("n",)),
        changed(warnings=("w",)),
        changed(recipe_text="r"),
        changed(base=None),
        changed(max_shard_bytes=5),
        changed(tensors=plan.tensors[1:]),
        changed(tensors=(dataclasses.replace(first, method=TaskArithmetic(weights=0.5)), *others)),
        changed(tensors=(dataclasses.replace(first, method=Linear()), *others)),
        changed(tensors=(dataclasses.replace(first, dtype="BF16"), *others)),
        changed(tensors=(dataclasses.replace(first, sources=(*first.sources, TensorRef(1, first.name))), *others)),
        changed(models=plan.models[::-1]),
    ):
        assert other.key not in keys
        keys.add(other.key)
    copies = [shutil.copytree(folder, tmp_path / "elsewhere" / folder.name) for folder in folders]
    assert plan_of(copies, TaskArithmetic(), base=0).key == plan.key
    edit_weights(copies[1], lambda tensors: tensors["model.norm.weight"].add_(1e-6))
    assert plan_of(copies, TaskArithmetic(), base=0).key != plan.key


def test_the_key_changes_with_a_models_configuration(folders):
    before = plan_of(folders, Linear()).key
    edit_config(folders[2], bos_token_id=3)
    assert plan_of(folders, Linear()).key != before


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"])
def test_the_key_changes_with_every_file_of_the_result(folders, name):
    before = plan_of(folders, Linear()).key
    path = folders[0] / name
    path.write_text((path.read_text() if path.exists() else "{}") + "\n")
    assert plan_of(folders, Linear()).key != before


def test_refs_are_the_sources_then_the_base(folders):
    fine_tune(folders[0], folders[0].parent / "more", 7)
    with_base, without = plan_of(folders, TaskArithmetic(), base=0), plan_of(folders, Linear())
    assert [ref.model for ref in with_base.tensors[0].refs] == [1, 2, 0]
    assert [ref.model for ref in without.tensors[0].refs] == [0, 1, 2]


FROM_HUB = """
import json, sys
from pathlib import Path
from lmfuse.merge.linear import Linear
from lmfuse.model_files import ModelSpec
from lmfuse.weights.engine import execute
from lmfuse.weights.plan import MergePlan, OutputTensor, TensorRef, open_models
models = open_models([ModelSpec(name) for name in sys.argv[2:]])
refs = (TensorRef(0, "model.norm.weight"), TensorRef(1, "model.norm.weight"))
tensor = OutputTensor("model.norm.weight", models[0].entry("model.norm.weight").shape, "F32", Linear(), refs)
print(json.dumps([[each.label, each.source, each.revision, each.key] for each in models]))
execute(MergePlan(models, (tensor,), dict(models[0].folder.config)), Path(sys.argv[1]))
"""


def test_hub_models_are_fetched_and_named_by_their_commit(folders, tmp_path):
    """A snapshot is a folder of links into a store beside it."""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    with hub(*folders) as server:
        done = subprocess.run(
            [sys.executable, "-c", FROM_HUB, str(tmp_path / "out"), "owner/base", "owner/tune-1"], capture_output=True, text=True, check=False,
            env=environment | {"HF_ENDPOINT": server.url, "LMFUSE_CACHE": str(tmp_path / "cache")},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    keys = [open_model(ModelSpec(str(folder)), tmp_path / "cache").key for folder in folders]
    assert json.loads(done.stdout) == [["base", "owner/base", COMMIT, keys[0]], ["tune-1", "owner/tune-1", COMMIT, keys[1]]]
    assert f"owner/base @ {COMMIT[:12]}" in (tmp_path / "out" / "README.md").read_text()
