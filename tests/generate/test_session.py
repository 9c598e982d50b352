"""One model in a text: proposing, judging, taking over."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmfuse.bytes import ByteTokenizer
from lmfuse.decode.boundaries import first_end, unit_ends
from lmfuse.decode.cool import Cool
from lmfuse.errors import InputError, TokenizerError
from lmfuse.generate import FusedWriter
from lmfuse.generate.crew import Crew
from lmfuse.generate.draft import KEPT_ROWS
from lmfuse.generate.prompt import last_words, read_prompt
from lmfuse.generate.segments import write_segments
from lmfuse.generate.session import ContextFullError, Session
from lmfuse.generate.tokens import unfinished
from lmfuse.models import wrap_module
from lmfuse.types import Segment
from lmfuse.writing import WritingSettings
from tests import chat_templates
from tests.fakes import byte_bpe, metaspace_bpe, unigram, wordpiece
from tests.generate.build import check_session, run, small_model
from tests.generate.table_models import START, table_model


def up_to_the_limit(written):
    return len(written.data) if written.limit_met or written.ended else None


USER = [Segment("What is 12 + 7?", "user")]


def session(model, prompt="", **settings):
    with torch.inference_mode():
        return Session(model, "it", prompt, WritingSettings(**settings), 0)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["byte_bpe", "metaspace_bpe", "unigram"])
def test_judging_is_the_models_own_likelihood(kind):
    it = session(small_model(kind), "The quick brown fox")
    it.commit(b" jumps over")
    candidates = [b" the lazy dog", b" 12", "é".encode(), b"", b"ed it"]
    verdicts = it.judge(candidates)
    for text, verdict in zip(candidates, verdicts, strict=True):
        if not text:
            assert verdict.nll_nats == pytest.approx(-it.prediction[list(it.chooser.ends)].logsumexp(0).item(), rel=1e-5)
            continue
        other = session(small_model(kind), "The quick brown fox")
        other.commit(b" jumps over")
        before = sum(other.nll_nats), other.num_tokens
        other.commit(text)
        check_session(other, b" jumps over" + text)
        assert verdict.nll_nats == pytest.approx(sum(other.nll_nats) - before[0], rel=1e-4)
        assert verdict.tokens == max(1, other.num_tokens - before[1])
    it.commit(candidates[0])
    check_session(it, b" jumps over the lazy dog")


@torch.inference_mode()
def test_tokens_before_the_end_are_rolled_back_where_the_text_goes_on_inside_a_word():
    model = table_model({START: {" to": 0.5, " today": 0.25}, " to": {"d": 0.125}, "d": {}, " today": {" go": 1.0}}, more=(" to", " today"))
    it = session(model)
    it.commit(b" to")
    assert (it.num_tokens, sum(it.nll_nats)) == (1, pytest.approx(np.log(2)))
    (verdict,) = it.judge([b"day"])  # p(" today") / p(" to"): one token in place of one
    assert (verdict.nll_nats, verdict.tokens) == (pytest.approx(np.log(4) - np.log(2)), 1)
    it.commit(b"day")
    assert (it.num_tokens, it.text, it.reader.length) == (1, b" today", len(it.ids))
    assert sum(it.nll_nats) == pytest.approx(np.log(4))
    assert it.prediction.argmax() == model.tokenizer.pieces([b" go"])[0][0]
    it.commit(b" to")
    it.commit(b"day")  # not at the beginning: the token before is read again for its prediction
    assert (it.num_tokens, it.text) == (2, b" today today")


@torch.inference_mode()
def test_its_own_draft_and_what_begins_it_cost_nothing():
    words = {START: {" one": 1.0}, " one": {" two": 0.5}, " two": {" one": 0.25}}
    it = session(table_model({**words, " two": {" one": 0.75}}))
    draft = it.propose(up_to_the_limit, 6)
    read = it.reader.tokens_read
    part = draft.data[: draft.ends[2]]
    verdicts = it.judge([draft.data, part])
    assert it.reader.tokens_read == read
    assert verdicts[1].nll_nats == pytest.approx(sum(draft.nll_nats[:3]))
    it.commit(part)
    assert it.reader.tokens_read == read
    assert (it.text, it.reader.length) == (part, len(it.ids))


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["byte_bpe", "metaspace_bpe", "unigram"])
def test_any_part_of_a_long_draft_can_be_taken_over(kind):
    """Only the last rows are kept; what is needed of older ones is computed again."""
    for part in (1, 5, 30, 59, 60):
        it = session(small_model(kind, ends=False), "The quick")
        draft = it.propose(up_to_the_limit, 60)
        assert len(draft._rows) == KEPT_ROWS
        count = next(place for place in range(part, 0, -1) if unfinished(draft.data[: draft.ends[place - 1]]) == b"")
        text = draft.data[: draft.ends[count - 1]]
        it.commit(text)
        check_session(it, text)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["byte_bpe", "metaspace_bpe", "unigram"])
def test_any_part_of_a_long_segment_that_was_judged_can_be_taken_over(kind):
    long = b" jumps over the lazy dog, and the dog sleeps on; the fox goes home and sleeps as well"
    for text in (b" jumps", b" jumps over the lazy dog", long):
        it = session(small_model(kind), "The quick brown fox")
        it.judge([long, b" 12"])
        assert len(it._known[long].rows) <= KEPT_ROWS
        it.commit(text)
        check_session(it, text)


@torch.inference_mode()
def test_a_draft_that_its_tokenizer_would_cut_otherwise_is_judged_like_any_other():
    # it writes " to" + "day" (1/2 * 1/2), but its tokenizer writes " today" (1/8)
    table = {START: {" to": 0.5, " today": 0.125, " gin": 0.25}, " today": {}, " to": {"day": 0.5}, "day": {}, " gin": {}}
    it = session(table_model(table))
    draft = it.propose(up_to_the_limit, 2)
    assert draft.data == b" today"
    found, other = it.judge([b" today", b" gin"])
    assert (found.nll_nats, found.tokens) == (pytest.approx(np.log(8)), 1)
    assert (other.nll_nats, other.tokens) == (pytest.approx(np.log(4)), 1)
    it.commit(b" today")  # as it wrote it: alone it would have gone on like that
    assert (it.num_tokens, it.nll_nats, it.reader.length) == (2, pytest.approx([np.log(2), np.log(2)]), len(it.ids))


@torch.inference_mode()
def test_what_fits_into_a_context_and_into_a_number_of_tokens():
    words = {START: {" one": 1.0}, " one": {" two": 1.0}, " two": {" one": 1.0}}
    it = session(table_model(words, context=6))  # one token is the prompt's
    text = b" one two one two one two"
    assert it.fitting(text) == len(b" one two one two one")
    assert it.fitting(text, 2) == len(b" one two")
    assert it.fitting(b" oneX", 1) == len(b" one")
    assert it.fitting(" one né".encode(), 4) == len(b" one n")
    assert it.fitting(b"") == 0
    it.commit(b" one two")
    assert it.fitting(b" one two one two") == len(b" one two one")
    assert it.fitting(b" one", 2) == 0
    assert it.judge([b" one two one"])[0].nll_nats < np.inf


@torch.inference_mode()
def test_what_was_drawn_behind_a_segment_is_not_drawn_again():
    it = session(small_model(), "The quick", temperature=1.0, seed=3)
    first = it.propose(lambda written: written.ends[2] if len(written.ends) == 6 else None, 16)
    it.commit(first.data[: first.ends[2]])
    again = it.propose(lambda written: len(written.data) if len(written.ends) == 3 else None, 16)
    assert again.ids == first.ids[3:6]
    it.commit(b" other")
    assert not it._drawn


@torch.inference_mode()
def test_back_to_the_prompt():
    it = session(small_model(), "The quick brown")
    first = it.propose(up_to_the_limit, 8)
    it.commit(first.data)
    it.restart()
    check_session(it, b"")
    assert it.propose(up_to_the_limit, 8).ids == first.ids


@torch.inference_mode()
def test_a_full_context_is_said_and_breaks_nothing():
    it = session(small_model(context=20), "The quick")
    assert it.judge([b" word" * 30])[0].nll_nats == np.inf
    with pytest.raises(ContextFullError):
        it.commit(b" word" * 30)
    draft = it.propose(lambda *_: None, 1000)
    assert (draft.text, len(draft.ids)) == (None, 20 - it.num_prompt)
    it.commit(b"x")
    check_session(it, b"x")


@torch.inference_mode()
def test_a_tokenizer_that_cannot_write_a_text_says_so():
    tokenizer = ByteTokenizer.from_tokenizer(wordpiece(), eos="[SEP]")
    size = tokenizer.vocabulary.size
    module = LlamaForCausalLM(
        LlamaConfig(vocab_size=size, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    it = session(wrap_module(module, tokenizer), "the fox")
    assert it.judge(["中".encode()])[0].nll_nats == np.inf
    with pytest.raises(TokenizerError, match="it cannot write '中'"):
        it.commit("中".encode())


# ── prompts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma", "zephyr", "mistral"])
@pytest.mark.parametrize("make", [byte_bpe, metaspace_bpe, unigram])
def test_each_model_reads_its_own_template_and_goes_on_as_it_renders_answers(family, make, tmp_path):
    tokenizer = chat_templates.load(tmp_path / family, make(), family)
    ids, spelling = read_prompt(tokenizer, USER)
    assert ids == tokenizer.render_prompt(USER).tolist()
    answer = "The answer is 19."
    whole = tokenizer.encode(chat_templates.talk(USER[0].text, answer))
    spelled = spelling.go_on(b"", [], [answer.encode()])[0]
    if family != "zephyr":  # which writes a newline before the answer, but not into the prompt
        end = tokenizer.vocabulary.control["end_of_turn"]
        assert [*ids, *spelled.ids, end] == whole.ids[: len(ids) + len(spelled.ids) + 1].tolist()
    written = b"".join(map(tokenizer.vocabulary.bytes_of, spelled.ids))
    assert written == b" " * spelling.dummy + answer.encode()


def chat_model(folder, make, family, seed):
    tokenizer = chat_templates.load(folder, make(), family)
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
    config = LlamaConfig(vocab_size=tokenizer.vocabulary.size, initializer_range=0.4, tie_word_embeddings=False, **shape)
    return wrap_module(LlamaForCausalLM(config), tokenizer)


def test_a_conversation_with_three_templates_and_tokenizers(tmp_path):
    kinds = ((byte_bpe, "chatml"), (metaspace_bpe, "mistral"), (unigram, "zephyr"))
    models = [chat_model(tmp_path / family, make, family, seed) for seed, (make, family) in enumerate(kinds)]
    text, _passages, finish = run(FusedWriter(models, ("a", "b", "c")), USER, max_bytes=80)
    assert text
    assert finish.usage.prompt_bytes == len(USER[0].text)
    assert len(set(finish.usage.prompt_tokens.values())) > 1


def test_a_conversation_needs_templates_and_a_text_something_to_begin_from():
    with pytest.raises(TokenizerError, match="no chat template"):
        read_prompt(ByteTokenizer.from_tokenizer(byte_bpe()), USER)
    with pytest.raises(InputError, match="no token of the model stands before a text"):
        read_prompt(ByteTokenizer.from_tokenizer(byte_bpe(), document_start="none"), "")


def test_a_dummy_prefix_is_no_part_of_the_text():
    ids, spelling = read_prompt(small_model("metaspace_bpe").tokenizer, "")
    assert spelling.dummy
    assert len(ids) == 1
    _, within = read_prompt(small_model("metaspace_bpe").tokenizer, "The fox")
    assert not within.dummy
    assert within.before == b"The fox"


def test_the_end_of_a_long_prompt():
    assert last_words(b"x" * 100) == b"x" * 64
    assert last_words("東".encode() * 50).decode() == "東" * 21


# ── the cost of a text ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_term_grows_with_the_text():
    """Tokens that forwards read for the first and the last third of a long text; segments of one word by three tokenizers."""
    models = [small_model(kind, seed, context=2048, ends=False) for seed, kind in enumerate(("byte_bpe", "metaspace_bpe", "unigram"))]
    crew = Crew(models, ("a", "b", "c"), "The quick", WritingSettings())
    read, size = [], []
    for number, _ in enumerate(write_segments(crew, Cool(), WritingSettings(max_bytes=10_000))):
        read.append(sum(each.reader.tokens_read for each in crew.sessions))
        size.append(len(crew.sessions[0].text))
        if number == 120:
            break
    assert size[120] > 300
    first, last = (read[40] - read[0]) / (size[40] - size[0]), (read[120] - read[80]) / (size[120] - size[80])
    assert last <= 1.3 * first


SCRIPTS = {
    "Chinese": "我们明天去北京，好吗？",
    "Hindi": "नमस्ते दुनिया, आप कैसे हैं?",
    "Arabic": "مرحبا بالعالم، كيف حالك؟",
    "emoji": "Yes 👍🏽 👩‍👩‍👧 ok 🙂!",
    "code": "def f(x):\n    return x + 10\n",
    "digits": "3.14159 * 1000 = 3141.59",
}


@torch.inference_mode()
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_come_through_whole_segment_by_segment(script):
    """A model that is made to say a text says it in whole characters; the others take it over token by token."""
    data = SCRIPTS[script].encode()
    models = [small_model(kind) for kind in ("byte_bpe", "metaspace_bpe", "unigram")]
    crew = Crew(models, ("a", "b", "c"), "The", WritingSettings())
    at = 0
    while at < len(data):
        rest = data[at:]
        ends = unit_ends(rest, True, "word")
        end = first_end(ends, [each.cuts(rest) for each in crew.sessions], 1)
        assert end, f"no boundary in {rest.decode()!r}"
        for each in crew.sessions:
            each.judge([rest[:end]])
            each.commit(rest[:end])
        at += end
        for each in crew.sessions:
            check_session(each, data[:at])


@pytest.mark.parametrize("script", SCRIPTS)
def test_texts_after_prompts_in_many_scripts_are_utf_8(script):
    models = [small_model(kind, 5, ends=False) for kind in ("byte_bpe", "metaspace_bpe", "unigram")]
    text, _passages, _ = run(FusedWriter(models), SCRIPTS[script], max_bytes=60)
    assert text.encode().decode() == text
    assert len(text.encode()) > 50
