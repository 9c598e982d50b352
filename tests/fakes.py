"""Small stand-ins: tokenizers of each kind, and causal language models of a few thousand weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SHARED = Path(__file__).resolve().parents[2] / "shared"

TEXT = """The quick brown fox jumps over the lazy dog, and the dog sleeps on.
def add(a, b):
    return a + b

for i in range(10):
    print(add(i, 1))
Anna has 12 apples and buys 7 more. How many apples does she have now? 12 + 7 = 19. The answer is 19.
It was the best of times, it was the worst of times; naïve café, Zürich – 東京 🙂.
""".splitlines(keepends=True)


def shared(*parts: str) -> Path:
    """Return a path under ../shared, or skip the test with the reason."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {Path(*parts)} of the shared assets, which lie beside a full checkout")
    return path


def _trained(model: object, trainer: object, **parts: object) -> Tokenizer:
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return tokenizer


@cache
def byte_bpe(vocab_size: int = 420) -> Tokenizer:
    """A GPT-2-like tokenizer: byte-level BPE, one end token, no start token."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    return _trained(models.BPE(), trainer, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False), decoder=decoders.ByteLevel())


@cache
def metaspace_bpe(vocab_size: int = 460) -> Tokenizer:
    """A Llama-2-like tokenizer: dummy prefix, U+2581 for spaces, byte fallback, <s> before the text."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, limit_alphabet=60, show_progress=False)
    trained = _trained(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True), trainer, pre_tokenizer=pre_tokenizers.Metaspace())
    tokenizer = Tokenizer(trained.model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(special[:3])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@cache
def unigram(vocab_size: int = 380) -> Tokenizer:
    """A T5-like tokenizer without its lossy normaliser: Unigram over Metaspace, byte fallback, </s> as its only control token."""
    special = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.UnigramTrainer(vocab_size=vocab_size - 256, special_tokens=special[:2], unk_token="<unk>", show_progress=False)
    trained = _trained(models.Unigram(), trainer, pre_tokenizer=pre_tokenizers.Metaspace())
    import json

    state = json.loads(trained.to_str())
    vocab = state["model"]["vocab"]
    vocab[2:2] = [[piece, -30.0] for piece in special[2:]]
    tokenizer = Tokenizer(models.Unigram([(piece, score) for piece, score in vocab], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(special[:2])
    return tokenizer


@cache
def wordpiece() -> Tokenizer:
    """A BERT-like tokenizer: lower-casing, accents stripped, [UNK] for the rest: lossy on purpose."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    parts = {
        "normalizer": normalizers.BertNormalizer(lowercase=True),
        "pre_tokenizer": pre_tokenizers.BertPreTokenizer(),
        "decoder": decoders.WordPiece(),
    }
    return _trained(models.WordPiece(unk_token="[UNK]"), trainer, **parts)


KINDS = {"byte_bpe": byte_bpe, "metaspace_bpe": metaspace_bpe, "unigram": unigram, "wordpiece": wordpiece}


def save_model(folder: Path, tokenizer: Tokenizer, *, seed: int = 0, hidden: int = 32, layers: int = 2, context: int = 256) -> Path:
    """Write a randomly initialised Llama of a few thousand weights with its tokenizer as a Hugging Face folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    known = {
        name: t
        for name, t in {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}.items()
        if tokenizer.token_to_id(t) is not None
    }
    if tokenizer.token_to_id("<|endoftext|>") is not None:
        known["eos_token"] = "<|endoftext|>"
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, tie_word_embeddings=True,
        initializer_range=0.2, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **known).save_pretrained(folder)
    return folder
