"""Searches over model folders, judged in bits per byte: streamed from disk or held in memory, with the same numbers."""

import os
import pickle
from dataclasses import replace

import pytest
import torch

from lmfuse.errors import InputError, ModelError
from lmfuse.evolution.express import Expression
from lmfuse.evolution.fitness import BitsPerByte
from lmfuse.evolution.folders import FolderParents
from lmfuse.evolution.run import evolve
from lmfuse.evolution.scores import mean_score
from lmfuse.evolution.settings import Budget, SearchSettings
from lmfuse.evolution.splits import Splits
from lmfuse.evolve.genome import Cross, Joined, Parent, Within, mixed
from lmfuse.merge.linear import Linear
from lmfuse.merge.ties import Ties
from lmfuse.models import ModelSpec, load_model
from lmfuse.types import Document
from tests.fakes import byte_bpe, save_model
from tests.weights.plans import family, weights

A, B, C = Parent(0), Parent(1), Parent(2)
CHILD = Cross(Within(mixed([(1.3, A), (-0.3, B)])), mixed([(0.5, B), (0.5, C)]), 0.4, seed=11)


def specs(folders):
    return [ModelSpec(str(folder), dtype="float32") for folder in folders]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return family(tmp_path_factory.mktemp("family"), 4)


@pytest.fixture(scope="module")
def windows():
    texts = [f"The {word} number {n} is written here, once and again." for n in range(5) for word in ("red", "green", "blue")]
    documents = [Document.plain(text) for text in texts]
    return {document.id: (document,) for document in documents}


@pytest.mark.parametrize("genome", [A, CHILD, Joined((CHILD, B))], ids=["parent", "child", "population"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_oracle_streamed_children_are_those_in_memory(folders, tmp_path, genome, dtype):
    base, *parents = specs(folders)
    streamed, resident = (FolderParents.open(parents, base, dtype=dtype, resident=each) for each in (False, True))
    expression = Expression("scalar", streamed.names, 3, Ties(density=0.5) if isinstance(genome, Joined) else None)
    with streamed.child(expression, genome, tmp_path) as folder:
        found = weights(folder)
        assert (folder / "config.json").exists()
    assert not list(tmp_path.iterdir())
    with resident.child(expression, genome, tmp_path) as held:
        assert found.keys() == held.keys()
        assert all(torch.equal(found[name], held[name]) for name in held)


def test_a_parent_is_its_own_bytes(folders, tmp_path):
    parents = FolderParents.open(specs(folders[1:]))
    with parents.child(Expression("scalar", parents.names, 3), B, tmp_path) as folder:
        assert all(torch.equal(tensor, weights(folders[2])[name]) for name, tensor in weights(folder).items())
    layers = Expression("layer", parents.names, 3, Linear())
    with parents.child(layers, layers.individual(1), tmp_path) as folder:
        assert all(torch.equal(tensor, weights(folders[2])[name]) for name, tensor in weights(folder).items())


def test_what_is_held_changes_no_byte(folders, tmp_path):
    parents = FolderParents.open(specs(folders[1:]), resident=True)
    expression = Expression("scalar", parents.names, 3)
    with parents.child(expression, CHILD, tmp_path) as found:
        whole = {name: tensor.clone() for name, tensor in found.items()}
    again = pickle.loads(pickle.dumps(parents))
    assert "_in_memory" not in again.__dict__
    for part in (CHILD.kept, CHILD.changed, CHILD.kept.inner):
        with again.child(expression, part, tmp_path):
            pass
    with again.child(expression, CHILD, tmp_path) as found:
        assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert len(again._in_memory._held) == 4


def test_the_key_of_bits_per_byte_follows_domain_and_device():
    spec, text = ModelSpec("x"), Document.plain("once")
    first = BitsPerByte({"a": (text,)}, spec)
    assert first.key == BitsPerByte({"a": (Document.plain("once"),)}, spec).key
    assert first.key != BitsPerByte({"a": (replace(text, domain="law"),)}, spec).key
    assert first.key != BitsPerByte({"a": (text,)}, spec, device="cuda").key
    assert first.contents == {"a": (text.id,)}


def test_bits_per_byte_of_a_folder_and_of_weights_are_the_same(folders, windows, tmp_path):
    spec = ModelSpec(str(folders[1]), dtype="float32")
    fitness = BitsPerByte(windows, spec)
    units = tuple(windows)
    from_folder = fitness(folders[2], units)
    assert fitness(weights(folders[2]), units) == from_folder
    assert fitness(weights(folders[1]), units) != from_folder
    assert BitsPerByte(windows, spec).key == fitness.key != BitsPerByte(windows, ModelSpec("x", dtype="bfloat16")).key
    from lmfuse.evaluate.bits_per_byte import bits_per_byte, score_documents

    documents = [document for pieces in windows.values() for document in pieces]
    oracle = bits_per_byte(score_documents(load_model(ModelSpec(str(folders[2]), dtype="float32")), documents, batch_tokens=4096))
    assert -mean_score(dict(zip(units, from_folder, strict=True))) == pytest.approx(oracle, rel=1e-12)
    with pytest.raises(ModelError, match="a child has no tensor"):
        fitness({}, units)
    with pytest.raises(ModelError, match="has no tensor odd"):
        fitness({"odd": torch.zeros(1)}, units)


@pytest.mark.parametrize("resident", [False, True])
def test_a_search_over_folders(folders, windows, tmp_path, resident):
    base, *parents = specs(folders)
    splits = Splits.drawn(list(windows), seed=1)
    settings = SearchSettings(generations=2, budget=Budget(evaluations=7), controls=("average", "task_arithmetic", "greedy_soup"))
    models = FolderParents.open(parents, base, resident=resident)
    outcome = evolve(settings, models, BitsPerByte(windows, parents[0]), splits, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["journal.jsonl", "model", "result.json"]
    winner = load_model(ModelSpec(str(outcome.path), dtype="float32"))
    assert winner.module.config.vocab_size == load_model(parents[0]).module.config.vocab_size
    assert "search:" in (outcome.path / "README.md").read_text()
    assert outcome.arms[0].report is not None
    scored = BitsPerByte(windows, parents[0])(outcome.path, splits.report)
    assert mean_score(dict(zip(splits.report, scored, strict=True))) == pytest.approx(outcome.arms[0].report, rel=1e-6)


def test_wrong_input(folders, tmp_path):
    other = save_model(tmp_path / "other", byte_bpe(), hidden=48)
    with pytest.raises(ModelError, match="in other, ") as caught:
        FolderParents.open(specs([folders[1], other]))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="parents: 1 model, expected 2 or more"):
        FolderParents.open(specs(folders[:1]))
    parents = FolderParents.open(specs(folders[1:3]))
    too_large = mixed([(1e30, A), (-1e30 + 1, B)])
    with (
        pytest.raises(InputError, match="is none of F16"),
        FolderParents.open(specs(folders[1:3]), dtype="F16").child(Expression("scalar", parents.names, 2), too_large, tmp_path / "scratch"),
    ):
        pass
    assert not [name for name in os.listdir(tmp_path) if name.startswith("scratch") and os.listdir(tmp_path / name)]
