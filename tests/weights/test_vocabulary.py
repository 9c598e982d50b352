"""Vocabularies of several models as one: what is added where, which rows move, what is refused, and that the result speaks."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer

from lmfuse.errors import TokenizerError
from lmfuse.merge.dare import Dare
from lmfuse.merge.della import Della
from lmfuse.merge.linear import Linear
from lmfuse.merge.model_stock import ModelStock
from lmfuse.merge.multislerp import MultiSlerp
from lmfuse.merge.sce import Sce
from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.merge.ties import Ties
from lmfuse.merge.varm import Varm
from lmfuse.weights.check import is_vocabulary_tensor
from lmfuse.weights.engine import execute
from lmfuse.weights.files import result_config
from lmfuse.weights.plan import MergePlan, OutputTensor, TensorRef, UnitedVocabulary
from lmfuse.weights.vocabulary import unite_vocabularies
from tests.fakes import byte_bpe, metaspace_bpe, save_model, unigram
from tests.model_folders import edit_config, edit_weights
from tests.weights.plans import opened, weights

EMBEDDING = "model.embed_tokens.weight"


def with_tokens(*added: str | AddedToken) -> Tokenizer:
    tokenizer = Tokenizer.from_str(byte_bpe().to_str())
    tokenizer.add_tokens(list(added))
    return tokenizer


def save(folder: Path, tokenizer: Tokenizer, *, rows: int | None = None, start: float = 0.0) -> Path:
    """Write a model whose row i of the embedding holds ``start + i``."""
    save_model(folder, tokenizer)
    size = rows or tokenizer.get_vocab_size()
    edit_weights(folder, lambda tensors: tensors.update({EMBEDDING: (start + torch.arange(size))[:, None].repeat(1, 32).float()}))
    edit_config(folder, vocab_size=size)
    return folder


@pytest.fixture
def chatty(tmp_path) -> list[Path]:
    """A base of N tokens; a model with two more; a model with two others, of which one is the same under another id, and 8 padding rows."""
    return [
        save(tmp_path / "base", byte_bpe()),
        save(tmp_path / "a", with_tokens(AddedToken("<|im_start|>", special=True), "<|im_end|>"), start=1000),
        save(tmp_path / "b", with_tokens("<|im_end|>", "<think>"), rows=N + 10, start=2000),
    ]


N = byte_bpe().get_vocab_size()


def united_plan(folders: list[Path], united: UnitedVocabulary, method, base: int | None) -> MergePlan:
    models = opened(folders)

    def ref(index: int, name: str) -> TensorRef:
        return TensorRef(index, name, united.row_maps[index] if is_vocabulary_tensor(name) else None)

    tensors = tuple(
        OutputTensor(
            name,
            (united.num_rows, *entry.shape[1:]) if is_vocabulary_tensor(name) else entry.shape,
            "F32",
            method,
            tuple(ref(index, name) for index in range(len(models)) if index != base),
            None if base is None else ref(base, name),
        )
        for name, (_, entry) in models[0].tensors.items()
    )
    return MergePlan(models, tensors, result_config(models[0], "F32", num_rows=united.num_rows), united, base=base)


def test_equal_vocabularies_are_left_alone(tmp_path):
    folders = [save(tmp_path / name, byte_bpe()) for name in ("a", "b")]
    for union in (False, True):
        united = unite_vocabularies(opened(folders), union=union)
        assert united == UnitedVocabulary(0, (), N, (None, None), ())


def test_tokens_that_models_add_come_at_the_end_by_hand(chatty):
    united = unite_vocabularies(opened(chatty))
    assert [(each.token, each.id, each.models) for each in united.added] == [
        ("<|im_start|>", N, ("a",)),
        ("<|im_end|>", N + 1, ("a", "b")),
        ("<think>", N + 2, ("b",)),
    ]
    assert united.num_rows == N + 3
    same = tuple(range(N))
    assert united.row_maps == ((*same, -1, -1, -1), (*same, N, N + 1, -1), (*same, -1, N, N + 1))
    assert united.report[0] == f"The vocabulary is that of base, {N + 3} rows, 3 added tokens at its end."
    assert united.report[2] == f"Token '<|im_end|>' got id {N + 1}; from a, b."
    assert united.report[6] == (
        f"b: {N + 10} rows; 2 moved, 8 left out, 1 filled in (from the base; a row that the base lacks is the mean of the sources that have it)."
    )


@pytest.mark.parametrize("ground", [0, 1, 2])
def test_each_token_keeps_its_meaning_whoever_is_the_ground(chatty, ground):
    models = opened(chatty)
    united = unite_vocabularies(models, ground)
    ids = {**Tokenizer.from_file(str(chatty[ground] / "tokenizer.json")).get_vocab(), **{each.token: each.id for each in united.added}}
    assert len(set(ids.values())) == len(ids)
    for folder, rows in zip(chatty, united.row_maps, strict=True):
        own = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        for token, token_id in ids.items():
            row = token_id if rows is None else rows[token_id]
            assert row == own.get(token, -1)


def test_the_result_speaks_the_united_vocabulary(chatty, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    united = unite_vocabularies(opened(chatty))
    execute(united_plan(chatty, united, Linear(), None), tmp_path / "out")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert model.config.vocab_size == N + 3
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("<|im_start|>The<think>fox<|im_end|>")["input_ids"]
    assert (ids[0], ids[-1]) == (N, N + 1)
    assert N + 2 in ids
    assert tokenizer.convert_ids_to_tokens([N])[0] in tokenizer.all_special_tokens + list(tokenizer.get_added_vocab())
    assert model(torch.tensor([ids])).logits.shape[-1] == N + 3
    assert (tmp_path / "out" / "README.md").read_text().count("<|im_start|>") == 1


def test_rows_of_the_merge_by_hand(chatty, tmp_path):
    """A plain average: common rows of three models; a token of one model is that model's row, of two their mean."""
    united = unite_vocabularies(opened(chatty))
    execute(united_plan(chatty, united, Linear(), None), tmp_path / "out")
    rows = weights(tmp_path / "out")[EMBEDDING][:, 0]
    assert torch.allclose(rows[:N], torch.arange(N) + 1000.0)
    in_a, in_b, in_both = 1000.0 + N, 2000.0 + N + 1, ((1000 + N + 1) + (2000 + N)) / 2
    assert torch.allclose(rows[N:], torch.tensor([in_a, in_both, in_b]))


NEEDING_A_BASE = [
    TaskArithmetic(weights=0.5), TaskArithmetic(), Ties(), Ties(density=1.0, normalise=False), Sce(), Sce(tau=1.0), Sce(variant="mergekit"),
    Dare(), Dare(then="ties", rescale="l1"), Della(), Varm(), ModelStock(), MultiSlerp(), MultiSlerp(normalise=False),
]  # fmt: skip


@pytest.mark.parametrize("method", NEEDING_A_BASE, ids=repr)
def test_rows_that_the_base_lacks_are_the_mean_of_who_has_them_whatever_the_method(chatty, tmp_path, method):
    """A difference from a mean of two always has two signs, so no method may see one there: it would pick the larger or the smaller."""
    united = unite_vocabularies(opened(chatty))
    merged = execute(united_plan(chatty, united, method, 0), tmp_path / "out")
    rows = weights(tmp_path / "out")[EMBEDDING][:, 0]
    in_a, in_b, in_both = 1000.0 + N, 2000.0 + N + 1, ((1000 + N + 1) + (2000 + N)) / 2
    assert rows[N:].tolist() == [in_a, in_both, in_b]
    assert merged.counters["rows_without_base"] == 3
    if method == TaskArithmetic(weights=0.5):
        assert torch.allclose(rows[:N], torch.arange(N) + 0.5 * 1000 + 0.5 * 2000)


def test_padding_alone_is_cut_or_filled(tmp_path):
    folders = [save(tmp_path / "a", byte_bpe(), rows=N + 4), save(tmp_path / "b", byte_bpe(), rows=N + 7), save(tmp_path / "c", byte_bpe())]
    united = unite_vocabularies(opened(folders), union=False)
    assert (united.num_rows, united.added) == (N + 4, ())
    assert united.row_maps == (None, tuple(range(N + 4)), (*range(N), -1, -1, -1, -1))
    execute(united_plan(folders, united, Linear(), None), tmp_path / "out")
    assert weights(tmp_path / "out")[EMBEDDING].shape == (N + 4, 32)


def test_without_union_added_tokens_are_refused(chatty):
    with pytest.raises(TokenizerError, match=rf"^base: token '<\|im_start\|>' is missing, a has it \(id {N}\)$") as caught:
        unite_vocabularies(opened(chatty[:2]), union=False)
    assert "tokenizer: union" in caught.value.hint
    with pytest.raises(TokenizerError, match=rf"^b: token '<\|im_end\|>' has id {N}, in a it has {N + 1}$"):
        unite_vocabularies(opened(chatty[1:]), union=False)


def test_an_added_token_in_the_place_of_another_is_moved(tmp_path):
    """A model that renamed a reserved token: row N is one token here, another there."""
    folders = [save(tmp_path / "a", with_tokens("<reserved>")), save(tmp_path / "b", with_tokens("<tool>"), start=1000)]
    united = unite_vocabularies(opened(folders))
    assert [(each.token, each.id) for each in united.added] == [("<tool>", N + 1)]
    assert united.row_maps == ((*range(N + 1), -1), (*range(N), -1, N))


@pytest.mark.parametrize("other", [metaspace_bpe(), unigram(), byte_bpe(380)])
def test_other_vocabularies_are_refused(tmp_path, other):
    folders = [save(tmp_path / "a", byte_bpe()), save(tmp_path / "b", other)]
    with pytest.raises(
        TokenizerError, match=r"^[ab]: token '.*' (has id \d+, in a it has \d+|is missing, [ab] has it \(id \d+\))$"
    ) as caught:
        unite_vocabularies(opened(folders))
    assert caught.value.hint == "merge models of one tokenizer"


def test_a_token_that_is_listed_in_the_configuration_alone(tmp_path):
    """``added_tokens_decoder`` of older tokenizers: the token is known, and new ones are listed there too."""
    folders = [save(tmp_path / "a", with_tokens("<x>")), save(tmp_path / "b", with_tokens("<x>", "<y>"))]
    path = folders[0] / "tokenizer_config.json"
    entry = {"content": "<x>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": {str(N): entry}}))
    united = unite_vocabularies(opened(folders))
    execute(united_plan(folders, united, Linear(), None), tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert listed == {str(N): entry, str(N + 1): entry | {"content": "<y>"}}


def test_models_without_a_tokenizer(tmp_path):
    """One without: it is taken to have the ground's if it has as many rows. All without: rows and older files must agree."""
    folders = [save(tmp_path / "a", byte_bpe()), save(tmp_path / "b", byte_bpe(), rows=N + 2)]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folders[1] / name).unlink()
    with pytest.raises(TokenizerError, match=rf"^b: embedding of {N + 2} rows, a has {N}, and no tokenizer says why$"):
        unite_vocabularies(opened(folders))
    silent = save(tmp_path / "silent", byte_bpe())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (silent / name).unlink()
    assert unite_vocabularies(opened([folders[0], silent])).row_maps == (None, None)
    (folders[0] / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=rf"^b: embedding of {N + 2} rows, a has {N}, and no tokenizer\.json says why$"):
        unite_vocabularies(opened(folders))
    third = save(tmp_path / "c", byte_bpe())
    (third / "tokenizer.json").unlink()
    assert "judged by the number of rows alone" in unite_vocabularies(opened([folders[0], third])).report[0]
    for folder, content in ((folders[0], b"one"), (third, b"other")):
        (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"^c: tokenizer\.model is not that of a$"):
        unite_vocabularies(opened([folders[0], third]))
