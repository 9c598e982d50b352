"""Statistics of models: collected on text, kept apart by model, merged from disk as in memory."""

import json

import pytest
import torch
import yaml
from torch import nn

from lmfuse.artefacts import read_manifest
from lmfuse.errors import InputError, VerificationError
from lmfuse.merge.fisher import Fisher
from lmfuse.merge.reg_mean import RegMean
from lmfuse.merge.whole import merge_informed
from lmfuse.models import ModelSpec, load_model
from lmfuse.statistics import collect_statistics
from lmfuse.types import Document
from lmfuse.weights.statistics import StatisticsFolder
from tests.runs import lmfuse
from tests.weights.plans import family, weights

TEXTS = [f"The {word} number {n} is written here." for n in range(4) for word in ("red", "green")]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A base, two tunes of it, text, and statistics of both kinds of the tunes."""
    folder = tmp_path_factory.mktemp("statistics")
    family(folder, 3)
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n")
    for name in ("tune-1", "tune-2"):
        for kind in ("fisher", "gram"):
            code, said = lmfuse("statistics", folder / name, folder / f"{name}.{kind}", "--text", folder / "text.jsonl", "--kind", kind)
            assert code == 0, said
    return folder


def statistics_of(folder):
    opened = StatisticsFolder.open(folder)
    return {name: opened.tensor(name) for name in opened.files}


def test_oracle_fisher_by_autograd_one_text_at_a_time(here):
    model = load_model(ModelSpec(str(here / "tune-1"), dtype="float32"))
    sums = {name: torch.zeros_like(each) for name, each in model.module.named_parameters()}
    for text in TEXTS:
        ids = torch.from_numpy(model.tokenizer.encode(Document.plain(text)).ids).long()
        loss = nn.functional.cross_entropy(model.module(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="sum")
        grads = torch.autograd.grad(loss, list(model.module.parameters()))
        for total, grad in zip(sums.values(), grads, strict=True):
            total += grad**2
    found = statistics_of(here / "tune-1.fisher")
    assert found.keys() == sums.keys()
    for name, total in sums.items():
        assert torch.allclose(found[name], total / len(TEXTS), rtol=1e-3, atol=1e-6), name
    assert read_manifest(here / "tune-1.fisher").counters["documents"] == len(TEXTS)


def test_oracle_gram_of_a_layers_inputs(here):
    model = load_model(ModelSpec(str(here / "tune-1"), dtype="float32"))
    rows = []
    with torch.no_grad():
        for text in TEXTS:
            ids = torch.from_numpy(model.tokenizer.encode(Document.plain(text)).ids).long()
            rows.append(model.module.model.layers[0].input_layernorm(model.module.get_input_embeddings()(ids)))
    inputs = torch.cat(rows).double()
    found = statistics_of(here / "tune-1.gram")
    for name in ("q", "k", "v"):
        assert torch.allclose(
            found[f"model.layers.0.self_attn.{name}_proj.weight"].double(), inputs.T @ inputs / len(inputs), rtol=1e-4, atol=1e-6
        )
    assert "lm_head.weight" not in found
    assert len(found) == 2 * 7


def test_invariant_rounds_change_nothing(here, tmp_path):
    model = load_model(ModelSpec(str(here / "tune-1"), dtype="float32"))
    documents = [Document.plain(text) for text in TEXTS]
    collect_statistics(model, documents, "gram", tmp_path / "small", key="k", at_once_bytes=1)
    assert len(list((tmp_path / "small").glob("*.safetensors"))) == 2 * 7
    small, large = statistics_of(tmp_path / "small"), statistics_of(here / "tune-1.gram")
    assert small.keys() == large.keys()
    assert all(torch.allclose(small[name], large[name], rtol=1e-5) for name in large)
    assert not any(each.requires_grad and each.grad is not None for each in model.module.parameters())


@pytest.mark.parametrize("method", [Fisher(), Fisher(weights=(1, 3)), RegMean()], ids=["fisher", "weighted", "reg_mean"])
def test_oracle_a_streamed_merge_is_the_one_in_memory(here, tmp_path, method):
    names = ["tune-1", "tune-2"]
    recipe = {
        "models": names,
        "method": {"name": method.name},
        "dtype": "float32",
        "statistics": [f"{name}.{method.kind}" for name in names],
    }
    if isinstance(getattr(method, "weights", 1.0), tuple):
        recipe["method"]["weights"] = list(method.weights)
    (here / "merge.yaml").write_text(yaml.safe_dump(recipe))
    code, said = lmfuse("merge", here / "merge.yaml", tmp_path / "out", "--cache", tmp_path / "cache", columns=200)
    assert code == 0, said
    models, statistics = [weights(here / name) for name in names], [statistics_of(here / f"{name}.{method.kind}") for name in names]
    merged = weights(tmp_path / "out")
    for name, tensor in merged.items():
        found = [each[name] for each in statistics] if name in statistics[0] else None
        assert torch.equal(tensor, merge_informed(method, [model[name].float() for model in models], found)), name
    if method.name == "reg_mean":
        assert "had no Gram matrices" in said
    else:
        assert "had no diagonal" not in said
    load_model(ModelSpec(str(tmp_path / "out"), dtype="float32"))


def test_wrong_input(here, tmp_path):
    def refused(message, **changes):
        recipe = {"models": ["tune-1", "tune-2"], "method": {"name": "fisher"}, "statistics": ["tune-1.fisher", "tune-2.fisher"]} | changes
        (here / "wrong.yaml").write_text(yaml.safe_dump(recipe))
        code, said = lmfuse("merge", here / "wrong.yaml", tmp_path / "out", "--cache", tmp_path / "cache", columns=200)
        assert (code, message in said) == (2, True), said
        assert not (tmp_path / "out").exists()

    refused("fisher: no statistics, expected those of each source", statistics=[])
    refused("statistics: 1 folders for 2 sources, expected one for each", statistics=["tune-1.fisher"])
    refused("is not of tune-1", statistics=["tune-2.fisher", "tune-1.fisher"])
    refused("is of kind gram, fisher asks for fisher", statistics=["tune-1.gram", "tune-2.gram"])
    refused("statistics: linear asks for none; leave them out", method={"name": "linear"})
    code, said = lmfuse("statistics", here / "tune-1", here / "x", "--text", here / "text.jsonl", "--kind", "fischer")
    assert (code, "did you mean 'fisher'" in said) == (2, True)
    code, said = lmfuse("statistics", here / "tune-1", here / "tune-1.gram", "--text", here / "text.jsonl")
    assert (code, "exists" in said) == (2, True)
    with pytest.raises(VerificationError):
        StatisticsFolder.open(here / "tune-1")
    with pytest.raises(InputError, match="statistics: no documents"):
        collect_statistics(load_model(ModelSpec(str(here / "tune-1"), dtype="float32")), [], "fisher", tmp_path / "none", key="k")
