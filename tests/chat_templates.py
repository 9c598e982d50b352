"""Chat templates of the known families, and tokenizers that have their control tokens.

``chatml`` and ``zephyr`` are those of SmolLM2 and TinyLlama, ``qwen`` is Qwen2.5's without its tools (all Apache-2.0); the others say in
few words what their families' templates write.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from lmfuse.bytes import ByteTokenizer
from lmfuse.types import Document, Segment


@dataclass(frozen=True)
class Family:
    """A template, the control tokens that it needs, which of them begin and end a text, and which one ends a turn (None: no single one)."""

    template: str
    tokens: tuple[str, ...]
    bos: str
    eos: str
    end: str | None
    system: bool = True  # whether it has a place for a system message


CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
QWEN = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
LLAMA2 = (  # a space stands before the end token, so no single token ends a turn
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}{% for message in rest %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + ((system if loop.first else '') + message['content']).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
PHI3 = (  # control tokens put together from roles, which take the whitespace behind them
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
IM, HEADER = ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {
    "chatml": Family(CHATML, IM, "<|im_start|>", "<|im_end|>", "<|im_end|>"),
    "qwen": Family(QWEN, IM, "<|endoftext|>", "<|im_end|>", "<|im_end|>"),
    "llama3": Family(LLAMA3, ("<|begin_of_text|>", *HEADER), "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>"),
    "gemma": Family(GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", "<end_of_turn>", system=False),
    "zephyr": Family(ZEPHYR, ("<s>", "</s>"), "<s>", "</s>", "</s>"),
    "llama2": Family(LLAMA2, ("<s>", "</s>"), "<s>", "</s>", None),
    "mistral": Family(MISTRAL, ("<s>", "</s>"), "<s>", "</s>", "</s>", system=False),
    "phi3": Family(
        PHI3, ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"), "<|endoftext|>", "<|endoftext|>", "<|end|>"
    ),
}


def talk(*turns: str, system: str | None = None, origin: str = "talk.json:1") -> Document:
    """Return a conversation: user and assistant in turn, the assistant's turns trained."""
    said = [Segment(text, "assistant" if place % 2 else "user", bool(place % 2)) for place, text in enumerate(turns)]
    return Document((*([Segment(system, "system", trained=False)] if system is not None else []), *said), "chat", origin)


def messages(document: Document) -> list[dict[str, str]]:
    """Return a conversation as transformers wants it."""
    return [{"role": segment.role, "content": segment.text} for segment in document.segments]


def write_folder(folder: Path, tokenizer: Tokenizer, family: Family, *, template: str | None = None) -> Path:
    """Write a tokenizer with a family's control tokens and its template as a model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    own = Tokenizer.from_str(tokenizer.to_str())
    takes_space = family.template is PHI3
    missing = [AddedToken(text, special=True, rstrip=takes_space) for text in family.tokens if own.token_to_id(text) is None]
    own.add_special_tokens(missing)
    own.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": family.bos, "eos_token": family.eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(family.template if template is None else template)
    return folder


def load(folder: Path, tokenizer: Tokenizer, family: str, *, chat_template: str = "own") -> ByteTokenizer:
    """Write a folder and load its tokenizer with its chat template."""
    return ByteTokenizer.load(write_folder(folder, tokenizer, FAMILIES[family]), chat_template=chat_template, model=family)
