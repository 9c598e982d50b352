"""Writing byte by byte and string by string."""

import numpy as np
import pytest
import torch

from lmfuse import generate
from lmfuse.decode.byte_mixture import ByteMixture
from lmfuse.decode.pack_llm import PackLLM
from lmfuse.decode.unite import Unite
from lmfuse.errors import InputError
from lmfuse.generate import FusedWriter
from lmfuse.generate.crew import Crew
from lmfuse.generate.joint import Picker, _likeliest, next_string_log_probs, prompt_nats_per_byte
from lmfuse.types import Document, Segment
from lmfuse.writing import Finish, WritingSettings
from tests.generate.build import WatchedCrew, run, small_model
from tests.generate.table_models import START, table_model

KINDS = ("byte_bpe", "metaspace_bpe", "unigram")
METHODS = [ByteMixture(), PackLLM(), Unite()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prompt", ["The quick brown fox", "", "東京 🙂"])
def test_three_tokenizers_share_one_text(method, prompt, monkeypatch):
    monkeypatch.setattr(generate, "Crew", WatchedCrew)
    models = [small_model(kind, seed) for seed, kind in enumerate(KINDS)]
    text, passages, finish = run(FusedWriter(models, KINDS, method), prompt, max_bytes=50)
    assert len(text.encode()) <= 50
    assert all(set(passage.scores) == set(KINDS) for passage in passages)
    if finish.reason == "length" and isinstance(method, Unite):
        WatchedCrew.last.check()


@pytest.mark.parametrize("method", METHODS)
def test_identical_models_write_what_one_writes(method):
    model = small_model()
    alone = run(FusedWriter([model], method=method), "The quick", max_bytes=40)
    text, _, finish = run(FusedWriter([model] * 3, method=method), "The quick", max_bytes=40)
    assert (text, finish.reason) == (alone[0], alone[2].reason)


def test_a_mixture_of_tables_by_hand():
    # bytes after " ": a 0.75 / 0.25, b 0.25 / 0.75; weights decide
    a = table_model({START: {" ax": 0.75, " b": 0.25}, " ax": {}, " b": {}})
    b = table_model({START: {" ax": 0.25, " b": 0.75}, " ax": {}, " b": {}})
    text, passages, finish = run(FusedWriter([a, b], ("A", "B"), ByteMixture(weights=(3, 1))), "")
    assert (text, finish.reason) == (" ax", "stop")
    assert passages[0].author == "A"
    assert passages[0].scores == pytest.approx({"A": -np.log(0.75) / 3, "B": -np.log(0.25) / 3}, rel=1e-4)
    assert run(FusedWriter([a, b], ("A", "B"), ByteMixture(weights=(1, 3))), "")[0] == " b"


def test_a_union_of_tables_by_hand():
    # B knows " tea" only as " te" + "a": its first token counts
    a = table_model({START: {" tea": 0.5, " gin": 0.25}, " tea": {}, " gin": {}})
    b = table_model({START: {" te": 0.5, " gin": 0.4}, " te": {"a": 1.0}, "a": {}, " gin": {}})
    text, passages, finish = run(FusedWriter([a, b], ("A", "B"), Unite(top_k=2)), "")
    assert finish.reason == "stop"
    assert text == " tea"
    assert passages[0].candidates == {"A": " tea", "B": " te"}
    # A: 2/3 and 1/3 of its 0.75, nothing for " te"; B: of its 1.4 for " tea" (as " te"), " gin" and " te" 5/14, 4/14, 5/14
    assert passages[0].scores == pytest.approx({"A": -np.log((2 / 3 + 5 / 14) / 2), "B": -np.log(5 / 28)}, rel=1e-4)
    assert passages[0].author == "A"  # who named it, though B finds its first token as likely


def test_the_author_of_a_string_is_one_that_named_it():
    # only C names " tea"; A and B would begin it with " te", which they find likelier than C finds it
    short = table_model({START: {" te": 0.6, " x": 0.4}, " te": {}, " x": {}})
    long = table_model({START: {" tea": 0.5, " x": 0.3}, " tea": {}, " x": {}}, more=(" te",))
    _, passages, _ = run(FusedWriter([short, short, long], ("A", "B", "C"), Unite(top_k=1)), "")
    assert (passages[0].text, passages[0].author) == (" tea", "C")


@torch.inference_mode()
def test_naming_strings_draws_nothing():
    model = small_model(ends=False)
    crew = Crew([model], ["it"], "The quick", WritingSettings(temperature=5.0))
    session = crew.sessions[0]
    state = session.chooser._random.get_state()
    greedy = Crew([model], ["it"], "The quick", WritingSettings())
    assert _likeliest(session, 3) == _likeliest(greedy.sessions[0], 3)
    assert torch.equal(session.chooser._random.get_state(), state)


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_models_tokens_are_counted_exactly(method):
    models = [small_model(kind, seed) for seed, kind in enumerate(KINDS)]
    for seed in range(3):
        for most in (1, 2, 3, 5, 8):
            settings = {"max_tokens": most, "max_bytes": 300, "temperature": 1.0, "seed": seed}
            _, _, finish = run(FusedWriter(models, KINDS, method), "Anna has 12", **settings)
            assert finish.usage.tokens["byte_bpe"] <= most


def test_a_word_that_exceeds_the_limit_of_tokens_is_cut_behind_its_last_token():
    words = {START: {" one": 1.0}, " one": {"ly": 1.0}, "ly": {"est": 1.0}, "est": {" two": 1.0}, " two": {}}
    for method in (ByteMixture(), PackLLM()):
        writer = FusedWriter([table_model(words)] * 2, method=method)
        for most, expected in ((1, " one"), (2, " only"), (3, " onlyest"), (4, " onlyest two")):
            text, _, finish = run(writer, "", max_tokens=most)
            assert (text, finish.usage.tokens["model-1"]) == (expected.replace("only", "onely"), most)
        assert finish.reason == "stop"


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 5e-324])
def test_hardly_any_temperature_is_none(temperature):
    crew = Crew([small_model()], ["it"], "The", WritingSettings())
    log_probs = np.log(np.array([0.2, 0.5, 0.0, 0.3]) + 1e-300)
    assert Picker(WritingSettings(temperature=temperature), crew)(log_probs) == 1


def test_the_prompt_decides_who_speaks():
    knows = table_model({START: {" a": 0.9}, " a": {" b": 0.9}, " b": {" yes": 1.0}, " yes": {}})
    lost = table_model({START: {" a": 0.01}, " a": {" b": 0.01}, " b": {" no": 1.0}, " no": {}})
    assert prompt_nats_per_byte(knows, " a b") == pytest.approx(-2 * np.log(0.9) / 4, rel=1e-4)
    for models in ((knows, lost), (lost, knows)):
        assert run(FusedWriter(models, method=PackLLM()), " a b")[0] == " yes"


def test_prompts_that_say_nothing_weigh_nothing():
    assert np.isnan(prompt_nats_per_byte(small_model(), ""))
    said = [Segment("The quick", "user"), Segment("fox", "assistant")]
    assert prompt_nats_per_byte(small_model(), said) == pytest.approx(prompt_nats_per_byte(small_model(), "The quick\nfox"))


@torch.inference_mode()
def test_the_next_string_is_a_token_or_the_first_one():
    model = small_model("metaspace_bpe")
    crew = Crew([model], ["it"], "The quick", WritingSettings())
    session = crew.sessions[0]
    ids = [model.tokenizer.encode(Document.plain("The quick" + string)).ids[session.num_prompt] for string in (" brown fox", " dog", "er")]
    found = next_string_log_probs(session, [b" brown fox", b" dog", b"er", b""])
    assert found == pytest.approx([*session.prediction[ids].tolist(), session.prediction[list(session.chooser.ends)].logsumexp(0).item()])


@pytest.mark.parametrize("method", METHODS)
def test_sampling_depends_on_the_seed(method):
    models = [small_model(kind, seed, ends=False) for seed, kind in enumerate(KINDS[:2])]
    texts = [run(FusedWriter(models, method=method), "The", max_bytes=30, temperature=1.0, seed=seed)[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("method", METHODS)
def test_limits_and_cancelling(method):
    words = {START: {" one": 1.0}, " one": {" two": 1.0}, " two": {" one": 1.0}}
    writer = FusedWriter([table_model(words)] * 2, method=method)
    text, _, finish = run(writer, "", max_bytes=10)
    assert (text, finish.reason) == (" one two o", "length")
    text, _, finish = run(writer, "", stop=("wo",))
    assert (text, finish.reason) == (" one t", "stop")
    text, _, finish = run(writer, "", max_tokens=4)
    assert (text, finish.reason) == (" one two one two", "length")
    assert run(writer, "")[2].reason == "length"  # a full context
    asked = []
    assert not any(isinstance(each, Finish) for each in writer.write("", WritingSettings(), lambda: asked.append(0) or len(asked) > 5))


def test_weights_must_fit():
    with pytest.raises(InputError, match="weights: 1 numbers for 2 models"):
        FusedWriter([small_model()] * 2, method=Unite(weights=(1,)))
