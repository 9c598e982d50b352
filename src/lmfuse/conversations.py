"""Conversations from records: ShareGPT's, OpenAI's, or any record whose fields are a question and an answer.

=========  ====================================================================================
ShareGPT   ``{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}``
OpenAI     ``{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}``
fields     ``user: "{question}"`` and ``assistant: "{answer}"`` in the recipe
=========  ====================================================================================

What comes out is a document of turns: a system message if there is one, then user and assistant in turn, the assistant's turns trained. As
published (FuseChat, arXiv:2408.07990, after Vicuna's cleaning) an assistant's turn before the first user's is dropped; turns behind the last answer teach
nothing and are dropped, too. Whatever else does not fit is refused by record, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from itertools import groupby
from typing import Any

from lmfuse.errors import TextError, did_you_mean
from lmfuse.text_templates import refuse_surrogates
from lmfuse.types import Segment

LISTS = {"conversations": ("from", "value"), "messages": ("role", "content")}  # the field of the turns: who speaks, and what
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant", "bard": "assistant",
    "bing": "assistant", "claude": "assistant",
}  # fmt: skip
TOOLS = frozenset(
    {"tool", "function", "function_call", "function-call", "function_response", "function-response", "observation", "ipython"}
)
CALLS = ("tool_calls", "function_call", "audio", "images")
COUNTERS = ("leading_turns_dropped", "trailing_turns_dropped", "answers_stripped", "unfit")
MEND = "remove or mend such conversations, or set unfit_conversations: leave_out"
Turn = tuple[str, str, bool]  # role, text, trained


class UnfitError(TextError):
    """A record that is whole but holds no conversation that chat templates know."""


def turns_field(record: Mapping[str, Any]) -> str | None:
    """Return the field of a record that holds turns, or None.

    >>> turns_field({"id": 7, "messages": [{"role": "user", "content": "Hi"}]}), turns_field({"text": "Hi"})
    ('messages', None)
    """
    return next((name for name in LISTS if isinstance(record.get(name), list | tuple | dict)), None)


def read_turns(record: Mapping[str, Any], where: str) -> list[Turn]:
    """Return the turns that a ShareGPT or OpenAI record holds, their roles by our names.

    An OpenAI message with ``"weight": 0`` is context, not training text; null is 1.

    Raises:
        UnfitError: tools, images, another role, a content that is no string, another weight, or columns that are no table.
        TextError: no turns in it, or turns that are no objects.
    """
    name = turns_field(record)
    if name is None:
        raise TextError(
            f"{where}: no {' and no '.join(LISTS)} in it",
            hint=f"its fields: {', '.join(map(str, record))[:120]}; see `user` and `assistant`",
        )
    turns = record[name]
    if isinstance(turns, dict):
        turns = _from_columns(turns, f"{where}: {name}")
    return [_turn(turn, LISTS[name], f"{where}: turn {number}") for number, turn in enumerate(turns, start=1)]


def _from_columns(columns: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return turns given as a table of columns, as Arrow gives a list of structs in old data sets."""
    lengths = {key: len(values) if isinstance(values, list | tuple) else None for key, values in columns.items()}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        got = ", ".join(f"{key}: {type(columns[key]).__name__ if n is None else n}" for key, n in list(lengths.items())[:4])
        raise UnfitError(f"{where} is an object ({got[:120]}), expected a list of turns, or columns of equal length", hint=MEND)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _turn(turn: Any, keys: tuple[str, str], where: str) -> Turn:
    if not isinstance(turn, dict):
        raise TextError(f"{where} is {type(turn).__name__}, expected an object", hint=f"turns have {keys[0]!r} and {keys[1]!r}")
    own, text = (turn.get(other) if turn.get(key) is None else turn[key] for key, other in zip(keys, _others(keys), strict=True))
    if not isinstance(own, str):
        raise TextError(f"{where}: who speaks is missing ({keys[0]!r})", hint=f"turns have {keys[0]!r} and {keys[1]!r}")
    call = next((name for name in CALLS if turn.get(name)), None)
    if own.lower() in TOOLS or call:
        raise UnfitError(f"{where} is of a tool ({call or own!r})", hint="remove such conversations, or set unfit_conversations: leave_out")
    if own.lower() not in ROLES:
        raise UnfitError(f"{where}: role {did_you_mean(own, ROLES)}", hint="rename the role, or set unfit_conversations: leave_out")
    if not isinstance(text, str):
        kinds = sorted({str(part.get("type")) for part in text if isinstance(part, dict)}) if isinstance(text, list) else []
        got = f"a list of {', '.join(kinds)}" if kinds else type(text).__name__
        raise UnfitError(
            f"{where}: its content is {got}, expected a string", hint="only text is read; or set unfit_conversations: leave_out"
        )
    refuse_surrogates(text, where)
    weight = turn.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise UnfitError(f"{where}: its weight is {str(weight)[:40]!r}, expected 0 or 1", hint=MEND)
    role = ROLES[own.lower()]
    return role, text, role == "assistant" and weight != 0


def _others(keys: tuple[str, str]) -> tuple[str, str]:
    """Return the names of the other kind: both kinds of turns are met under both names of the list."""
    return next(other for other in LISTS.values() if other != keys)


def clean(turns: Iterable[Turn], where: str, counts: MutableMapping[str, int]) -> tuple[Segment, ...]:
    """Return turns as segments: system first if at all, then user and assistant in turn, up to the last trained answer; or nothing.

    Answers lose the whitespace around them, because many templates trim it and no model can learn two ways.

    Args:
        turns: in their order.
        where: for messages.
        counts: holds all of ``COUNTERS``; what is dropped and stripped is added.

    Raises:
        UnfitError: two turns of one role behind each other, a second system message, or an empty answer before others.

    >>> clean([("assistant", "Welcome!", True), ("user", "Hi", False), ("assistant", " Hello. ", True)], "here", dict.fromkeys(COUNTERS, 0))
    (Segment(text='Hi', role='user', trained=False), Segment(text='Hello.', role='assistant', trained=True))
    """
    given = list(turns)
    first = 1 if given and given[0][0] == "system" else 0
    if first < len(given) and given[first][0] == "assistant":
        del given[first]
        counts["leading_turns_dropped"] += 1
    kept = [Segment(text.strip() if role == "assistant" else text, role, trained) for role, text, trained in given]
    last = max((place for place, turn in enumerate(kept) if turn.trained and turn.text), default=-1)
    counts["trailing_turns_dropped"] += len(kept) - 1 - last if last >= 0 else 0
    kept = kept[: last + 1]
    _check_order([segment.role for segment in kept[first:]], where)
    if empty := next((place for place, segment in enumerate(kept) if segment.trained and not segment.text), None):
        raise UnfitError(
            f"{where}: answer in turn {empty + 1} is empty", hint="remove such conversations, or set unfit_conversations: leave_out"
        )
    counts["answers_stripped"] += sum(segment.text != turn[1] for segment, turn in zip(kept, given, strict=False))
    return tuple(kept)


def _check_order(roles: list[str], where: str) -> None:
    if "system" in roles:
        raise UnfitError(f"{where}: a system message behind another turn, expected one, and first", MEND)
    if roles and roles[0] != "user":
        raise UnfitError(f"{where}: the {roles[0]} speaks first, expected the user", MEND)
    if twice := next((role for role, run in groupby(roles) if len(list(run)) > 1), None):
        raise UnfitError(f"{where}: two turns of the {twice} behind each other, expected user and assistant in turn", MEND)
