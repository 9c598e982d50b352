"""What of a text may be shown already: nothing behind a stop string or a limit, and nothing that may still become a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, TypeAlias

from lmfuse.decode.boundaries import whole_characters
from lmfuse.writing import Passage, WritingSettings

Reason: TypeAlias = Literal["stop", "length"]


def release(written: Iterable[Passage | Reason], settings: WritingSettings) -> Iterator[Passage | Reason]:
    """Yield passages as early as stop strings allow, then why the text ended; what comes after that is not asked for.

    >>> said = [Passage("one t", "a"), Passage("wo <", "b"), Passage("end> three", "a"), "stop"]
    >>> [each if isinstance(each, str) else each.text for each in release(said, WritingSettings(stop=("<end>",)))]
    ['one t', 'wo ', 'stop']
    >>> [each if isinstance(each, str) else each.text for each in release(said, WritingSettings(max_bytes=6))]
    ['one t', 'w', 'length']
    """
    held: list[Passage] = []
    shown = 0  # bytes that were yielded
    for each in written:
        if isinstance(each, str):
            yield from held
            yield each
            return
        held.append(each)
        text = "".join(passage.text for passage in held)
        found = min((place for stop in settings.stop if (place := text.find(stop)) >= 0), default=-1)
        most = settings.max_bytes - shown
        fits = len(whole_characters(text.encode()[:most]))
        if found >= 0 and len(text[:found].encode()) < most:
            yield from _cut(held, found)[0]
            yield "stop"
            return
        if len(text.encode()) >= most:
            yield from _cut(held, fits)[0]
            yield "length"
            return
        out, held = _cut(held, len(text) - _begun(text, settings.stop))
        shown += sum(len(passage.text.encode()) for passage in out)
        yield from out


def _begun(text: str, stops: Iterable[str]) -> int:
    """Return how many characters at the end of a text begin a stop string."""
    return max((size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)


def _cut(passages: list[Passage], place: int) -> tuple[list[Passage], list[Passage]]:
    """Return passages before and behind a character; one that it lies in is divided."""
    before: list[Passage] = []
    behind: list[Passage] = []
    for passage in passages:
        first, rest = passage.text[: max(place, 0)], passage.text[max(place, 0) :]
        place -= len(passage.text)
        before += [replace(passage, text=first)] if first else []
        behind += [replace(passage, text=rest)] if rest else []
    return before, behind
