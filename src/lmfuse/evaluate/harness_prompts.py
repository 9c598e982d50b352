"""What lm-evaluation-harness hands over as a prompt: a string. A conversation goes through it as JSON, so that each model can use its own template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError, create_model

from lmfuse.errors import InputError, did_you_mean
from lmfuse.generate.prompt import last_words
from lmfuse.generate.session import ContextFullError, Session
from lmfuse.generate.spelling import Spelling
from lmfuse.models import LanguageModel
from lmfuse.schema_errors import problems
from lmfuse.types import Document, Segment
from lmfuse.writing import Prompt, WritingSettings

MARK = "lmfuse conversation "  # what a conversation begins with, and no task's text does
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the harness's names for one thing, the first one wins
KNOWN = ("until", "do_sample", "temperature", "top_p", *LIMITS)
NO_BYTE_LIMIT = 1 << 30


@dataclass(frozen=True)
class Context:
    """What stands before a continuation: a plain text, or a conversation and how its answer has begun.

    Attributes:
        text: the plain text; of a conversation, the beginning of the answer (the harness's ``gen_prefix``).
        messages: of the conversation; empty for a plain text.
    """

    text: str
    messages: tuple[Segment, ...] = ()

    @property
    def prompt(self) -> Prompt:
        """Return what a writer is given; the beginning of an answer is no part of it."""
        return list(self.messages) if self.messages else self.text


def write_conversation(history: Sequence[Mapping[str, str]], *, begun: bool = False) -> str:
    r"""Return the string that stands for a conversation.

    Args:
        history: messages with ``role`` and ``content``.
        begun: whether the last one is the beginning of the answer.

    >>> write_conversation([{"role": "user", "content": "Why?"}])
    'lmfuse conversation [["user", "Why?"]]'

    Raises:
        InputError: a role that no template knows, or nothing but the beginning of an answer.
    """
    for message in history:
        if message["role"] not in ("system", "user", "assistant"):
            raise InputError(f"a task's message: role {did_you_mean(message['role'], ('system', 'user', 'assistant'))}")
    if len(history) <= begun or (begun and history[-1]["role"] != "assistant"):
        raise InputError(
            f"a task's conversation of {len(history)} messages cannot be answered", "--fewshot_as_multiturn true keeps roles apart"
        )
    said = [[message["role"], message["content"]] for message in history]
    whole: Any = {"messages": said[:-1], "answer": said[-1][1]} if begun else said
    return MARK + json.dumps(whole, ensure_ascii=False)


def read_context(text: str) -> Context:
    r"""Return what a string stands for.

    >>> read_context("Why?"), len(read_context('lmfuse conversation [["user", "Why?"]]').messages)
    (Context(text='Why?', messages=()), 1)
    """
    if not text.startswith(MARK):
        return Context(text)
    try:
        whole = json.loads(text[len(MARK) :])
        said, begun = (whole["messages"], whole["answer"]) if isinstance(whole, dict) else (whole, "")
        return Context(begun, tuple(Segment(content, role, trained=False) for role, content in said))
    except (ValueError, KeyError, TypeError):  # a text that only looks like one
        return Context(text)


def without_system(history: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return a conversation in which the first user's message begins with what the system message says.

    >>> without_system([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    [{'role': 'user', 'content': 'Be brief.\\n\\nWhy?'}]
    """
    rules = [message["content"] for message in history if message["role"] == "system"]
    rest = [dict(message) for message in history if message["role"] != "system"]
    if rest and rest[0]["role"] == "user":
        rest[0]["content"] = "\n\n".join([*rules, rest[0]["content"]])
        return rest
    return [{"role": "user", "content": "\n\n".join(rules)}, *rest]


def spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    """Return both with the spaces at the end of the context at the beginning of the continuation, as the harness's own models have it.

    >>> spaces_moved("Answer: ", "yes")
    ('Answer:', ' yes')
    """
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def cut_left(model: LanguageModel, text: str, most: int) -> str:
    """Return the end of a text that a model reads as at most so many tokens; never a part of a character."""
    while text:
        encoding = model.tokenizer.encode(Document.plain(text))
        excess = len(encoding.ids) - most
        if excess <= 0:
            break
        starts = encoding.starts[encoding.starts >= 0]
        place = max(1, int(starts[min(excess, len(starts) - 1)]) if len(starts) else 1)
        text = text.encode()[place:].decode("utf-8", errors="ignore")
    return text


def begin_answer(session: Session, begun: str) -> None:
    """Make the beginning of an answer part of what a session has as its prompt.

    Raises:
        InputError: the prompt and it exceed the model's context.
        TokenizerError: the tokenizer cannot write it.
    """
    try:
        session.commit(begun.encode())
    except ContextFullError:
        raise InputError(f"the prompt and the beginning of the answer exceed {session.label}'s context", "give fewer examples") from None
    session.num_prompt = len(session.ids)
    session._prompt_prediction = session.prediction
    session.spelling = Spelling(session.model.tokenizer, last_words(begun.encode()))
    session.restart()


def settings_of(arguments: Mapping[str, Any], most_tokens: int, seed: int) -> WritingSettings:
    """Return how a task's ``generation_kwargs`` want a text written.

    Drawing follows the harness: with ``do_sample``, or with a temperature above 0 where ``do_sample`` is not said.

    Args:
        arguments: of the task and of ``--gen_kwargs``.
        most_tokens: of a text where they name no limit.
        seed: of what is drawn.

    >>> settings_of({"until": ["\\n"], "max_gen_toks": 8, "temperature": 0.7, "do_sample": False}, 256, 0).temperature
    0.0

    Raises:
        InputError: an argument that is unknown, or impossible.
    """
    unknown = [name for name in arguments if name not in KNOWN]
    if unknown:
        raise InputError(
            f"generation_kwargs: {did_you_mean(unknown[0], KNOWN)}", "--gen_kwargs cannot take it away: change the task's file"
        )
    until = arguments.get("until") or []
    draws = arguments.get("do_sample")
    temperature = arguments.get("temperature", 1.0 if draws else 0.0)
    limits = [arguments[name] for name in LIMITS if arguments.get(name) is not None]
    values: dict[str, Any] = {
        "max_bytes": NO_BYTE_LIMIT,
        "max_tokens": limits[0] if limits else most_tokens,
        "stop": tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
        "temperature": 0.0 if draws is False else temperature,
        "top_p": arguments.get("top_p", 1.0),
        "seed": seed,
    }
    try:
        return WritingSettings(**values)
    except ValidationError as error:
        raise InputError(f"generation_kwargs: {problems(error, create_model('Settings', settings=(WritingSettings, ...)))}") from None
