"""A model's chat template: which one it is, and where in what it writes the contents of the messages stand.

A template is a program; nothing but running it tells what it writes. It is run twice: with the messages, and with unmistakable words in
place of their contents. The second text, cut at these words, is the template's own part. If this part and the contents, put together again,
are exactly the first text, then every character is known to be a message's or the template's. If not, the template changes what was said
(some take the thoughts out of earlier answers), and the conversation is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmfuse.bytes_turns import LONGEST_TEMPLATE, chat_template
from lmfuse.chat_sandbox import ChatSandbox
from lmfuse.errors import InputError, TokenizerError
from lmfuse.folder_files import read_object
from lmfuse.types import Segment

CHOICES = ("none", "own", "openchat")
MARK, MARKS = "zqContent{:04d}zq", re.compile(r"zqContent(\d{4,})zq")
MOST_TURNS = 1000
TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # of tokenizer_config.json; templates name them ``bos_token`` and so on
OPENCHAT = (  # FuseChat's one template for all, ``openchat_3.5`` of FastChat: the end token is each tokenizer's own
    "{{ START }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + END }}{% else %}"
    "{{ 'GPT4 Correct ' + message['role'].title() + ': ' + message['content'] + END }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class Stretch:
    """A part of a rendered conversation: the content of a message, by its index, or (-1) what the template wrote itself."""

    text: str
    message: int = -1


@dataclass(frozen=True)
class Unfit:
    """Why a template cannot express a conversation."""

    reason: str


@dataclass(frozen=True)
class _Frame:
    """What a template writes around the contents of some roles: one text more than there are contents, and the order of these."""

    texts: tuple[str, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template in jinja, the special tokens that it may name (``bos_token``), and how errors call the model."""

    model: str
    source: str
    variables: Mapping[str, str]

    @cached_property
    def key(self) -> str:
        """Return 32 hex digits that change with whatever can change what is written."""
        return hashlib.sha256(json.dumps([self.source, sorted(self.variables.items())]).encode()).hexdigest()[:32]

    @cached_property
    def _sandbox(self) -> ChatSandbox:
        return ChatSandbox(self.model, self.source, dict(self.variables))

    @cached_property
    def _frames(self) -> dict[tuple[tuple[str, ...], bool], _Frame | Unfit]:
        return {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model, self.source, dict(self.variables))  # another process starts a child of its own

    def render(self, messages: Sequence[Segment], *, prompt: bool = False) -> list[Stretch] | Unfit:
        """Return what the template makes of messages, cut into its own text and their contents; with ``prompt`` up to where an answer begins.

        Templates may trim what is not trained, and nothing else.

        Raises:
            InputError: the template itself is at fault (see ``ChatSandbox.render``).
        """
        if len(messages) > MOST_TURNS:
            return Unfit(f"{len(messages):,} turns, at most {MOST_TURNS:,} are rendered")
        frame = self._frame(tuple(message.role for message in messages), prompt)  # roles that are refused are so only once
        if isinstance(frame, Unfit):
            return frame
        said = self._sandbox.render([(message.role, message.text) for message in messages], prompt=prompt)
        if said.problem:
            return Unfit(said.problem)
        return _contents(said.text, frame, messages) or Unfit("it changes what the messages say")

    def _frame(self, roles: tuple[str, ...], prompt: bool) -> _Frame | Unfit:
        known = self._frames.get((roles, prompt))
        if known is None:
            known = self._frames[roles, prompt] = self._find_frame(roles, prompt)
        return known

    def _find_frame(self, roles: tuple[str, ...], prompt: bool) -> _Frame | Unfit:
        """Render marks in place of contents and cut at them."""
        said = self._sandbox.render([(role, MARK.format(place)) for place, role in enumerate(roles)], prompt=prompt)
        if said.problem:
            return Unfit(said.problem)
        parts = MARKS.split(said.text)
        order = tuple(int(number) for number in parts[1::2])
        for place, role in enumerate(roles):
            if order.count(place) != 1:
                how = "leaves out or changes" if place not in order else "repeats"
                return Unfit(f"it {how} what stands in turn {place + 1} ({role})")
        return _Frame(tuple(parts[::2]), order)


def _contents(text: str, frame: _Frame, messages: Sequence[Segment]) -> list[Stretch] | None:
    """Return a text as frame and contents, or None if it is anything else."""
    if not text.startswith(frame.texts[0]):
        return None
    found, at = [Stretch(frame.texts[0])], len(frame.texts[0])
    for behind, message in zip(frame.texts[1:], frame.order, strict=True):
        said = messages[message].text
        written = (said,) if messages[message].trained else (said, said.strip(), said.rstrip(), said.lstrip())
        content = next((content for content in written if text.startswith(content + behind, at)), None)
        if content is None:
            return None
        found += [Stretch(content, message), Stretch(behind)]
        at += len(content) + len(behind)
    return found if at == len(text) else None


# -------------------------------------------------------------------------------------------------------------- which template


def choose_template(choice: str, folder: Path, named: Mapping[str, str], start: str, model: str) -> ChatTemplate | None:
    """Return the chat template that a model reads conversations with, or None for ``none``.

    Args:
        choice: ``none``; ``own``: the one in the model's folder; ``openchat``: FuseChat's one for all; else the path of a jinja file.
        folder: the model's folder.
        named: the strings of its control tokens by class (``bos``, ``eos``, ``end_of_turn``, ...), as far as they exist.
        start: what its tokenizer puts before every text, in its own spelling; ``openchat`` puts it before a conversation.
        model: how errors call it.

    Raises:
        InputError: there is no such template, or no token that could end a turn.
        TokenizerError: a file of the folder is broken.
    """
    if choice == "none":
        return None
    config = read_object(folder, "tokenizer_config.json", TokenizerError) or {}
    variables = {f"{name}_token": text for name in TOKENS if (text := named.get(name) or _string(config.get(f"{name}_token")))}
    if choice == "own":
        source = chat_template(folder, config)
        if not source:
            raise InputError(
                f"model {model} has no chat template",
                hint="name one: chat_template: openchat, or the path of a template; or take the model's instruction-tuned sister",
            )
    elif choice == "openchat":
        end = named.get("end_of_turn") or named.get("eos")
        if end is None:
            raise InputError(
                f"model {model}: no token ends a turn or a text: openchat cannot be written", hint="name another chat_template"
            )
        source = re.sub("START|END", lambda found: json.dumps({"START": start, "END": end}[found[0]], ensure_ascii=False), OPENCHAT)
    else:
        source = _read_template(Path(choice))
    return ChatTemplate(model, source, variables)


def _string(token: object) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _read_template(path: Path) -> str:
    hint = f"chat_template is one of {', '.join(CHOICES)}, or the path of a jinja file"
    if not path.is_file():
        raise InputError(f"chat_template: no file {str(path)!r}", hint)
    with path.open("rb") as file:
        data = file.read(LONGEST_TEMPLATE + 1)
    if len(data) > LONGEST_TEMPLATE:
        raise InputError(f"{path}: a chat template of more than {LONGEST_TEMPLATE:,} bytes", hint)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8", hint="save the template as UTF-8") from None
