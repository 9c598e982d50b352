"""The sources as judges: bits per byte with each one's own template, with and without the author."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lmfuse.errors import InputError, TokenizerError
from lmfuse.judges.likelihood import LikelihoodJudge, SourceScorer
from lmfuse.judges.settings import Likelihood
from lmfuse.models import ModelSpec
from tests.fakes import byte_bpe, save_model
from tests.judges.build import case, chat_folder
from tests.test_answers import chat_folder as other_folder

CASES = [case("a"), case("b", "Why?")]
CANDIDATES = [["She has 12 apples.", "The dog sleeps on.", ""], ["Because.", "Because.", "naïve café"]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    place = tmp_path_factory.mktemp("sources")
    folders = {"one": chat_folder(place / "one", seed=1), "two": other_folder(place / "two"), "three": chat_folder(place / "three", seed=2)}
    return {name: ModelSpec(str(folder), dtype="float32", chat_template="own", name=name) for name, folder in folders.items()}


def judge(given, **more) -> LikelihoodJudge:
    return LikelihoodJudge(Likelihood(**more), given, "cpu")


def test_oracle_the_loss_of_transformers_on_the_answers_tokens(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_model(tmp_path / "model", byte_bpe(), seed=4)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role + ':\\n' + m.content }}{{ eos_token }}{% endfor %}")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    spec = ModelSpec(str(folder), dtype="float32", chat_template="own")
    [[opinion]] = SourceScorer(spec, 4096, "cpu").opinions([CASES[1]], [["Because."]])
    before, whole = (
        tokenizer(f"user:\nWhy?<|endoftext|>assistant:\n{text}", return_tensors="pt")["input_ids"] for text in ("", "Because.")
    )
    with torch.no_grad():
        log_probs = torch.log_softmax(model(whole).logits[0], -1)
    nats = -sum(log_probs[i - 1, whole[0, i]].item() for i in range(before.shape[1], whole.shape[1]))
    assert opinion.score == pytest.approx(-nats / math.log(2) / len(b"Because."), rel=1e-5)
    given, said = opinion.exchanges[0]
    assert given == "user:\nWhy?<|endoftext|>assistant:\nBecause.<|endoftext|>"
    assert (float(said.split()[0]), said.split(", ")[1]) == (pytest.approx(nats, rel=1e-5), "8 bytes")


def test_the_mean_over_sources_with_and_without_the_author(sources):
    single = np.stack([judge(sources, sources=(name,)).score(CASES, CANDIDATES).scores for name in sources])
    whole = judge(sources).score(CASES, CANDIDATES).scores
    assert whole == pytest.approx(single.mean(0), nan_ok=True)
    assert np.isnan(whole[2, 0])  # empty
    others = judge(sources, author="left_out").score(CASES, CANDIDATES).scores
    assert others[0, 1] == pytest.approx((single[1, 0, 1] + single[2, 0, 1]) / 2)
    assert others[1, 1] == pytest.approx((single[0, 1, 1] + single[2, 1, 1]) / 2)
    assert whole[0, 1] == whole[1, 1]  # the same text


def test_by_hand_who_has_a_say():
    found = object.__new__(LikelihoodJudge)
    found.author, found.authors = "included", [0, 1]
    scores = np.array([[[-1.0, -1.0], [-2.0, np.nan], [np.nan, -4.0]], [[-3.0, -3.0], [-4.0, -5.0], [np.nan, -6.0]]])
    empty = np.array([[False, False], [False, False], [True, False]])
    assert found.combine(scores, empty) == pytest.approx(np.array([[-2.0, -3.0], [-3.0, -5.0], [np.nan, -6.0]]), nan_ok=True)
    found.author = "left_out"
    assert found.combine(scores, empty)[:, 0].tolist() == pytest.approx([-3.0, -2.0, float("nan")], nan_ok=True)
    assert found.combine(scores, empty)[:, 1].tolist() == pytest.approx([-3.0, float("nan"), -6.0], nan_ok=True)


def test_the_order_of_the_sources_moves_the_scores_with_it(sources):
    turned = {name: sources[name] for name in reversed(sources)}
    straight = judge(sources, author="left_out").score(CASES, CANDIDATES).scores
    found = judge(turned, author="left_out").score(CASES, [texts[::-1] for texts in CANDIDATES]).scores
    assert found[::-1] == pytest.approx(straight, nan_ok=True)


def test_an_answer_that_a_source_cannot_read_takes_its_say_on_the_question(sources):
    candidates = [["apples " * 300, "12", "13"], ["a", "b", "c"]]
    found = judge(sources).score(CASES, candidates)
    assert np.isnan(found.scores[:, 0]).all()
    assert np.isfinite(found.scores[:, 1]).all()
    assert found.counters == {"too_long": 3}


def test_settings_that_do_not_fit_the_sources(sources):
    with pytest.raises(InputError, match="did you mean 'three'"):
        judge(sources, sources=("thre",))
    with pytest.raises(InputError, match="one stands twice"):
        judge(sources, sources=("one", "one"))
    with pytest.raises(InputError, match="without its author nobody judges"):
        judge({"one": sources["one"]}, author="left_out")


def test_a_source_without_a_template_cannot_judge(sources, tmp_path):
    spec = ModelSpec(str(save_model(tmp_path / "plain", byte_bpe())), dtype="float32", name="plain")
    with pytest.raises(TokenizerError, match="chat template"):
        judge({"plain": spec}).score(CASES, [["a"], ["b"]])


def test_the_key_names_models_and_settings(sources, tmp_path):
    keys = {judge(sources).key, judge(sources, author="left_out").key, judge(sources, sources=("one", "two")).key}
    changed = sources | {"one": replace(sources["one"], dtype="bfloat16")}
    assert len(keys | {judge(changed).key}) == 4
    assert judge(sources, batch_tokens=9, label="x").key in keys
