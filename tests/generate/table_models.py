"""Language models whose next token depends on the last one alone, by a table: their scores can be worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from lmfuse.bytes import ByteTokenizer
from lmfuse.bytes_spelling import byte_alphabet
from lmfuse.losses.head import Head
from lmfuse.models import LanguageModel

START, END = "<s>", "</s>"
NEVER = -60.0  # in place of the logarithm of 0


class _Body(nn.Module):
    """Hidden states are the tokens themselves, one-hot; the cache holds them so that its length is what was read."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, input_ids: Tensor, past_key_values: Any = None, **_: Any) -> SimpleNamespace:
        hidden = nn.functional.one_hot(input_ids, self.size).float()
        if past_key_values is not None:
            past_key_values.update(hidden[:, None], hidden[:, None], 0)
        return SimpleNamespace(last_hidden_state=hidden)


class _Module(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace())


def word_tokenizer(words: list[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer that has these words (usually with a space in front) and single bytes as tokens."""
    letter = {byte: character for character, byte in byte_alphabet().items()}
    spelled = ["".join(letter[byte] for byte in word.encode()) for word in words]
    merges = dict.fromkeys((word[:place], word[place]) for word in spelled for place in range(1, len(word)))
    pieces = dict.fromkeys([*letter.values(), *(first + second for first, second in merges)])
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    for word in words:
        assert len(tokenizer.encode(word).ids) == 1, f"{word!r} is no single token"
    return tokenizer


def table_model(table: dict[str, dict[str, float]], *, more: tuple[str, ...] = (), context: int = 64) -> LanguageModel:
    """Return a model with ``table[last][next]`` as probabilities; ``START`` begins a text, what a row leaves of 1 goes to ``END``.

    Its tokens are the words of the table, those of ``more``, and all single bytes.
    """
    words = list(dict.fromkeys([*table, *(word for row in table.values() for word in row), *more]))
    tokenizer = word_tokenizer([word for word in words if len(word.encode()) > 1 and word not in (START, END)])
    size = tokenizer.get_vocab_size()
    ids = {word: tokenizer.token_to_id(word) if word in (START, END) else tokenizer.encode(word).ids[0] for word in [*words, START, END]}
    weight = torch.full((size, size), NEVER)
    weight[ids[END], :] = 0.0
    for last, row in table.items():
        full = {**row, END: row.get(END, 1 - sum(row.values()))}
        for word, probability in full.items():
            weight[ids[word], ids[last]] = math.log(probability) if probability > 1e-9 else NEVER
    seen = ByteTokenizer.from_tokenizer(tokenizer, bos=START, eos=END, document_start=START)
    return LanguageModel(_Module(weight), _Body(size), seen, Head(weight, size), context)
