"""A model's law of the next byte."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from lmfuse.bytes import ByteTokenizer
from lmfuse.decode.boundaries import whole_characters
from lmfuse.generate import byte_reader
from lmfuse.generate.byte_reader import ByteReader, SortedTokens, allowed_symbols
from lmfuse.generate.session import Session
from lmfuse.models import wrap_module
from lmfuse.types import Document, Vocabulary
from lmfuse.writing import WritingSettings
from tests.generate.build import small_model
from tests.generate.table_models import START, table_model


def reader(model, prompt=""):
    session = Session(model, "it", prompt, WritingSettings(), 0)
    return ByteReader(session, SortedTokens.of(model.tokenizer.vocabulary, session.chooser.ends))


def probs(it):
    found = np.exp(it.log_probs())
    assert found.sum() == pytest.approx(1)
    return found


@torch.inference_mode()
def test_by_hand():
    it = reader(table_model({START: {" help": 0.5, " hello": 0.25, " he": 0.125, " I": 0.125}, " he": {"r": 0.75}, " I": {}}))
    assert probs(it)[ord(" ")] == pytest.approx(1)
    it.push(ord(" "))
    assert probs(it)[ord("h")] == pytest.approx(0.875)
    it.push(ord("h"))
    it.push(ord("e"))
    found = probs(it)  # " help" and " hello" go on with l, " he" with r (3/4) or ends (1/4)
    assert found[ord("l")] == pytest.approx(0.75 / 0.875)
    assert found[ord("r")] == pytest.approx(0.125 * 0.75 / 0.875)
    assert found[256] == pytest.approx(0.125 * 0.25 / 0.875)
    it.push(ord("l"))
    assert probs(it)[[ord("p"), ord("l")]] == pytest.approx([2 / 3, 1 / 3])
    it.push(ord("p"))
    assert probs(it)[256] == pytest.approx(1)
    assert (it.text, it.session.text) == (b" help", b" help")  # nothing else could have written it


def brute_force(model, prompt, data):
    """The formula of the module's docstring over the whole text, every beginning read from scratch."""
    tokenizer, vocabulary = model.tokenizer, model.tokenizer.vocabulary
    start = tokenizer.encode(Document.plain(prompt)).ids.tolist()
    before = prompt.encode()
    size = len(tokenizer.pieces([before])[0])
    ends = {vocabulary.control["eos"]}
    mass = np.zeros(257)
    for place in range(len(data) + 1):
        whole = whole_characters(data[:place]).encode()
        ids = tokenizer.pieces([before + whole])[0][size:] if whole else []
        if place > len(whole):
            ids = [*ids, *tokenizer.pieces([data[len(whole) : place]])[0]]
        logs = model.module(torch.tensor([[*start, *ids]])).logits[0, :, : vocabulary.size].double().log_softmax(-1)
        weight = np.exp(sum(logs[len(start) + n - 1, token_id].item() for n, token_id in enumerate(ids)))
        rest = data[place:]
        for token_id in range(vocabulary.size):
            token = vocabulary.bytes_of(token_id)
            if token_id in ends:
                mass[256] += weight * logs[-1, token_id].exp().item() * (place == len(data) == len(whole))
            elif token.startswith(rest) and len(token) > len(rest):
                mass[token[len(rest)]] += weight * logs[-1, token_id].exp().item()
    return mass / mass.sum()


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["byte_bpe", "metaspace_bpe", "unigram"])
@pytest.mark.parametrize("text", [" jumps over", " é東 12", ", and"])
def test_against_brute_force(kind, text):
    model, prompt = small_model(kind), "The quick brown fox"
    it = reader(model, prompt)
    for place, byte in enumerate(text.encode()):
        expected = brute_force(model, prompt, text.encode()[:place])
        np.testing.assert_allclose(probs(it), expected, atol=3e-5)
        it.push(byte)
    assert it.text == text.encode()


@torch.inference_mode()
def test_a_tokenizer_of_single_bytes_is_its_models_own_law():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate([*letters, "<s>"])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.5}
    seen = ByteTokenizer.from_tokenizer(tokenizer, document_start="<s>", eos="<s>")
    model = wrap_module(LlamaForCausalLM(LlamaConfig(vocab_size=257, **shape)), seen)
    it, ids = reader(model), [256]
    for byte in "né!".encode():
        own = model.module(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        expected = np.array([own[token_id].item() for token_id in (seen.vocabulary.strings.index(letter) for letter in letters)])
        order = np.argsort([seen.vocabulary.bytes_of(place)[0] for place in range(256)])
        found = probs(it)
        if byte not in "é".encode()[1:]:
            np.testing.assert_allclose(
                found[:256], expected[np.argsort([seen.vocabulary.strings.index(x) for x in letters])][order], atol=1e-6
            )
            assert found[256] == pytest.approx(own[256].item(), abs=1e-6)
        it.push(byte)
        ids.append(int(order[byte]))


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["byte_bpe", "metaspace_bpe", "unigram"])
def test_all_ways_to_write_a_text_are_at_least_as_likely_as_one(kind):
    it, text = reader(small_model(kind), "The"), b" lazy dog sleeps on"
    own = reader(small_model(kind), "The").session
    own.commit(text)
    cost = 0.0
    for byte in text:
        cost -= it.log_probs()[byte]
        it.push(byte)
    silent = 0.05 * len(text)  # what control tokens hold is shared out among bytes: at most that
    assert cost <= sum(own.nll_nats) + 1e-3
    assert cost >= 0
    assert silent > 0


@torch.inference_mode()
def test_settled_bytes_are_committed_and_few_stay_open():
    model = small_model("byte_bpe", ends=False)
    it = reader(model, "The")
    text = " quick brown fox jumps over the lazy dog, and the dog sleeps on"
    longest = 0
    for byte in text.encode():
        it.push(byte)
        longest = max(longest, len(it.open))
    assert it.text.decode() == text
    assert longest < 16
    it.finish()
    assert it.session.text.decode() == text
    assert it.session.reader.length == len(it.session.ids)


@torch.inference_mode()
def test_a_dummy_prefix_is_expected_but_not_shown():
    it = reader(small_model("metaspace_bpe"))
    assert it.session.spelling.dummy
    it.push(ord("T"))
    assert it.text == b"T"
    assert probs(it).argmax() < 256


def test_a_vocabulary_is_sorted_once_and_forgotten_with_it():
    words = Vocabulary.from_tokens([b"b", b"a", b""])
    found = SortedTokens.of(words, (1,))
    assert SortedTokens.of(words, (1,)) is found
    assert SortedTokens.of(words).tokens == (b"a", b"b")
    assert found.tokens == (b"b",)
    kept, gone = len(byte_reader._sorted), weakref.ref(words)
    del words
    gc.collect()
    assert gone() is None
    assert len(byte_reader._sorted) == kept - 2


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=12), st.binary(max_size=3))
def test_how_tokens_go_on_against_a_loop(tokens, beginning):
    words = SortedTokens.of(Vocabulary.from_tokens([b"", *tokens]))
    found = words.following(beginning)
    assert words.tokens == tuple(sorted(tokens))
    assert list(words.tokens[found.low : found.first]) == [token for token in tokens if token == beginning]
    longer = sorted(token for token in tokens if token.startswith(beginning) and token != beginning)
    assert list(words.tokens[found.first : found.high]) == longer
    after = [token[len(beginning)] for token in longer]
    assert found.symbols.tolist() == sorted(set(after))
    assert found.places.tolist() == [after.index(symbol) for symbol in sorted(set(after))]


@torch.inference_mode()
def test_what_was_weighed_is_not_read_again():
    it = reader(table_model({START: {" one": 1.0}, " one": {" two": 1.0}, " two": {" one": 1.0}}))
    for byte in b" one two one two":
        it.push(byte)
    it.finish()
    assert it.session.text == b" one two one two"
    assert it.session.num_tokens == 4
    assert it.session.reader.tokens_read == 1 + 4


def test_what_may_follow():
    assert not allowed_symbols(b"")[0x80:0xC2].any()
    assert allowed_symbols(b"\xe6")[0x80:0xC0].all()
    assert not allowed_symbols(b"\xe6")[256]
    assert np.flatnonzero(allowed_symbols(b"\xed")).tolist() == list(range(0x80, 0xA0))  # no surrogates
