"""The small files of a merged model: which are copied, from whom, and what is never copied."""

import json

import pytest

from lmfuse.errors import ModelError
from lmfuse.merge.linear import Linear
from lmfuse.weights.files import result_config, result_files, template_warnings
from tests.model_folders import edit_config
from tests.weights.plans import family, opened, plan_of


@pytest.fixture
def folders(tmp_path):
    return family(tmp_path / "models")


def test_files_are_those_of_the_tokenizers_model(folders):
    (folders[1] / "chat_template.jinja").write_text("{{ messages }}")
    (folders[1] / "generation_config.json").write_text('{"eos_token_id": 7}')
    (folders[1] / "vocab.json").write_text("{}")
    (folders[1] / "tokenizer.model").write_bytes(b"\xff\x00")  # not UTF-8
    (folders[1] / "modeling_evil.py").write_text("import os")
    (folders[1] / "pytorch_model.bin").write_bytes(b"pickle")
    plan = plan_of(folders, Linear(), tokenizer_from=1)
    files = result_files(plan)
    assert sorted(files) == [
        "chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
    ]  # fmt: skip
    for name in set(files) - {"config.json"}:
        assert files[name] == (folders[1] / name).read_bytes()
    assert json.loads(files["config.json"]) == plan.config


def test_references_to_code_are_dropped(folders):
    edit_config(folders[0], auto_map={"AutoConfig": "evil.Config"}, _name_or_path="/home/somebody")
    path = folders[0] / "tokenizer_config.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}))
    files = result_files(plan_of(folders, Linear()))
    assert json.loads(files["tokenizer_config.json"]) == before
    assert not {"auto_map", "_name_or_path"} & json.loads(files["config.json"]).keys()


def test_links_that_leave_the_folder_and_files_that_are_none(folders, tmp_path):
    plan = plan_of(folders, Linear())
    (tmp_path / "secret").write_text("secret")
    (folders[0] / "merges.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match=r"merges\.txt is a link outside its folder"):
        result_files(plan)
    (folders[0] / "merges.txt").unlink()
    (folders[0] / "merges.txt").mkdir()
    with pytest.raises(ModelError, match=r"merges\.txt is no regular file"):
        result_files(plan)
    (folders[0] / "merges.txt").rmdir()
    (folders[0] / "generation_config.json").write_bytes(b"\xff")
    with pytest.raises(ModelError, match=r"generation_config\.json is broken"):
        result_files(plan)


def test_the_configuration_says_what_the_weights_are(folders):
    edit_config(folders[0], torch_dtype="float32", text_config=...)
    model = opened(folders)[0]
    config = result_config(model, "F16", num_rows=500, num_layers=7)
    assert {key: config[key] for key in ("dtype", "torch_dtype", "vocab_size", "num_hidden_layers", "hidden_size")} == {
        "dtype": "float16", "torch_dtype": "float16", "vocab_size": 500, "num_hidden_layers": 7, "hidden_size": 32,
    }  # fmt: skip
    assert model.folder.config["vocab_size"] != 500  # the model's own is left as it is
    edit_config(folders[0], text_config={"vocab_size": 409, "n_layer": 2})
    nested = result_config(opened(folders)[0], "BF16", num_rows=500, num_layers=7)
    assert nested["text_config"] == {"vocab_size": 500, "n_layer": 7, "dtype": "bfloat16"}
    assert nested["vocab_size"] == 409


def test_a_chat_template_that_gets_lost_is_told(folders):
    assert template_warnings(plan_of(folders, Linear())) == []
    config = folders[2] / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": "{{ messages }}"}))
    (warning,) = template_warnings(plan_of(folders, Linear()))
    assert warning.startswith("the result has no chat template, as base has none; tune-2 has one")
    assert template_warnings(plan_of(folders, Linear(), tokenizer_from=2)) == []
