"""Reading with a cache: cut, grown, and several continuations at once."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import ModelError
from lmfuse.generate import cache
from lmfuse.generate.cache import Branch, Reader, reads_trees
from lmfuse.models import wrap_module
from tests.fakes import byte_bpe

SHAPE = {"vocab_size": 420, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT, ONE, TWO = (5, 9, 200, 31, 77), (8, 8, 120), (300, 4)


def make(kind):
    torch.manual_seed(1)
    if kind == "llama":
        module = LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2, initializer_range=0.2))
    elif kind == "gpt2":
        module = GPT2LMHeadModel(GPT2Config(vocab_size=420, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2))
    elif kind == "gpt_neo":  # one layer looks back three tokens of the cache only, whatever the mask
        config = GPTNeoConfig(
            vocab_size=420,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=3,
            initializer_range=0.2,
        )
        module = GPTNeoForCausalLM(config)
    else:  # one layer looks back three tokens only
        kinds = ["full_attention", "sliding_attention"]
        config = Qwen2Config(
            **SHAPE, num_key_value_heads=2, initializer_range=0.2, use_sliding_window=True, sliding_window=3, layer_types=kinds
        )
        module = Qwen2ForCausalLM(config)
    return wrap_module(module, ByteTokenizer.from_tokenizer(byte_bpe()))


def expected(model, *ids):
    """The model's own code, without any cache."""
    logits = model.module(torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits[:, : model.tokenizer.vocabulary.size], -1)


@pytest.fixture(params=["llama", "gpt2", "sliding", "gpt_neo"])
def model(request):
    with torch.inference_mode(False):
        return make(request.param)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_reading_in_parts_is_reading_at_once(model):
    reader = Reader(model)
    parts = [reader.read(TEXT[:3]), reader.read(TEXT[3:4]), reader.read(TEXT[4:])]
    close(torch.cat(parts), expected(model, *TEXT))
    assert (reader.length, reader.tokens_read) == (5, 5)


@torch.inference_mode()
@pytest.mark.parametrize("trees", [True, False])
def test_branches_are_read_as_if_each_stood_alone_and_any_can_be_taken(model, trees, monkeypatch):
    possible = reads_trees(model)
    assert possible == (type(model.module) is not GPTNeoForCausalLM)
    monkeypatch.setattr(cache, "reads_trees", lambda _: trees and possible)
    branches = [Branch(5, ONE), Branch(3, TWO), Branch(5, TWO)]
    for taken in range(3):
        reader = Reader(model)
        reader.read(TEXT)
        reader.read((1, 2))  # a draft of its own behind the text
        reads = reader.read_branches(branches)
        assert reader.tokens_read == 5 + 2 + 7
        for read in reads:
            ids = (*TEXT[: read.branch.keep], *read.branch.ids)
            close(read.log_probs, expected(model, *ids)[read.branch.keep :])
        reader.take(reads[taken])
        ids = (*TEXT[: branches[taken].keep], *branches[taken].ids)
        assert reader.length == len(ids)
        close(reader.read((50, 60)), expected(model, *ids, 50, 60)[-2:])


@torch.inference_mode()
def test_what_was_cut_leaves_no_trace_and_comes_back_when_wanted():
    reader, model = Reader(make("llama")), make("llama")
    reader.read(TEXT)
    reader.cut(2)
    reader.cut(4)  # tokens 2 and 3 still stand there
    close(reader.read(ONE), expected(model, *TEXT[:4], *ONE)[4:])
    reader.cut(1)
    close(reader.read(TWO), expected(model, TEXT[0], *TWO)[1:])


@torch.inference_mode()
def test_a_long_text_grows_the_cache_and_keeps_what_it_holds():
    model = make("llama")
    reader = Reader(model)
    ids = [place % 400 for place in range(600)]
    for start in range(0, 600, 50):
        last = reader.read(ids[start : start + 50], last_only=True)
    close(last, expected(model, *ids)[-1:])


def test_a_model_that_cannot_forget_is_refused():
    model = make("llama")
    body = model.body.forward

    def forgets_nothing(*args, position_ids=None, past_key_values=None, **more):
        found = body(*args, position_ids=position_ids, past_key_values=past_key_values, **more)
        found.last_hidden_state = found.last_hidden_state + model.body.seen
        model.body.seen += 1.0
        return found

    model.body.seen, model.body.forward = 0.0, forgets_nothing
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot forget what it has read"):
        reads_trees(model)
