"""One model writes and the others check; where they differ, all write together.  After SAFE, arXiv:2510.15346"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lmfuse.decode.boundaries import unit_ends
from lmfuse.decode.cool import Cool
from lmfuse.decode.safe import Safe, words_of
from lmfuse.generate.crew import Crew
from lmfuse.generate.release import Reason
from lmfuse.generate.segments import commit, segment_rule, tokens_left, write_segment, write_segments
from lmfuse.generate.session import ContextFullError, Session
from lmfuse.writing import Passage, WritingSettings


def write_checked(crew: Crew, method: Safe, settings: WritingSettings) -> Iterator[Passage | Reason]:
    """Yield what the reference model writes as long as nobody doubts it, and fused words where somebody does.

    Passages that were fused have scores; what was only checked has none.
    """
    fuse = Cool(score=method.score, weights=method.weights)
    if len(crew.sessions) == 1:
        yield from write_segments(crew, fuse, settings)
        return
    leader = 0
    while tokens_left(crew, settings) > 0:
        try:
            passage = _checked(crew, method, settings)
            if passage is None:
                passage, leader = write_segment(crew, fuse, settings, leader)
        except ContextFullError:
            break
        if passage is None:
            yield "stop"
            return
        yield passage
    yield "length"


def _checked(crew: Crew, method: Safe, settings: WritingSettings) -> Passage | None:
    """Return what the reference model drafts, up to the first word that is doubted; None where that is the very first."""
    writes, long = crew.sessions[0], Cool(length=method.words)
    rule, limit = segment_rule(crew, 0, long, settings), min(long.segment_tokens, tokens_left(crew, settings))
    draft = crew.each(lambda index: writes.propose(rule, limit) if index == 0 else None)[0]
    if draft is None or not draft.text:
        return None
    text = draft.text
    others = crew.each(lambda index: _judged(crew.sessions[index], text) if index else None)[1:]
    told = [each for each in others if each is not None]
    words = [end for end in unit_ends(text, True, "word") if end in draft.ends and all(end in ends for ends, _, _ in told)]
    if len(told) < len(others) or not words:
        return None
    costs, counts, own = (np.array(each) for each in zip(*(words_of(*each, words) for each in told), strict=True))
    words = words[: method.first_doubt(costs, counts, own)]
    if not words:
        return None
    commit(crew, text[: words[-1]])
    return Passage(text[: words[-1]].decode(), crew.labels[0])


def _judged(session: Session, text: bytes) -> tuple[list[int], list[float], list[bool]] | None:
    """Let a model read a draft; return what it makes of each of its tokens for it."""
    session.judge([text], compare=True)
    return session.judged_tokens(text)
