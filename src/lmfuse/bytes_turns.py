"""Which control token ends a turn of a conversation, as far as a model's folder says so.

Only control tokens are looked at (added tokens that are special, and the end token that the configuration names), never ordinary text, and no
template is run: a stranger's template is read as text. What decides, in this order:

1. a token of a known name that the chat template mentions, or that the folder names as an end token (``eos_token`` of tokenizer_config.json,
   ``eos_token_id`` of generation_config.json);
2. the control token that the chat template writes right behind the content of a message of the assistant, or of any role alike;
3. the only end token in generation_config.json that ends no text (neither ``eos_token`` nor ``<|endoftext|>``);
4. a token of a known name that nothing else mentions: base models carry it, too.

Else the tokenizer has none. Where one token ends texts and turns it has both classes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lmfuse.errors import TokenizerError
from lmfuse.folder_files import read_object, read_text

KNOWN_NAMES = (
    "<|im_end|>",  # ChatML: Qwen, SmolLM, Yi, InternLM, Phi-4
    "<|eot_id|>",  # Llama 3
    "<|eot|>",  # Llama 4
    "<end_of_turn>",  # Gemma 2, 3
    "<turn|>",  # Gemma 4
    "<|END_OF_TURN_TOKEN|>",  # Command R
    "<|end|>",  # Phi-3, gpt-oss
    "<|endofturn|>",  # HyperCLOVA X, EXAONE
)
ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")
LONGEST_TEMPLATE = 1_000_000  # bytes
LONGEST_NAME = 100  # characters of a token that may end a turn
SIGHTS = re.compile(
    r"""['"](?P<role>assistant|model|user|human|system|tool|developer)['"]"""
    r"""|\{%-?\s*(?P<branch>if|elif|else|endif)\b"""
    r"""|\bcontent['"]?\]?(?P<glue>(?:[\s()|+~}'".-]|\{(?!%)|\\n|trim\b|strip\b)*)"""  # the ends of an expression and of its strings
)


def end_of_turn(folder: Path, config: Mapping[str, Any], control: Mapping[int, str], eos: str | None) -> str | None:
    """Return the string of the control token that ends a turn, or None.

    Args:
        folder: the model's folder, for its template and generation_config.json.
        config: tokenizer_config.json.
        control: the strings of the control tokens by id.
        eos: the configured end of a text.

    Raises:
        TokenizerError: one of these files is broken or no regular file.
    """
    template = chat_template(folder, config)
    ends = {control[i] for i in _stopping_ids(folder) if i in control}
    strings = set(control.values())
    known = [name for name in KNOWN_NAMES if name in strings]
    confirmed = [name for name in known if name in template or name in ends or name == eos]
    if confirmed:
        return confirmed[0]
    if closing := closing_token(template, strings, eos):
        return closing
    others = ends - {eos, *ENDS_OF_TEXT}
    if len(others) == 1:
        return others.pop()
    return known[0] if known else None


def closing_token(template: str, control: Collection[str], eos: str | None) -> str | None:
    """Return the control token that a chat template, read as text, writes right behind what the assistant said, or None.

    >>> zephyr = "{% if message.role == 'user' %}{{ '<|user|>' + message.content }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
    >>> closing_token(zephyr, {"</s>"}, "</s>"), closing_token(zephyr.replace("else", "elif message.role == 'tool'"), {"</s>"}, "</s>")
    ('</s>', None)
    """
    names = {text: text for text in control if len(text) <= LONGEST_NAME} | ({"eos_token": eos} if eos in control else {})
    lengths = sorted({len(name) for name in names}, reverse=True)
    found, speaker, branch = None, "", "else"
    for sight in SIGHTS.finditer(template):
        speaker, branch = sight["role"] or speaker, sight["branch"] or branch
        if sight["glue"] is None or not (speaker in ("assistant", "model") or branch in ("else", "endif")):
            continue  # behind a branch that is over, and in an else, roles are not told apart by name
        behind = (template[sight.end() : sight.end() + length] for length in lengths)
        found = next((names[name] for name in behind if name in names), found)
    return found


def chat_template(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the text of a folder's chat template, of several the one called default; ``""`` where there is none.

    Raises:
        TokenizerError: chat_template.jinja is no regular file, too large, or not UTF-8.
    """
    own = read_text(folder, "chat_template.jinja", TokenizerError, most_bytes=LONGEST_TEMPLATE)
    given = config.get("chat_template") if own is None else own
    if isinstance(given, list):
        named = {entry.get("name"): entry.get("template") for entry in given if isinstance(entry, dict)}
        given = named.get("default", next(iter(named.values()), ""))
    return given[:LONGEST_TEMPLATE] if isinstance(given, str) else ""


def _stopping_ids(folder: Path) -> list[int]:
    """Return the ids at which the model's folder says that generating stops."""
    found = (read_object(folder, "generation_config.json", TokenizerError) or {}).get("eos_token_id")
    return [i for i in (found if isinstance(found, list) else [found]) if type(i) is int]
