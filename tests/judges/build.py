"""Cases, tiny classifiers and scripted judges for the judges' tests."""

from __future__ import annotations

from pathlib import Path

import torch

from lmfuse.judges.protocol import Case, Opinion, Scorer
from lmfuse.types import Segment
from tests.fakes import byte_bpe, metaspace_bpe, save_model, wordpiece

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def case(name: str = "q", question: str = "How many apples?", truth: str = "", tests: str = "") -> Case:
    return Case(name, (Segment(question, "user", trained=False),), truth, tests)


def chat_folder(folder: Path, seed: int = 3) -> Path:
    """A tiny language model with a chat template."""
    save_model(folder, metaspace_bpe(), seed=seed)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def reward_folder(folder: Path, *, labels: int = 1, seed: int = 0, pad: int | None = None, template: bool = True) -> Path:
    """A tiny Llama with a classifier's head; ``labels`` outputs called ``bad``, ``good``, ..."""
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    names = ["bad", "good", "other"][:labels]
    config = LlamaConfig(
        vocab_size=metaspace_bpe().get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, bos_token_id=None, eos_token_id=None, pad_token_id=pad,
        **({"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}} if labels > 1 else {"num_labels": 1}),
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=metaspace_bpe(), bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    if template:
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def bert_folder(folder: Path, *, labels: int = 1, seed: int = 0, context: int = 64) -> Path:
    """A tiny BERT with a classifier's head, token types and separators."""
    from tokenizers import Tokenizer, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    names = ["second", "first"][:labels]
    tokenizer = Tokenizer.from_str(wordpiece().to_str())
    ids = {name: tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(ids.items())
    )
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=context, initializer_range=0.5, pad_token_id=tokenizer.token_to_id("[PAD]"),
        **({"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}} if labels > 1 else {"num_labels": 1}),
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


class Scripted(Scorer):
    """A scorer that says what a function says, and remembers what it was asked."""

    def __init__(self, label: str, say, key: str = "k") -> None:
        self.label, self.say, self._key = label, say, key
        self.asked: list[list[str]] = []
        self.closed = 0

    @property
    def key(self) -> str:
        return self._key

    def opinions(self, cases, texts):
        self.asked.append([each.id for each in cases])
        return [[Opinion(self.say(each, text), ((text, "said"),)) for text in answers] for each, answers in zip(cases, texts, strict=True)]

    def close(self) -> None:
        self.closed += 1


__all__ = ["Scripted", "bert_folder", "byte_bpe", "case", "chat_folder", "reward_folder"]
