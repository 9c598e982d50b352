"""Collecting: rows are the model's own log-probabilities, whatever the batches, shards and interruptions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse import collect as collect_module
from lmfuse.artefacts import verify
from lmfuse.collect import collect, top_k_with_tail
from lmfuse.errors import InputError, ModelError
from lmfuse.models import LanguageModel, ModelSpec, load_model
from lmfuse.types import Document
from tests.fakes import KINDS, TEXT, save_model
from tests.model_folders import edit_config, edit_weights

torch.set_num_threads(1)
DOCUMENTS = [Document.plain(text) for text in [*TEXT, "", "a", TEXT[0][:9], "12 + 7 = 19", "naïve ÅÉ ﬁne"]]
OPTIONS = {"k": 5, "batch_tokens": 200, "shard_documents": 4, "precision": "float32"}


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory) -> LanguageModel:
    return load_model(ModelSpec(str(save_model(tmp_path_factory.mktemp("m"), KINDS[request.param]())), dtype="float32"))


@pytest.fixture(scope="module")
def one_model(tmp_path_factory) -> LanguageModel:
    return load_model(ModelSpec(str(save_model(tmp_path_factory.mktemp("m"), KINDS["metaspace_bpe"]())), dtype="float32"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_rows_are_the_models_own_log_probabilities(model, tmp_path):
    store = collect(model, DOCUMENTS, tmp_path / "rows", **OPTIONS)
    assert (len(store), store.k, store.vocab_size) == (len(DOCUMENTS), 5, model.tokenizer.vocabulary.size)
    for document in DOCUMENTS:
        rows, encoding = store[document.id], model.tokenizer.encode(document)
        wanted = [t for t in range(1, len(encoding.ids)) if encoding.starts[t] >= 0]
        assert rows.starts.tolist() == [encoding.starts[t] for t in wanted]
        assert rows.ends.tolist() == [encoding.ends[t] for t in wanted]
        assert rows.next_ids.tolist() == [encoding.ids[t] for t in wanted]
        if not wanted:
            continue
        with torch.no_grad():
            logits = model.module(input_ids=torch.from_numpy(encoding.ids.astype(np.int64))[None]).logits[0]
        truth = logits[[t - 1 for t in wanted], : store.vocab_size].double().log_softmax(-1)
        np.testing.assert_allclose(rows.nll_nats, -truth[range(len(wanted)), rows.next_ids], atol=1e-4)
        np.testing.assert_allclose(rows.topk.log_probs, truth.topk(5).values, atol=1e-4)
        np.testing.assert_allclose(rows.topk.log_probs, truth.gather(1, torch.from_numpy(rows.topk.ids)), atol=1e-4)
        rest = truth.scatter(1, torch.from_numpy(rows.topk.ids), -torch.inf).logsumexp(1)
        np.testing.assert_allclose(rows.topk.tail, rest, atol=1e-4)
        np.testing.assert_allclose(np.exp(rows.topk.log_probs).sum(1) + np.exp(rows.topk.tail), 1, atol=1e-5)


def test_counters_and_provenance_by_hand(one_model, tmp_path):
    documents = [Document.plain("the dog"), Document.plain(""), Document.plain("the dog")]
    done: list[int] = []
    store = collect(one_model, documents, tmp_path / "rows", progress=done.append, **OPTIONS)
    encoding = one_model.tokenizer.encode(documents[0])
    rows = len(encoding.ids) - 1  # all but <s>
    assert store.manifest.counters == {
        "documents": 2, "documents_repeated": 1, "documents_without_row": 1, "bytes": 7, "bytes_masked": 0, "bytes_with_row": 7,
        "rows": rows, "tokens": rows + 2, "tokens_without_row": 2,
    }  # fmt: skip
    assert sum(done) == rows == one_model.count_tokens(documents[:2])
    made_from = store.manifest.provenance
    assert (made_from["model"], made_from["tokenizer"]) == (one_model.key, one_model.tokenizer.key)
    assert (made_from["dtype"], made_from["k"], made_from["precision"]) == ("float32", 5, "float32")
    assert contents(store.folder).keys() == {"manifest.json", "rows-000000.safetensors"}


def test_masked_bytes_are_counted(model, tmp_path):
    store = collect(model, DOCUMENTS, tmp_path / "rows", **OPTIONS)
    assert store.manifest.counters["bytes_masked"] == sum(model.tokenizer.encode(document).masked_bytes for document in DOCUMENTS)


@pytest.mark.parametrize("batch_tokens", [1, 64, 100000])
@pytest.mark.parametrize("shard_documents", [1, 3, 100])
def test_batches_and_shards_change_nothing(one_model, tmp_path, batch_tokens, shard_documents):
    expected = collect(one_model, DOCUMENTS, tmp_path / "a", **OPTIONS)
    found = collect(one_model, DOCUMENTS, tmp_path / "b", **{**OPTIONS, "batch_tokens": batch_tokens, "shard_documents": shard_documents})
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_allclose(found[name].nll_nats, expected[name].nll_nats, atol=1e-4)
        np.testing.assert_allclose(found[name].topk.log_probs, expected[name].topk.log_probs, atol=1e-4)


def test_half_precision_rounds_and_does_no_more(one_model, tmp_path):
    exact = collect(one_model, DOCUMENTS, tmp_path / "a", **OPTIONS)
    half = collect(one_model, DOCUMENTS, tmp_path / "b", **{**OPTIONS, "precision": "float16"})
    for name in exact:
        np.testing.assert_array_equal(half[name].topk.log_probs, exact[name].topk.log_probs.astype(np.float16))
        np.testing.assert_array_equal(half[name].nll_nats, exact[name].nll_nats.astype(np.float16))


def test_the_whole_vocabulary_leaves_no_tail(one_model, tmp_path):
    size = one_model.tokenizer.vocabulary.size
    store = collect(one_model, DOCUMENTS[:1], tmp_path / "rows", **{**OPTIONS, "k": size})
    rows = store[DOCUMENTS[0].id]
    assert (rows.topk.tail == -np.inf).all()
    assert (np.sort(rows.topk.ids, axis=1) == np.arange(size)).all()


def test_padding_of_the_vocabulary_never_takes_part(tmp_path):
    folder = save_model(tmp_path / "m", KINDS["metaspace_bpe"]())
    plain = collect(load_model(ModelSpec(str(folder), dtype="float32")), DOCUMENTS, tmp_path / "a", **OPTIONS)

    def pad(tensors):
        rows = tensors["model.embed_tokens.weight"]
        tensors["model.embed_tokens.weight"] = torch.cat([rows, torch.full((12, rows.shape[1]), 50.0)])

    edit_weights(folder, pad)
    edit_config(folder, vocab_size=plain.vocab_size + 12)
    padded = collect(load_model(ModelSpec(str(folder), dtype="float32")), DOCUMENTS, tmp_path / "b", **OPTIONS)
    assert padded.vocab_size == plain.vocab_size
    for name in plain:
        np.testing.assert_allclose(padded[name].nll_nats, plain[name].nll_nats, atol=1e-5)


def test_an_interrupted_collection_goes_on_at_the_last_shard_and_ends_in_the_same_bytes(one_model, tmp_path, monkeypatch):
    calm = contents(collect(one_model, DOCUMENTS, tmp_path / "calm" / "rows", **OPTIONS).folder)
    folder, computed = tmp_path / "rough" / "rows", []
    plain = collect_module._rows

    def failing(model, documents, *rest):
        computed.append(documents[0].id)
        if len(computed) == 2:
            raise KeyboardInterrupt
        return plain(model, documents, *rest)

    monkeypatch.setattr(collect_module, "_rows", failing)
    with pytest.raises(KeyboardInterrupt):
        collect(one_model, DOCUMENTS, folder, **OPTIONS)
    assert not folder.exists(), "a failure publishes nothing"
    (folder.with_name("rows.partial") / ".rows-000001.safetensors.dead.tmp").write_bytes(b"left by a kill")
    done: list[int] = []
    assert contents(collect(one_model, DOCUMENTS, folder, progress=done.append, **OPTIONS).folder) == calm
    assert computed == [DOCUMENTS[i].id for i in (0, 4, 4, 8, 12)], "the first shard was not computed again"
    assert sum(done) == one_model.count_tokens(DOCUMENTS)


@pytest.mark.parametrize("change", ["k", "documents", "weights"])
def test_what_an_interrupted_collection_of_other_things_left_is_not_used(one_model, tmp_path, monkeypatch, change):
    monkeypatch.setattr(collect_module, "publish", interrupted_publish(collect_module.publish))
    with pytest.raises(KeyboardInterrupt):
        collect(one_model, DOCUMENTS, tmp_path / "rows", **OPTIONS)
    monkeypatch.undo()
    model, documents, options = one_model, DOCUMENTS, dict(OPTIONS)
    if change == "k":
        options["k"] = 3
    elif change == "documents":
        documents = [*DOCUMENTS[1:], DOCUMENTS[0]]
    else:
        other = save_model(tmp_path / "m", KINDS["metaspace_bpe"](), seed=1)
        model = load_model(ModelSpec(str(other), dtype="float32"))
    found = contents(collect(model, documents, tmp_path / "rows", **options).folder)
    assert found == contents(collect(model, documents, tmp_path / "calm" / "rows", **options).folder)


def interrupted_publish(plain):
    """Return a publish that is interrupted when all shards are written."""
    from contextlib import contextmanager

    @contextmanager
    def publish(*args, **options):
        with plain(*args, **options) as publication:
            yield publication
            raise KeyboardInterrupt

    return publish


def test_collecting_again_reuses_what_is_there(one_model, tmp_path, monkeypatch):
    first = collect(one_model, DOCUMENTS, tmp_path / "rows", **OPTIONS)
    monkeypatch.setattr(collect_module, "_rows", lambda *_: pytest.fail("computed again"))
    assert contents(collect(one_model, DOCUMENTS, tmp_path / "rows", **OPTIONS).folder) == contents(first.folder)
    verify(first.folder)
    json.loads((first.folder / "manifest.json").read_text())


# ----------------------------------------------------------------------------------------------------------------- arithmetic


def slow_top_k(logits: np.ndarray, next_id: int, k: int):
    """One row in float64, the obvious way."""
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    ids = np.argsort(-probabilities, kind="stable")[:k]
    with np.errstate(divide="ignore"):
        return np.log(probabilities[ids]), np.log(np.delete(probabilities, ids).sum()), -np.log(probabilities[next_id])


@settings(deadline=None)
@given(st.integers(1, 6000), st.integers(1, 40), st.sampled_from([0.1, 3.0, 40.0]), st.integers(0, 9))
def test_top_k_and_tail_of_any_shape(vocab_size, k, scale, seed):
    k = min(k, vocab_size)
    random = np.random.default_rng(seed)
    logits = (random.normal(size=(3, vocab_size)) * scale).astype(np.float32)
    next_ids = random.integers(0, vocab_size, 3)
    ids, log_probs, tail, nll, _ = top_k_with_tail(torch.from_numpy(logits.copy()), torch.from_numpy(next_ids), k)
    for row in range(3):
        expected = slow_top_k(logits[row], next_ids[row], k)
        np.testing.assert_allclose(log_probs[row], expected[0], rtol=2e-6, atol=2e-5)
        np.testing.assert_allclose(log_probs[row], (logits[row] + (log_probs[row, 0] - logits[row].max()).numpy())[ids[row]], atol=1e-4)
        if expected[1] > -85:
            np.testing.assert_allclose(tail[row], expected[1], rtol=2e-6, atol=2e-5)
        np.testing.assert_allclose(nll[row], expected[2], rtol=2e-6, atol=2e-5)


def test_a_tiny_tail_is_as_exact_as_a_large_one():
    logits = torch.tensor([[0.0, -40.0, -41.0, -41.0]])
    _, log_probs, tail, nll, _ = top_k_with_tail(logits, torch.tensor([3]), 1)
    assert tail.item() == pytest.approx(float(np.log(np.exp(-40.0) + 2 * np.exp(-41.0))), rel=1e-6)
    assert (log_probs.item(), nll.item()) == pytest.approx((0.0, 41.0))


def test_impossible_tokens_are_no_obstacle():
    logits = torch.tensor([[1.0, -torch.inf, -torch.inf, -torch.inf]])
    _, log_probs, tail, nll, normaliser = top_k_with_tail(logits, torch.tensor([1]), 2)
    assert (log_probs.tolist(), tail.item(), nll.item()) == ([[0.0, -np.inf]], -np.inf, np.inf)
    assert normaliser.item() == 1.0


# ------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("k", [0, 461])
def test_k_must_fit_the_vocabulary(one_model, tmp_path, k):
    with pytest.raises(InputError, match=f"k is {k}, the source's vocabulary has 460 ids"):
        collect(one_model, DOCUMENTS, tmp_path / "rows", **{**OPTIONS, "k": k})
    assert not list(tmp_path.iterdir())


def test_no_documents_are_refused(one_model, tmp_path):
    with pytest.raises(InputError, match="no documents"):
        collect(one_model, [], tmp_path / "rows", **OPTIONS)


def test_a_document_longer_than_the_context_is_refused(one_model, tmp_path):
    with pytest.raises(InputError, match="the model reads at most 256"):
        collect(one_model, [*DOCUMENTS, Document.plain("dog " * 300)], tmp_path / "rows", **OPTIONS)
    assert not (tmp_path / "rows").exists()


def test_probabilities_that_are_not_finite_name_the_document(tmp_path):
    model = load_model(ModelSpec(str(save_model(tmp_path / "m", KINDS["metaspace_bpe"]())), dtype="float32"))
    bad = Document.plain("dog 🙂 dog")
    others = [DOCUMENTS[0], Document.plain("the dog")]
    harmless = {int(i) for document in others for i in model.tokenizer.encode(document).ids}
    (poisoned, *_) = [i for i in model.tokenizer.encode(bad).ids if i not in harmless]
    embedding = model.module.get_input_embeddings()
    embedding.weight = torch.nn.Parameter(embedding.weight.detach().clone())  # no longer tied to the head
    with torch.no_grad():
        embedding.weight[poisoned] = float("nan")
    with pytest.raises(ModelError, match=f"document {bad.id}: the model's probabilities are not finite"):
        collect(model, [others[0], bad, others[1]], tmp_path / "rows", **OPTIONS)
    assert not (tmp_path / "rows").exists()
