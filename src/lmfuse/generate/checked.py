"""One model writes and the others check; where they differ, all write together.  After SAFE, arXiv:2510.15346"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lmfuse.decode.boundaries import unit_ends
from lmfuse.decode.cool import Cool
from lmfuse.decode.safe import Safe, words_of
from lmfuse.generate.crew import Crew
from lmfuse.generate.release import Reason
from lmfuse.generate.segments import segment_rule, take_over, tokens_left, write_segment, write_segments
from lmfuse.generate.session import ContextFullError
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
        if passage.text:
            yield passage
    yield "length"


def _checked(crew: Crew, method: Safe, settings: WritingSettings) -> Passage | None:
    """Return what the reference model drafts, up to the first word that is doubted; None where that is the very first."""
    writes, begin = crew.sessions[0], len(crew.sessions[0].text)
    long = Cool(length=method.words)
    limit = min(long.segment_tokens, tokens_left(crew, settings))
    draft = crew.each(lambda index: writes.propose(segment_rule(crew, 0, long), limit) if index == 0 else None)[0]
    text = None if draft is None else draft.text
    if not text:
        return None
    others = crew.each(lambda index: _costs(crew, index, text))[1:]
    cuts = [frozenset(found[0]) for found in others if found is not None]
    words = [end for end in unit_ends(text, True, "word") if all(end in cut for cut in cuts)]
    if len(cuts) < len(others) or not words:
        return None
    told = [words_of(*found, words) for found in others if found is not None]
    doubt = method.first_doubt(np.array([costs for costs, _ in told]), np.array([counts for _, counts in told]))
    words = [end for end in words[:doubt] if draft is not None and end in draft.ends]
    if not words:
        return None
    return Passage(take_over(crew, text[: words[-1]], settings, begin), crew.labels[0])


def _costs(crew: Crew, index: int, text: bytes) -> tuple[list[int], list[float]] | None:
    """Let a model read a draft; return where its tokens end and what they cost."""
    if index == 0:
        return None
    crew.sessions[index].judge([text])
    return crew.sessions[index].token_costs(text)
