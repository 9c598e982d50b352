"""How likely continuations are: against lm_eval's own class, against numbers put together by hand, and against what is really written."""

import math

import numpy as np
import pytest
import torch

from lmfuse.errors import InputError
from lmfuse.evaluate import harness_scores as scores
from lmfuse.evaluate.harness_prompts import Context, spaces_moved
from lmfuse.generate.crew import Crew
from lmfuse.generate.joint import byte_readers
from lmfuse.types import Segment
from lmfuse.writing import Passage, WritingSettings
from tests.evaluate.harness_build import ensemble, folder, request
from tests.fakes import TEXT

KINDS = ("byte_bpe", "metaspace_bpe", "unigram")
METHODS = ("cool", "rerank", "cool_rerank", "unite", "safe", "byte_mixture", "pack_llm")
CONTEXT, CHOICES = Context("Anna has 12 apples"), [" and buys 7 more.", " naïve 東京", " and", "t"]
PAIRS = [
    ("The quick brown", " fox jumps"),
    ("The quick brown", " dog sleeps on."),
    ("", "The quick"),
    ("qui", "ck brown fox jumps"),
    ("naïve ca", "fé 🙂 東京 and more"),
]


def hf(kind, **arguments):
    module = pytest.importorskip("lm_eval.models.huggingface", reason="needs lm_eval (pip install 'lmfuse[eval]')")
    return module.HFLM(pretrained=folder(kind), dtype="float32", device="cpu", batch_size=2, **arguments)


def ours(kind, pairs):
    models = ensemble(kind)
    cut = [scores.token_pair(models, *spaces_moved(*pair)) for pair in pairs]
    return [(each.log_prob, each.greedy) for each in scores.score_tokens(models.models("empty")[0], cut)]


def score(models, context, continuations):
    """Score one context's continuations, beside those of another one."""
    found = scores.score_continuations(models, [(context, continuations), (Context("It was the best"), [" of times"])])
    return found[0]


# ── one model ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_one_model_says_what_the_harness_says_of_it(kind):
    oracle = hf(kind)
    long = ("".join(TEXT * 6), " the answer")  # longer than the context
    likeliest = ensemble(kind).writer("plain").write("The quick", WritingSettings(max_tokens=4))
    written = "".join(each.text for each in likeliest if isinstance(each, Passage))
    pairs = [*PAIRS, long, ("The quick", written), ("The quick", f"{written[:-1]}#")]
    want = oracle.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
    found = ours(kind, pairs)
    np.testing.assert_allclose([each[0] for each in found], [each[0] for each in want], atol=2e-3)
    assert [each[1] for each in found] == [bool(each[1]) for each in want]


def test_a_continuation_that_the_harness_would_lose_is_cut_for_itself():
    """Both together have no more tokens than the context alone; the harness's own class fails there."""
    before, after = scores.token_pair(ensemble("metaspace_bpe"), "naïve ca", "fé 🙂")
    vocabulary = ensemble("metaspace_bpe").models("plain")[0].tokenizer.vocabulary
    assert b"".join(map(vocabulary.bytes_of, before)).decode() == " naïve ca"
    assert b"".join(map(vocabulary.bytes_of, after)).decode() == "fé 🙂"


@pytest.mark.parametrize("kind", ["byte_bpe", "unigram"])
@pytest.mark.parametrize("text", ["a", "".join(TEXT), "".join(TEXT * 5)])
def test_whole_texts_are_what_the_harness_says(kind, text):
    want = hf(kind).loglikelihood_rolling([request(text)], disable_tqdm=True)
    assert scores.roll_tokens(ensemble(kind), text, 3) == pytest.approx(want[0], abs=5e-3)


def test_of_whole_texts_the_start_token_is_not_predicted():
    """The harness's own class predicts the start token that the tokenizer adds; it is no part of the text."""
    want = hf("metaspace_bpe", add_bos_token=False).loglikelihood_rolling([request("".join(TEXT))], disable_tqdm=True)
    assert scores.roll_tokens(ensemble("metaspace_bpe"), "".join(TEXT), 3) == pytest.approx(want[0], abs=5e-3)


@pytest.mark.parametrize("size", [0, 1, 4, 5, 9, 10, 23])
def test_windows_are_the_harnesses(size):
    utils = pytest.importorskip("lm_eval.utils", reason="needs lm_eval (pip install 'lmfuse[eval]')")
    ids = list(range(size))
    want = map(utils.make_disjoint_window, utils.get_rolling_token_windows(ids, 99, 5, 1))
    assert list(scores.windows(99, ids, 5)) == list(want)


def test_a_continuation_longer_than_the_context_is_refused():
    with pytest.raises(InputError, match="reads at most 256"):
        ours("byte_bpe", [("a", "".join(TEXT * 20))])
    with pytest.raises(InputError, match="reads at most 256"):
        score(ensemble("byte_bpe", "unigram"), CONTEXT, ["".join(TEXT * 20)])


# ── judges ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_judges_are_averaged_with_their_weights():
    one, two = (np.array([each.log_prob for each in score(ensemble(kind), CONTEXT, CHOICES)]) for kind in KINDS[:2])
    for weights, want in (((), (one + two) / 2), ((3, 1), (3 * one + two) / 4), ((0, 1), two)):
        found = score(ensemble(*KINDS[:2], weights=weights), CONTEXT, CHOICES)
        np.testing.assert_allclose([each.log_prob for each in found], want, atol=1e-4)


def test_a_judge_alone_is_the_model_alone_where_no_token_crosses_the_boundary():
    pairs = [(CONTEXT.text, each) for each in CHOICES[:3]]
    found = [each.log_prob for each in score(ensemble("byte_bpe"), CONTEXT, CHOICES[:3])]
    np.testing.assert_allclose(found, [each[0] for each in ours("byte_bpe", pairs)], atol=1e-4)


def test_nothing_is_certain():
    assert score(ensemble("byte_bpe", "unigram"), CONTEXT, ["", " a"])[0] == scores.Score(0.0, True)


@pytest.mark.parametrize("method", METHODS)
def test_greedy_is_what_the_models_together_write(method):
    models = ensemble(*KINDS, method=method)
    written = "".join(
        each.text for each in models.writer("plain").write(CONTEXT.text, WritingSettings(max_bytes=6)) if isinstance(each, Passage)
    )
    assert written
    found = score(models, CONTEXT, [written, "#" + written[1:], written[:-1] + "\x02"])
    assert [each.greedy for each in found] == [True, False, False]
    assert all(math.isfinite(each.log_prob) and each.log_prob < 0 for each in found)


def test_a_long_context_loses_its_beginning_and_a_conversation_does_not():
    models = ensemble("byte_bpe", "unigram", chat=True)
    long = "".join(TEXT * 6)
    full = score(models, Context(long), CHOICES)
    kept = scores.fitted(models, Context(long), [20, 20])
    assert long.endswith(kept.text)
    assert len(kept.text) < len(long)
    assert all(math.isfinite(each.log_prob) for each in full)
    with pytest.raises(InputError, match=r"a conversation of .* reads at most 256"):
        score(models, Context("", (Segment(long, "user", trained=False),)), CHOICES)


# ── bytes ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def byte_log_probs(kind: str, text: str) -> np.ndarray:
    """Return what one model alone says of each byte of a text behind the context."""
    models = ensemble(kind, method="byte_mixture")
    crew, found = Crew(models.models("plain"), models.labels, CONTEXT.text, WritingSettings()), []
    with torch.inference_mode():
        (reader,) = byte_readers(crew)
        for byte in text.encode():
            found.append(reader.log_probs()[byte])
            reader.push(byte)
    return np.array(found)


@pytest.mark.parametrize("weights", [(), (3.0, 1.0), (0.0, 1.0)])
def test_a_mixture_is_mixed_at_every_byte(weights):
    share = np.array(weights or (1, 1)) / sum(weights or (1, 1))
    found = score(ensemble(*KINDS[:2], method="byte_mixture", weights=weights), CONTEXT, CHOICES)
    for each, text in zip(found, CHOICES, strict=True):
        both = np.exp([byte_log_probs(kind, text) for kind in KINDS[:2]])
        assert each.log_prob == pytest.approx(np.log(share @ both).sum(), abs=1e-4)


def test_a_whole_text_is_a_continuation_of_nothing():
    models = ensemble(*KINDS, method="byte_mixture")
    want = score(models, Context(""), ["The quick naïve fox"])[0].log_prob
    assert scores.roll_bytes(models, "The quick naïve fox") == pytest.approx(want, abs=1e-4)


def test_a_text_longer_than_the_context_is_read_in_parts_between_words():
    models, text = ensemble("byte_bpe", method="byte_mixture", context=64), "".join(TEXT[:2] * 2)
    with models.reading(Context("")) as crew:
        first = scores._roll_on(models, crew, text.encode())
    assert 30 < len(first) < len(text.encode())
    assert text.encode()[len(first) : len(first) + 1] == b" "
    with models.reading(scores.fitted(models, Context(text[: len(first)]), [32])) as crew:
        second = scores._roll_on(models, crew, text.encode()[len(first) :])
    done = len(first) + len(second)
    rest = scores.roll_bytes(models, text) - sum(first) - sum(second)
    assert -8 * (len(text.encode()) - done) <= rest <= 0
    assert scores.roll_bytes(models, text[:done]) == pytest.approx(sum(first) + sum(second), abs=1e-4)
