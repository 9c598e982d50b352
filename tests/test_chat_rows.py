"""From conversations to rows to teacher rows: what a source says of the end of a turn teaches the target's own token for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.join import Join
from lmfuse.align.pair import build_pair
from lmfuse.bytes import ByteTokenizer
from lmfuse.collect import collect
from lmfuse.evaluate.bits_per_byte import score_documents
from lmfuse.fuse.min_ce import MinCE
from lmfuse.models import LanguageModel, wrap_module
from lmfuse.pairs import load_pair
from lmfuse.store import RowStore
from lmfuse.teacher import RowTeacher, SourceRows
from lmfuse.train.batches import collate, example
from lmfuse.types import END_OF_TURN, Document, Encoding, Rows, TopK, Vocabulary
from tests import fakes
from tests.chat_templates import load, talk

TALKS = [
    talk("What is 12 + 7?", "12 + 7 = 19. The answer is 19.", "And the dog?", "The lazy dog sleeps on."),
    talk("the quick", "brown fox – naïve"),
    talk("Hi", "over", "over", "the lazy dog, and", "x", "it was the worst of times"),
]


def model(folder: Path, tokenizer: Tokenizer, family: str, seed: int) -> LanguageModel:
    """Return a random Llama of a few thousand weights that reads conversations."""
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = load(folder, tokenizer, family)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=reader.vocabulary.size + 3, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return wrap_module(LlamaForCausalLM(config), reader)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> LanguageModel:
    return model(tmp_path_factory.mktemp("source"), fakes.metaspace_bpe(), "mistral", 1)  # answers begin with the template's space


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> LanguageModel:
    return model(tmp_path_factory.mktemp("target"), fakes.byte_bpe(), "chatml", 2)


@pytest.fixture(scope="module")
def store(source, tmp_path_factory) -> RowStore:
    folder = tmp_path_factory.mktemp("rows") / "rows"
    return collect(source, TALKS, folder, k=source.tokenizer.vocabulary.size, batch_tokens=512, shard_documents=2, precision="float32")


def end_of(tokenizer: ByteTokenizer) -> int:
    return tokenizer.vocabulary.control["end_of_turn"]


def log_probs(model: LanguageModel, encoding: Encoding) -> np.ndarray:
    """Return the model's own log-probabilities before each token, one forward pass over everything."""
    with torch.no_grad():
        logits = model.module(torch.from_numpy(encoding.ids)[None]).logits[0, :-1, : model.tokenizer.vocabulary.size]
    return np.concatenate([np.full((1, logits.shape[1]), np.nan), torch.log_softmax(logits.double(), -1).numpy()])


def turn_ends(document: Document) -> list[int]:
    return [place for place, byte in enumerate(document.trained_bytes) if byte == END_OF_TURN[0]]


# ------------------------------------------------------------------------------------------------------------------ by hand


def greedy(strings: Sequence[bytes]) -> np.ndarray:
    """Return what a target of the tokens END_OF_TURN, a and b writes first."""
    return np.array([{b"\xff": 0, b"a": 1, b"b": 2}.get(string[:1], -1) for string in strings], np.int64)


def test_two_turns_by_hand():
    """The source expects `a` (.6) or `ab` (.2), then to end; in the second turn it writes the template's space with its answer."""
    source = Vocabulary.from_tokens([b"\xff", b"a", b"ab", b" a"], control={"end_of_turn": 0, "eos": 0})
    target = Vocabulary.from_tokens([b"\xff", b"a", b"b", b""], control={"end_of_turn": 0, "eos": 3})
    probs = np.array([[0.1, 0.6, 0.2, 0.05], [0.7, 0.1, 0.0, 0.1], [0.1, 0.2, 0.1, 0.5], [0.8, 0.1, 0.0, 0.0]], np.float32)
    with np.errstate(divide="ignore"):
        topk = TopK(np.tile(np.arange(4), (4, 1)), np.log(probs), np.log(1 - probs.sum(1)), 4)
    followed = np.array([1, 0, 3, 0])
    rows = Rows(np.arange(4), np.arange(1, 5), followed, -np.log(probs[np.arange(4), followed]), topk)
    encoding = Encoding(np.array([3, 1, 0, 3, 1, 0]), np.array([-1, 0, 1, -1, 2, 3]), np.array([-1, 1, 2, -1, 3, 4]))
    said = ByteLaw(k=3)(rows, encoding, build_pair(source, target, greedy))

    def given(token: int) -> list[float]:
        ids, mass = said.topk.ids[token], np.exp(said.topk.log_probs[token])
        return [round(float(mass[ids == i].sum()), 4) for i in range(3)]

    assert said.source_row.tolist() == [-1, 0, 1, -1, 2, 3]
    assert np.allclose(np.exp(-said.truth_nll_nats[[1, 2, 4, 5]]), [0.6, 0.7, 0.5, 0.8])
    assert given(1) == [0.1, 0.8, 0.0]  # `ab` begins with `a` in the target
    assert given(2) == [0.525, 0.075, 0.25]  # three quarters for the path through `a`; the rest of `ab` has the other
    assert given(4) == [0.0, 0.8333, 0.0]  # given the space that the source has written: .5 of .5 and the tail's .1
    assert given(5) == [0.8, 0.1, 0.0]


# ------------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("document", TALKS, ids=lambda document: document.segments[0].text)
def test_rows_are_what_the_model_says_before_each_trained_token(source, store, document):
    encoding, rows = source.tokenizer.encode(document), store[document.id]
    trained = np.flatnonzero(encoding.starts >= 0)
    wanted = log_probs(source, encoding)[trained]
    assert rows.next_ids.tolist() == encoding.ids[trained].tolist()
    assert np.allclose(rows.nll_nats, -wanted[np.arange(len(trained)), encoding.ids[trained]], atol=1e-4)
    ends = np.flatnonzero(rows.next_ids == end_of(source.tokenizer))
    assert rows.starts[ends].tolist() == turn_ends(document)
    assert (rows.ends[ends] - rows.starts[ends] == 1).all()
    assert rows.num_bytes == len(document.trained_bytes)


@pytest.mark.parametrize("method", [ByteLaw(), Join(map="exact")], ids=["byte_law", "join"])
@pytest.mark.parametrize("document", TALKS, ids=lambda document: document.segments[0].text)
def test_the_end_of_a_turn_teaches_the_end_of_a_turn(source, target, store, tmp_path, method, document):
    pair = load_pair(source.tokenizer, target.tokenizer, tmp_path, method)
    rows, encoding = store[document.id], target.tokenizer.encode(document)
    said = method(rows, encoding, pair)
    ours, theirs = end_of(target.tokenizer), end_of(source.tokenizer)
    own = log_probs(source, source.tokenizer.encode(document))
    own_ends = np.flatnonzero(source.tokenizer.encode(document).ids == theirs)
    ends = np.flatnonzero(encoding.starts == np.array(turn_ends(document))[:, None])  # over all pairs: at least one each
    places = [int(np.flatnonzero(encoding.starts == end)[0]) for end in turn_ends(document)]
    assert len(ends) == len(places) == len(own_ends)
    for place, own_place in zip(places, own_ends.tolist(), strict=True):
        assert encoding.ids[place] == ours
        assert rows.starts[said.source_row[place]] == encoding.starts[place]
        mass, chance = np.exp(said.topk.log_probs[place])[said.topk.ids[place] == ours].sum(), np.exp(own[own_place, theirs])
        if isinstance(method, Join):
            assert mass == pytest.approx(chance, rel=1e-3)  # the probability that the source ends its turn here
        assert 0 < mass < 1.001 * chance  # the byte law leaves some to longer tokens that the source may have meant before
        assert said.truth_nll_nats[place] == pytest.approx(-own[own_place, theirs], abs=1e-4)


def test_inside_an_answer_the_chance_of_ending_goes_to_the_targets_end(source, target, store, tmp_path):
    pair = load_pair(source.tokenizer, target.tokenizer, tmp_path, ByteLaw())
    document = TALKS[0]
    rows, encoding = store[document.id], target.tokenizer.encode(document)
    said = Join(map="exact")(rows, encoding, load_pair(source.tokenizer, target.tokenizer, tmp_path, Join(map="exact")))
    law = ByteLaw()(rows, encoding, pair)
    ours, theirs = end_of(target.tokenizer), end_of(source.tokenizer)
    joined = np.flatnonzero((said.source_row >= 0) & (encoding.ends > encoding.starts))
    assert len(joined) > 15
    for place in joined.tolist():
        row = rows.topk[int(said.source_row[place])]
        chance = np.exp(row.log_probs[row.ids == theirs]).sum()
        found = np.exp(said.topk.log_probs[place])[said.topk.ids[place] == ours].sum()
        assert found == pytest.approx(chance, rel=1e-3)
    ends = np.exp(law.topk.log_probs) * (law.topk.ids == ours)
    assert (ends.sum(axis=1)[joined] > 0).mean() > 0.5  # the byte law moves some of it to earlier paths, none away


@pytest.mark.parametrize("document", TALKS, ids=lambda document: document.segments[0].text)
def test_the_law_of_a_conversation_is_the_sources_own(source, target, store, tmp_path, document):
    pair = load_pair(source.tokenizer, target.tokenizer, tmp_path, ByteLaw(), TALKS)
    rows, encoding = store[document.id], target.tokenizer.encode(document)
    said = ByteLaw()(rows, encoding, pair)
    trained = encoding.starts >= 0
    assert (said.source_row[trained] >= 0).all()
    assert (said.source_row[~trained] == -1).all()
    assert said.truth_nll_nats[trained].sum(dtype=np.float64) == pytest.approx(rows.nll_nats.sum(dtype=np.float64), abs=1e-2)


# ----------------------------------------------------------------------------------------------------- training, measuring


def test_a_training_batch_asks_for_ends_and_has_a_teacher_for_them(source, target, store, tmp_path):
    pair = load_pair(source.tokenizer, target.tokenizer, tmp_path, ByteLaw(), TALKS)
    teacher = RowTeacher((SourceRows("s", store, pair, {"chat": 1.0}),), ByteLaw(), MinCE(), {"chat": 2.0})
    document = TALKS[0]
    encoding = target.tokenizer.encode(document)
    batch = collate([example(document, encoding, teacher(document, encoding), 0.5)])
    ours = end_of(target.tokenizer)
    assert batch.labels.tolist() == encoding.ids[encoding.starts >= 0].tolist()  # of the template nothing
    ends = np.flatnonzero(batch.labels.numpy() == ours)
    assert len(ends) == 2
    assert encoding.ids.tolist().count(ours) > 2  # the user's turns end, too, and are not learned
    assert teacher(document, encoding).taught[encoding.starts >= 0].all()


def test_every_trained_byte_is_measured_once_and_masked_ends_are_not(source, target, tmp_path):
    without = model(tmp_path, fakes.metaspace_bpe(), "llama2", 3)
    for document in TALKS:
        sizes = [score_documents(m, [document], batch_tokens=512)[0].num_bytes for m in (source, target, without)]
        turns = len(turn_ends(document))
        assert sizes == [len(document.trained_bytes), len(document.trained_bytes), len(document.trained_bytes) - turns]


def test_without_the_ends_of_turns_all_models_are_measured_on_the_same_bytes(source, target, tmp_path):
    without = model(tmp_path, fakes.metaspace_bpe(), "llama2", 3)
    whole, some = (score_documents(target, TALKS, batch_tokens=512, turn_ends=ends) for ends in (True, False))
    encodings = target.tokenizer.encode_many(TALKS)
    for document, encoding, with_ends, alone in zip(TALKS, encodings, whole, some, strict=True):
        at = np.flatnonzero((encoding.ids == end_of(target.tokenizer)) & (encoding.starts >= 0))
        cost = -log_probs(target, encoding)[at, encoding.ids[at]].sum()
        assert with_ends.num_bytes - alone.num_bytes == len(at) == len(turn_ends(document))
        assert with_ends.nll_nats - alone.nll_nats == pytest.approx(cost, rel=1e-4)
    sizes = [[score.num_bytes for score in score_documents(m, TALKS, batch_tokens=512, turn_ends=False)] for m in (source, target, without)]
    assert sizes[0] == sizes[1] == sizes[2]
