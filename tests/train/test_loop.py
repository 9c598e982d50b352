import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lmfuse.errors import InputError, ModelError, ResourceError
from lmfuse.losses.aids import Aids, Projection
from lmfuse.losses.chunk_likelihood import ChunkLikelihood
from lmfuse.losses.cross_entropy import CrossEntropy
from lmfuse.losses.kl import KL
from lmfuse.losses.projected_kl import ProjectedKL
from lmfuse.losses.uld import Uld
from lmfuse.train import loop
from lmfuse.train.batches import planned_steps
from lmfuse.train.loop import adamw
from lmfuse.train.reader import Reader, Strand
from lmfuse.types import Document, Fused, TopK, VocabularyMap
from tests import fakes
from tests.train.setups import WORDS, quick, taught, texts, tiny, train, weights_of, whole_rows


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        assert_close(found[name], expected[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


def random_teacher(document: Document, encoding) -> Fused | None:
    """Rows of four candidates that depend on the document only; every third token has none, and one document in four has no teacher."""
    rng = np.random.default_rng(int(document.id[:8], 16))
    if rng.random() < 0.25:
        return None
    size, k, vocab_size = len(encoding.ids), 4, fakes.byte_bpe().get_vocab_size()
    ids = np.stack([rng.choice(vocab_size, k, replace=False) for _ in range(size)])
    probs = rng.dirichlet(np.ones(k + 1), size)
    topk = TopK(ids, np.log(probs[:, :k]).astype(np.float32), np.log(probs[:, k]).astype(np.float32), vocab_size)
    return Fused(topk, np.arange(size) % 3 > 0, np.zeros(size, np.int64), np.full(size, np.nan), np.zeros(size, bool))


# --------------------------------------------------------------------------------------------------------------------- oracles


def test_plain_training_equals_a_plain_transformers_loop(tmp_path):
    """Oracle: transformers' own loss on padded batches, torch's AdamW, five steps."""
    documents = texts(10)
    settings = quick(warmup_ratio=0.3, weight_decay=0.1)
    model, other = tiny(tmp_path / "model"), tiny(tmp_path / "model")
    module = other.module.train()
    decay = [p for n, p in module.named_parameters() if "norm" not in n]
    optimizer = torch.optim.AdamW([{"params": decay}, {"params": [p for n, p in module.named_parameters() if "norm" in n], "weight_decay": 0.0}],
                                  betas=(0.9, 0.95), weight_decay=0.1, foreach=False)  # fmt: skip
    lengths = np.array([len(d.trained_bytes) for d in documents])
    for index, planned in enumerate(planned_steps(lengths, settings)):
        encodings = [other.tokenizer.encode(documents[i]).ids for i in planned[0]]
        width = max(map(len, encodings))
        ids = torch.tensor([[*e, *[0] * (width - len(e))] for e in encodings])
        mask = torch.tensor([[1] * len(e) + [0] * (width - len(e)) for e in encodings])
        loss = module(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(index, 5)
        optimizer.step()
        optimizer.zero_grad()
    log = train(model, documents, None, KL(), settings, tmp_path / "out")
    assert log.steps == index + 1 == 5
    assert_same(weights_of(model), weights_of(other), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("method", [KL(clm_weight=0.6), CrossEntropy(clm_weight=0.3, tail="renormalise")], ids=lambda m: m.name)
def test_taught_training_equals_dense_rows_by_hand(tmp_path, method):
    """Oracle: all logits, a dense teacher filled row by row, autograd."""
    documents, settings = texts(6), quick(batch_documents=1, clip=0.0)
    model, other = tiny(tmp_path / "model"), tiny(tmp_path / "model")
    optimizer = torch.optim.AdamW(other.module.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    lengths, expected = np.array([len(d.trained_bytes) for d in documents]), []
    for index, planned in enumerate(planned_steps(lengths, settings)):
        document = documents[planned[0][0]]
        encoding = other.tokenizer.encode(document)
        fused = random_teacher(document, encoding)
        log_q = other.module(input_ids=torch.from_numpy(encoding.ids)[None]).logits[0].log_softmax(-1)
        losses = []
        for t in range(1, len(encoding.ids)):
            row = log_q[t - 1]
            clm = -row[encoding.ids[t]]
            if fused is None or not fused.taught[t]:
                losses.append(clm)
                continue
            ids, p = fused.topk.ids[t], torch.from_numpy(fused.topk.log_probs[t]).exp()
            rest = torch.tensor(float(np.exp(fused.topk.tail[t]))) if method.tail == "bucket" else torch.tensor(0.0)
            p, rest = p / (p.sum() + rest), rest / (p.sum() + rest)
            fusion = -(p * row[ids]).sum() - (rest * torch.log1p(-row[ids].exp().sum()) if rest > 0 else 0)
            if method.name == "kl":
                fusion = fusion + (p * p.log()).sum() + torch.xlogy(rest, rest)
            losses.append(method.clm_weight * clm + (1 - method.clm_weight) * fusion)
        loss = torch.stack(losses).mean()
        expected.append(float(loss.detach()))
        loss.backward()
        optimizer.param_groups[0]["lr"] = settings.learning_rate_at(index, 6)
        optimizer.step()
        optimizer.zero_grad()
    log = train(model, documents, random_teacher, method, replace(settings, weight_decay=0.0, log_steps=1), tmp_path / "out")
    assert [line.loss for line in log.lines] == pytest.approx(expected, rel=1e-5)
    assert 0 < log.taught < log.positions
    assert_same(weights_of(model), weights_of(other), rtol=1e-4, atol=5e-6)


# ------------------------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize(("batch_documents", "accumulation"), [(2, 2), (1, 4)])
def test_micro_batches_change_nothing(tmp_path, batch_documents, accumulation):
    documents = texts(12)
    whole, parts = tiny(tmp_path / "model"), tiny(tmp_path / "model")
    expected = train(whole, documents, random_teacher, KL(), quick(batch_documents=4), tmp_path / "a")
    settings = quick(batch_documents=batch_documents, accumulation=accumulation, chunk=7)
    found = train(parts, documents, random_teacher, KL(), settings, tmp_path / "b")
    assert (found.steps, found.positions, found.taught) == (3, expected.positions, expected.taught)
    assert found.lines[0].loss == pytest.approx(expected.lines[0].loss, rel=1e-6)
    assert_same(weights_of(parts), weights_of(whole), rtol=1e-4, atol=5e-6)


def test_self_fusion_moves_no_weight(tmp_path):
    """A model taught by its own whole distributions alone is where it should be."""
    model = tiny(tmp_path / "model")
    before = weights_of(model)
    frozen = tiny(tmp_path / "model")
    teacher = lambda document, encoding: taught(whole_rows(frozen, encoding))  # noqa: E731
    settings = quick(epochs=2, weight_decay=0.1, log_steps=1)
    log = train(model, texts(6), teacher, KL(clm_weight=0.0), settings, tmp_path / "out")
    assert log.taught == log.positions
    assert max(abs(line.fusion_nats) for line in log.lines) < 1e-6
    assert log.skipped_steps == log.steps == 6
    assert_same(weights_of(model), before, rtol=0, atol=0)


def test_a_teacher_that_never_speaks_is_plain_training(tmp_path):
    plain, silent = tiny(tmp_path / "model"), tiny(tmp_path / "model")
    nobody = lambda document, encoding: replace(taught(whole_rows(plain, encoding)), taught=np.zeros(len(encoding.ids), bool))  # noqa: E731
    expected = train(plain, texts(6), None, KL(clm_weight=0.1), quick(), tmp_path / "a")
    found = train(silent, texts(6), nobody, KL(clm_weight=0.1), quick(), tmp_path / "b")
    assert found.lines == expected.lines
    assert_same(weights_of(silent), weights_of(plain), rtol=0, atol=0)


def test_recomputed_activations_change_nothing(tmp_path):
    plain, recomputed = tiny(tmp_path / "model"), tiny(tmp_path / "model")
    train(plain, texts(6), random_teacher, KL(), quick(), tmp_path / "a")
    train(recomputed, texts(6), random_teacher, KL(), quick(gradient_checkpointing=True), tmp_path / "b")
    assert_same(weights_of(recomputed), weights_of(plain), rtol=1e-5, atol=1e-7)


def test_padding_needs_no_mask(tmp_path):
    model = tiny(tmp_path / "model")
    reader = Reader([Strand(texts(4))], model.tokenizer, quick(batch_documents=4), lambda step: 1.0, None, 256)
    batch = next(reader.steps()).batches[0]
    assert not batch.attention_mask.all()
    with torch.no_grad():
        with_mask, without = model.hidden(batch.input_ids, batch.attention_mask), model.hidden(batch.input_ids)
    assert_close(without[batch.attention_mask], with_mask[batch.attention_mask], rtol=1e-5, atol=1e-5)


def test_bfloat16_is_close_and_keeps_float32_weights(tmp_path):
    exact, rough = tiny(tmp_path / "model"), tiny(tmp_path / "model", dtype="bfloat16")
    expected = train(exact, texts(12), random_teacher, KL(), quick(log_steps=1), tmp_path / "a")
    found = train(rough, texts(12), random_teacher, KL(), quick(log_steps=1, precision="bfloat16"), tmp_path / "b")
    assert {p.dtype for p in rough.module.parameters()} == {torch.float32}
    assert [line.loss for line in found.lines] == pytest.approx([line.loss for line in expected.lines], rel=0.02)
    again = train(tiny(tmp_path / "model"), texts(12), random_teacher, KL(), quick(log_steps=1), tmp_path / "c")
    assert again == expected, "the precision of one run leaked into the next"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_a_gpu_trains_what_the_cpu_trains(tmp_path, precision, tolerance):
    from lmfuse.models import ModelSpec, load_model

    expected = train(tiny(tmp_path / "model"), texts(12), random_teacher, KL(), quick(log_steps=1), tmp_path / "a")
    model = load_model(ModelSpec(model=str(tmp_path / "model"), dtype="float32"), device="cuda")
    settings = quick(log_steps=1, precision=precision, checkpoint_steps=2)
    found = train(model, texts(12), random_teacher, KL(), settings, tmp_path / "b")
    assert model.device.type == "cuda"
    assert [line.loss for line in found.lines] == pytest.approx([line.loss for line in expected.lines], rel=tolerance)
    again = load_model(ModelSpec(model=str(tmp_path / "model"), dtype="float32"), device="cuda")
    assert train(again, texts(12), random_teacher, KL(), settings, tmp_path / "b") == found
    assert_same(weights_of(again), weights_of(model), rtol=0, atol=0)


def test_ground_truths_weight_moves_to_its_end(tmp_path, monkeypatch):
    seen = []
    original = loop.objective

    def spy(hidden, head, labels, teacher, clm_weight, loss, **options):
        seen.append(clm_weight.unique().tolist())
        return original(hidden, head, labels, teacher, clm_weight, loss, **options)

    monkeypatch.setattr(loop, "objective", spy)
    train(tiny(tmp_path / "model"), texts(8), random_teacher, KL(clm_weight=0.2, clm_weight_end=1.0), quick(), tmp_path / "a")
    assert seen == [[pytest.approx(0.2 + 0.8 * step / 4)] for step in range(4)]
    seen.clear()
    train(tiny(tmp_path / "model"), texts(2), random_teacher, KL(), quick(), tmp_path / "b", document_weight=lambda d: 0.5)
    assert seen == [[0.5]]


def spoken_teacher(document: Document, encoding) -> Fused | None:
    """The random teacher, which also knows how likely the true tokens are, and ends a token where every other token ends."""
    fused, rng = random_teacher(document, encoding), np.random.default_rng(int(document.id[:8], 16))
    size = len(encoding.ids)
    return fused and replace(fused, truth_nll_nats=rng.exponential(3.0, size), boundary=np.arange(size) % 2 > 0)


@pytest.mark.parametrize(
    "loss", [ChunkLikelihood(clm_weight=0.3, threshold=0.0), Uld(clm_weight=0.3), ProjectedKL(clm_weight=0.3)], ids=str
)
def test_other_losses_are_the_same_however_a_step_is_cut(tmp_path, loss):
    size = fakes.byte_bpe().get_vocab_size()
    aids = Aids(torch.arange(size) % 2 > 0, Projection.from_map(VocabularyMap.from_single(np.arange(size), size, "exact")))
    models = [tiny(tmp_path / "model") for _ in range(3)]
    for model, (documents, accumulation), teacher in zip(
        models, [(4, 1), (1, 4), (4, 1)], [spoken_teacher, spoken_teacher, None], strict=True
    ):
        settings = quick(batch_documents=documents, accumulation=accumulation)
        train(model, texts(8), teacher, loss, settings, tmp_path / f"{documents}-{teacher is None}", aids=aids)
    assert_same(weights_of(models[0]), weights_of(models[1]), rtol=1e-3, atol=1e-5)
    plain = weights_of(models[2])
    assert max(float((plain[name] - value).abs().max()) for name, value in weights_of(models[0]).items()) > 1e-4


def test_weight_decay_spares_norms(tmp_path):
    model = tiny(tmp_path / "model")
    decayed, spared = adamw(model.module, quick(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in spared["params"]} == {1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.module.parameters()))


# ---------------------------------------------------------------------------------------------------------------- what it says


def test_log_events_progress_and_evaluation(tmp_path):
    model, documents = tiny(tmp_path / "model"), texts(14)
    tokens = sum(len(model.tokenizer.encode(d).ids) for d in documents)
    events, read, states = [], [], []

    def evaluate(model):
        states.append((model.module.training, torch.is_grad_enabled()))
        return {"macro": 1.5 + len(states), "unmeasured": float("nan")}

    settings = quick(log_steps=3, evaluate_steps=4, clip=1e-3)
    log = train(
        model, documents, random_teacher, KL(), settings, tmp_path / "out", evaluate=evaluate, progress=read.append, on_event=events.append
    )
    assert sum(read) == log.tokens == tokens
    assert log.positions == tokens - len(documents)  # one start token each
    assert [line.step for line in log.lines] == [3, 6, 7]
    assert log.clipped_steps == log.steps == 7
    assert log.lines[-1].tokens == tokens
    assert [(e.step, e.values) for e in log.evaluations] == [(s, {"macro": m, "unmeasured": None}) for s, m in ((4, 2.5), (7, 3.5))]
    assert states == [(False, False)] * 2
    assert not model.module.training
    assert [event["kind"] for event in events] == ["train", "evaluate", "checkpoint", "train", "train", "evaluate", "checkpoint"]
    assert all(event["tokens_per_s"] > 0 for event in events if event["kind"] == "train")
    assert json.loads(json.dumps(events)) == events
    written = (tmp_path / "out" / "training.json").read_text()
    assert written == log.to_json()
    assert "per_s" not in written
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000007"]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    train(
        tiny(tmp_path / "model"), texts(2), None, KL(), quick(tracker="tensorboard"), tmp_path / "out", tracker_folder=tmp_path / "curves"
    )
    assert list((tmp_path / "curves").rglob("events.out.tfevents.*"))
    assert not (tmp_path / "out" / "tracker").exists()


# -------------------------------------------------------------------------------------------------------------------- resuming


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 4, 5, 8])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_stopped_run_continues_to_the_same_bytes(tmp_path, stop, dropout):
    documents, calls = texts(16), []
    settings = quick(checkpoint_steps=2, log_steps=3, evaluate_steps=5, weight_decay=0.1, accumulation=1, length_block=2)

    def fresh():
        model = tiny(tmp_path / "model")
        for module in model.module.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = dropout
        return model

    def breaks(document, encoding):
        calls.append(document.id)
        if len(calls) == 2 * stop:
            raise StoppedError
        return random_teacher(document, encoding)

    def evaluate(model):
        return {"size": float(sum(p.abs().sum() for p in model.module.parameters()))}

    whole, events = fresh(), []
    expected = train(whole, documents, random_teacher, KL(), settings, tmp_path / "whole", evaluate=evaluate)
    with pytest.raises(StoppedError):
        train(fresh(), documents, breaks, KL(), settings, tmp_path / "parts", evaluate=evaluate)
    model = fresh()
    found = train(model, documents, random_teacher, KL(), settings, tmp_path / "parts", evaluate=evaluate, on_event=events.append)
    assert found == expected
    assert_same(weights_of(model), weights_of(whole), rtol=0, atol=0)
    assert (tmp_path / "parts" / "training.json").read_bytes() == (tmp_path / "whole" / "training.json").read_bytes()
    assert [event["kind"] for event in events].count("resume") == (stop > 2)


def test_a_finished_run_is_not_trained_again(tmp_path):
    documents = texts(4)
    first, again = tiny(tmp_path / "model"), tiny(tmp_path / "model")
    expected = train(first, documents, random_teacher, KL(), quick(), tmp_path / "out")
    read = []

    def never(document, encoding):
        raise AssertionError("read again")

    assert train(again, documents, never, KL(), quick(), tmp_path / "out", progress=read.append) == expected
    assert sum(read) == expected.tokens
    assert_same(weights_of(again), weights_of(first), rtol=0, atol=0)


@pytest.mark.parametrize("other", ["settings", "documents", "loss", "teacher", "weights"])
def test_another_runs_checkpoint_is_refused(tmp_path, other):
    model, documents = tiny(tmp_path / "model"), texts(4)
    train(model, documents, None, KL(), quick(), tmp_path / "out")
    settings = quick(learning_rate=2e-3) if other == "settings" else quick()
    given = documents[::-1] if other == "documents" else documents
    loss = KL(clm_weight=0.5) if other == "loss" else KL()
    teacher = random_teacher if other == "teacher" else None
    weight = (lambda d: 0.5) if other == "weights" else None
    with pytest.raises(InputError, match="another run"):
        train(tiny(tmp_path / "model"), given, teacher, loss, settings, tmp_path / "out", document_weight=weight)


# ------------------------------------------------------------------------------------------------------------------ wrong input


def test_teachers_exceptions_come_through(tmp_path):
    def teacher(document, encoding):
        raise KeyError(document.id)

    with pytest.raises(KeyError):
        train(tiny(tmp_path / "model"), texts(4), teacher, KL(), quick(), tmp_path / "out")
    assert not (tmp_path / "out" / "training.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    model, documents = tiny(tmp_path / "model"), texts(8)
    original, calls = loop.objective, []

    def poisoned(hidden, *rest, **named):
        calls.append(1)
        return original(hidden * float("nan") if len(calls) == 5 else hidden, *rest, **named)

    monkeypatch.setattr(loop, "objective", poisoned)
    with pytest.raises(ModelError, match=r"step 5: loss nan nats, gradient norm nan; documents \w{32}") as caught:
        train(model, documents, None, KL(), quick(batch_documents=1), tmp_path / "out")
    assert "learning rate" in caught.value.hint
    assert not (tmp_path / "out" / "training.json").exists()
    assert not list((tmp_path / "out").rglob("manifest.json"))


def test_out_of_memory_says_what_to_change(tmp_path, monkeypatch):
    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loop, "objective", too_much)
    with pytest.raises(ResourceError, match="out of memory while training: CUDA out of memory") as caught:
        train(tiny(tmp_path / "model"), texts(2), None, KL(), quick(), tmp_path / "out")
    assert "accumulation" in caught.value.hint


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(InputError, match="no documents"):
        train(tiny(tmp_path / "model"), [], None, KL(), quick(), tmp_path / "out")


def test_documents_too_short_to_predict_anything_do_no_harm(tmp_path):
    model = tiny(tmp_path / "model")
    log = train(model, [Document.plain(""), *texts(1)], None, KL(), quick(batch_documents=1), tmp_path / "out")
    assert (log.steps, log.skipped_steps) == (2, 1)
    assert all(p.isfinite().all() for p in model.module.parameters())


# -------------------------------------------------------------------------------------------------------------- more processes


def test_two_processes_train_what_one_trains(tmp_path):
    """DDP over gloo on the CPU; the odd number of documents leaves one process without a share of the last step."""
    documents = [Document.plain(" ".join(WORDS[i : i + 9])) for i in range(9)]
    alone = tiny(tmp_path / "model")
    settings = quick(batch_documents=1, accumulation=4)
    expected = train(alone, documents, random_teacher, KL(), settings, tmp_path / "one")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000),
           "ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.train.test_loop", str(tmp_path / "model"), str(tmp_path / "two")]
    children = [subprocess.Popen(command, cwd=root, env={**env, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    assert json.loads((tmp_path / "two" / "training.json").read_text())["positions"] == expected.positions
    from safetensors.torch import load_file

    found = load_file(next((tmp_path / "two").glob("checkpoints/*/weights.safetensors")))
    assert_same(found, weights_of(alone), rtol=1e-4, atol=5e-6)


if __name__ == "__main__":  # one of the two processes
    from lmfuse.models import ModelSpec, load_model

    torch.set_num_threads(1)
    shared_documents = [Document.plain(" ".join(WORDS[i : i + 9])) for i in range(9)]
    loaded = load_model(ModelSpec(model=sys.argv[1], dtype="float32"))
    train(loaded, shared_documents, random_teacher, KL(), quick(batch_documents=1, accumulation=4), Path(sys.argv[2]))
