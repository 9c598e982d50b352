"""The tokenizers of the pico models: three kinds that see the same bytes differently."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = {
    "byte_bpe": {"eos_token": "<|endoftext|>"},
    "metaspace_bpe": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "unigram": {"unk_token": "<unk>", "eos_token": "</s>"},
}
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def byte_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    """GPT-2's kind: byte-level BPE, one end token, no start token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def metaspace_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    """Llama 2's kind: "▁" for spaces and before the text, single digits, byte fallback, ``<s>`` before every text."""
    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    split = [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)]
    trained.pre_tokenizer = pre_tokenizers.Sequence(split)  # for training only: no merge may learn to cross these
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special + BYTES, show_progress=False))
    tokenizer = Tokenizer(trained.model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def unigram(texts: list[str], vocab_size: int) -> Tokenizer:
    """T5's kind without its lossy normaliser: Unigram over Metaspace, byte fallback, ``</s>`` as its only control token."""
    special = ["<unk>", "</s>"]
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace()])
    size = vocab_size - len(BYTES)
    trained.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    pieces = [(piece, round(score, 6)) for piece, score in json.loads(trained.to_str())["model"]["vocab"]]
    # The trainer sums in an order that changes from run to run: rounded scores and sorted ties do not.
    vocab = [*pieces[:2], *sorted(pieces[2:], key=lambda piece: (-piece[1], piece[0]))]
    vocab[2:2] = [(piece, -30.0) for piece in BYTES]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(special)
    return tokenizer


KINDS = {"byte_bpe": byte_bpe, "metaspace_bpe": metaspace_bpe, "unigram": unigram}
