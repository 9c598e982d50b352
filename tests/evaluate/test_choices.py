"""Which answer does a model find the likeliest? Against log-likelihoods computed token by token."""

import math

import pytest
import torch

from lmfuse.errors import InputError
from lmfuse.evaluate.choices import ChoiceScore, Question, score_choices
from lmfuse.models import ModelSpec, load_model
from lmfuse.types import Document
from tests.fakes import byte_bpe, metaspace_bpe, save_model

QUESTIONS = [
    Question("Anna has 12 apples and buys 7 more. She has ", ("19 apples", "5", "naïve café 🙂"), 0),
    Question("The quick brown ", ("fox", "dog sleeps on"), 0, "animals"),
    Question("It was the best of", (" times", "times"), 0),
]


@pytest.fixture(scope="module", params=[byte_bpe, metaspace_bpe], ids=lambda kind: kind.__name__)
def model(request, tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("choices") / "model", request.param())
    return load_model(ModelSpec(str(folder), dtype="float32"))


def by_tokens(model, question, choice):
    """Return nats and bytes of an answer, one document at a time, all tokens that reach into it."""
    encoding = model.tokenizer.encode(Document.plain(question + choice))
    ids = torch.from_numpy(encoding.ids).long()[None]
    log_probs = torch.log_softmax(model.module(input_ids=ids).logits[0, :, : model.tokenizer.vocabulary.size].double(), -1)
    begin = len(question.encode())
    wanted = [t for t in range(1, ids.shape[1]) if encoding.starts[t] >= 0 and encoding.ends[t] > begin]
    return -sum(float(log_probs[t - 1, ids[0, t]]) for t in wanted), sum(
        int(encoding.ends[t] - max(encoding.starts[t], begin)) for t in wanted
    )


def test_by_hand():
    score = ChoiceScore(Question("?", ("a", "bcd", "ef"), 2), (2.0, 3.0, 2.0), (1, 3, 2))
    assert (score.chosen("sum"), score.chosen("bytes")) == (0, 1)
    assert not score.is_right()
    assert ChoiceScore(Question("?", ("a", "b"), 0), (1.0, 1.0), (1, 1)).is_right()  # of equals the first


@torch.no_grad()
def test_oracle_token_by_token(model):
    found = score_choices(model, QUESTIONS, batch_tokens=64)
    for score in found:
        for choice, nats, size in zip(score.question.choices, score.nll_nats, score.num_bytes, strict=True):
            expected, expected_bytes = by_tokens(model, score.question.text, choice)
            assert nats == pytest.approx(expected, rel=1e-4)
            assert size == expected_bytes == len(choice.encode())


def test_invariant_batches_and_company_do_not_matter(model):
    together = score_choices(model, QUESTIONS, batch_tokens=4096)
    alone = [score_choices(model, [question], batch_tokens=16)[0] for question in QUESTIONS]
    for one, other in zip(together, alone, strict=True):
        assert one.nll_nats == pytest.approx(other.nll_nats, rel=1e-4)
        assert one.num_bytes == other.num_bytes
    swapped = Question(QUESTIONS[0].text, QUESTIONS[0].choices[::-1], 2)
    (found,) = score_choices(model, [swapped], batch_tokens=4096)
    assert found.nll_nats[::-1] == pytest.approx(together[0].nll_nats, rel=1e-4)
    assert all(math.isfinite(nats) for nats in found.nll_nats)


def test_wrong_input_a_question_that_is_too_long(model):
    with pytest.raises(InputError, match=r"\(long.jsonl:1\) has \d+ tokens, the model reads at most 256"):
        score_choices(model, [Question("word " * 400, ("a", "b"), 0, origin="long.jsonl:1")], batch_tokens=64)


def test_equal_questions_have_the_same_id():
    assert Question("a", ("b", "c"), 0).id == Question("a", ("b", "c"), 0, "other", "x:1").id != Question("a", ("b", "c"), 1).id
