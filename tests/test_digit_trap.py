"""The digit trap: a source that spells numbers digit by digit teaches a target whose numbers are single tokens.

The source's row before ``12`` speaks of ``1``. Taken at its word for the target's token ``1``, it teaches the target to stop writing
``12``. The source here is the language itself, digit by digit, so whatever the target unlearns is the alignment's fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lmfuse.aids import load_aids
from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.join import Join
from lmfuse.bytes import ByteTokenizer
from lmfuse.fuse.min_ce import MinCE
from lmfuse.losses.chunk_likelihood import ChunkLikelihood
from lmfuse.losses.family import Loss
from lmfuse.losses.kl import KL
from lmfuse.losses.projected_kl import ProjectedKL
from lmfuse.models import LanguageModel, ModelSpec, load_model
from lmfuse.pairs import load_pair
from lmfuse.teacher import RowTeacher, SourceRows
from lmfuse.types import Document, Rows, TopK
from tests import fakes
from tests.train.setups import quick, train

DIGITS = "0123456789"
NUMBERS = [f"{ten}{one}" for ten in DIGITS[1:] for one in DIGITS]
UNSAID = 0.02  # what the source leaves to bytes that it does not name


def tokenizer(pairs: list[str]) -> Tokenizer:
    """A byte-level tokenizer of single bytes and these pairs of digits."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(["<|endoftext|>", *alphabet, *pairs])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[(pair[0], pair[1]) for pair in pairs]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return made


SOURCE = ByteTokenizer.from_tokenizer(tokenizer([]), eos="<|endoftext|>")
NAMES = "abc"
SHARE = np.random.default_rng(0).dirichlet(np.full(len(NUMBERS), 0.3), len(NAMES))  # how often a name goes with each number


def write(rng: np.random.Generator, items: int = 8) -> str:
    """Write a text of the language: names and their numbers, such as ``a=12;b=90;``."""
    names = rng.integers(0, len(NAMES), items)
    return "".join(f"{NAMES[name]}={NUMBERS[rng.choice(len(NUMBERS), p=SHARE[name])]};" for name in names)


def continuation(text: str, place: int) -> dict[str, float]:
    """Return what the language says of the byte at a place: probabilities that sum to 1."""
    name, written = text[place - place % 5], place % 5
    if written == 0:
        return dict.fromkeys(NAMES, 1 / len(NAMES))
    if written in (1, 4):
        return {"=": 1.0} if written == 1 else {";": 1.0}
    share = SHARE[NAMES.index(name)].reshape(9, 10)
    if written == 2:
        return dict(zip(DIGITS[1:], share.sum(1).tolist(), strict=True))
    tens = share[int(text[place - 1]) - 1]
    return dict(zip(DIGITS, (tens / tens.sum()).tolist(), strict=True))


def rows_of(document: Document) -> Rows:
    """Return the language's own rows: one for every byte, as a digit-splitting source would keep them."""
    text = document.segments[0].text
    encoding = SOURCE.encode(document)
    id_of = {SOURCE.vocabulary.bytes_of(i): i for i in range(SOURCE.vocabulary.size)}
    topk = TopK.unknown(len(text), 10, SOURCE.vocabulary.size)
    nll = np.zeros(len(text), np.float32)
    for place in range(len(text)):
        said = {token: prob * (1 - UNSAID) for token, prob in continuation(text, place).items() if prob > 0}
        topk.ids[place, : len(said)] = [id_of[token.encode()] for token in said]
        topk.log_probs[place, : len(said)] = np.log(list(said.values()))
        nll[place] = -np.log(said[text[place]])
    topk.tail[:] = np.log(UNSAID)
    read = encoding.starts >= 0
    return Rows(encoding.starts[read], encoding.ends[read], encoding.ids[read], nll, topk)


@dataclass(frozen=True)
class Written:
    """What a student makes of held-out numbers: the mean probability of the true token, and of all tokens of two digits together."""

    truth: float
    numbers: float


def measure(model: LanguageModel, documents: list[Document]) -> Written:
    numbers = torch.tensor(
        [len(word := model.tokenizer.vocabulary.bytes_of(i)) == 2 and word.isdigit() for i in range(model.head.vocab_size)]
    )
    truth, mass = [], []
    for document in documents:
        ids = torch.from_numpy(model.tokenizer.encode(document).ids)
        with torch.no_grad():
            probs = model.head.logits(model.hidden(ids[None])[0, :-1]).softmax(1)
        at = numbers[ids[1:]]
        truth.append(probs.gather(1, ids[1:, None])[at, 0])
        mass.append(probs[:, numbers].sum(1)[at])
    return Written(float(torch.cat(truth).mean()), float(torch.cat(mass).mean()))


def train_on(folder: Path, align: ByteLaw | Join | None, loss: Loss) -> Written:
    """Train the same student on the same text in the same order; None: nobody teaches."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    documents, held_out = ([Document.plain(write(rng)) for _ in range(count)] for count in (160, 40))
    spec = ModelSpec(model=str(fakes.save_model(folder / "target", tokenizer(NUMBERS), layers=1)), dtype="float32")
    model = load_model(spec)
    teacher = None
    if align is not None:
        pair = load_pair(SOURCE, model.tokenizer, folder / "cache", align, documents)
        source = SourceRows("digits", {document.id: rows_of(document) for document in documents}, pair, {"text": 1.0})
        teacher = RowTeacher((source,), align, MinCE())
    aids = load_aids(loss, model.tokenizer, [SOURCE], folder / "cache")
    train(model, documents, teacher, loss, quick(batch_documents=8, epochs=3, learning_rate=1e-2), folder / "out", aids=aids)
    return measure(model, held_out)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Written:
    return train_on(tmp_path_factory.mktemp("plain"), None, KL())


def test_the_target_writes_numbers_as_single_tokens():
    document = Document.plain("a=12;b=90;")
    target = ByteTokenizer.from_tokenizer(tokenizer(NUMBERS), eos="<|endoftext|>")
    assert [target.vocabulary.bytes_of(int(i)) for i in target.encode(document).ids[-8:]] == [
        b"a",
        b"=",
        b"12",
        b";",
        b"b",
        b"=",
        b"90",
        b";",
    ]
    assert len(SOURCE.encode(document).ids) == 11


SLACK = 0.002  # what a tenth less of the ground truth may cost in training this short


@pytest.mark.parametrize("name", ["exact", "min_ed"])
def test_the_trap_is_real_whole_tokens_mapped_one_by_one_unteach_numbers(tmp_path, plain, name):
    found = train_on(tmp_path, Join(map=name), KL())
    assert found.numbers < plain.numbers - 0.05
    assert found.truth < 0.95 * plain.truth


def test_the_default_does_not_fall_into_it(tmp_path, plain):
    found = train_on(tmp_path, ByteLaw(), KL())
    assert found.numbers >= plain.numbers - SLACK
    assert found.truth >= plain.truth * (1 - SLACK)


@pytest.mark.parametrize(
    ("align", "loss"), [(ByteLaw(), ChunkLikelihood()), (Join(map="none"), ProjectedKL())], ids=["chunk_likelihood", "projected_kl"]
)
def test_nor_do_losses_that_never_name_a_single_digit(tmp_path, plain, align, loss):
    found = train_on(tmp_path, align, loss)
    assert found.numbers >= plain.numbers - SLACK
    assert found.truth >= plain.truth * (1 - 2 * SLACK)
