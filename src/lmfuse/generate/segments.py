"""Several models write one text segment by segment, or each a whole answer.  Cool-Fusion, arXiv:2407.19807, sections 3.1 to 3.4"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from lmfuse.decode.boundaries import first_end, last_resort, unit_ends, whole_characters
from lmfuse.decode.cool import Cool
from lmfuse.decode.cool_rerank import CoolRerank
from lmfuse.decode.judging import Choice, Judged, Judging
from lmfuse.decode.rerank import Rerank
from lmfuse.generate.crew import Crew
from lmfuse.generate.release import Reason, release
from lmfuse.generate.session import ContextFullError, Draft, Session, StopRule
from lmfuse.writing import Passage, WritingSettings

NO_LIMIT = 1 << 40
FUSED = "fused"  # how scores call the answer that the models wrote together


def write_segments(crew: Crew, method: Cool, settings: WritingSettings) -> Iterator[Passage | Reason]:
    """Yield segments, one author each, until the end is the best candidate, the reference model has written enough, or a context is full."""
    leader: int | None = None
    while True:
        try:
            passage, leader = write_segment(crew, method, settings, leader)
        except ContextFullError:
            yield "length"
            return
        if passage is None:
            yield "stop"
            return
        if passage.text:
            yield passage
        if tokens_left(crew, settings) <= 0:
            yield "length"
            return


def write_segment(crew: Crew, method: Cool, settings: WritingSettings, leader: int | None) -> tuple[Passage | None, int]:
    """Write one segment, None for the end, as far as the limit of tokens allows; return it with its author.

    Raises:
        ContextFullError: there is no room for one.
        TokenizerError: no proposal can be written by every model.
    """
    begin = len(crew.sessions[0].text)
    text, passage, author = _choose(crew, method, _segments(crew, method, tokens_left(crew, settings)), leader)
    if not text:
        return None, author
    return replace(passage, text=take_over(crew, text, settings, begin)), author


def take_over(crew: Crew, text: bytes, settings: WritingSettings, begin: int) -> str:
    """Commit a text and return what of it the limit of tokens allows to be shown."""
    _commit(crew, text)
    return text.decode() if settings.max_tokens is None else _first_tokens(crew.sessions[0], settings.max_tokens, begin)


def tokens_left(crew: Crew, settings: WritingSettings) -> int:
    """Return how many tokens the reference model may still write."""
    return (settings.max_tokens or NO_LIMIT) - crew.sessions[0].num_tokens


def write_answers(crew: Crew, method: Rerank, settings: WritingSettings) -> Iterator[Passage | Reason]:
    """Yield the best of the models' whole answers, as one passage. The limit of tokens is that of each model's own."""
    if len(crew.sessions) == 1:
        yield from write_segments(crew, Cool(), settings)
        return
    drafts = _answers(crew, settings)
    try:
        text, passage, author = _choose(crew, method, drafts, None)
        _commit(crew, text)
    except ContextFullError:
        yield "length"
        return
    if text:
        yield passage
    yield _reason(drafts[author], settings)


def write_reranked(crew: Crew, method: CoolRerank, settings: WritingSettings) -> Iterator[Passage | Reason]:
    """Yield the best of the models' own answers and the fused one, whose passages keep their authors."""
    fused: list[Passage] = []
    reason: Reason = "stop"
    for each in release(write_segments(crew, method, settings), settings):
        if isinstance(each, Passage):
            fused.append(each)
        else:
            reason = each
    if len(crew.sessions) == 1:
        yield from fused
        yield reason
        return
    for session in crew.sessions:
        session.restart()
    drafts = _answers(crew, settings)
    together = "".join(passage.text for passage in fused).encode()
    try:
        text, passage, author = _choose(crew, method, drafts, len(drafts), together)
        _commit(crew, text)
    except ContextFullError:  # the fused text was read by all
        author = len(drafts)
    yield from fused if author == len(drafts) else [passage] if passage.text else []
    yield reason if author == len(drafts) else _reason(drafts[author], settings)


def _segments(crew: Crew, method: Cool, left: int) -> list[Draft]:
    """Return what each model would write next, none of them more than the ``left`` tokens that are left to the reference model."""
    rules = [segment_rule(crew, index, method) for index in range(len(crew.sessions))]
    return crew.each(lambda index: crew.sessions[index].propose(rules[index], min(method.segment_tokens, left)))


def _commit(crew: Crew, text: bytes) -> None:
    if text:
        crew.each(lambda index: crew.sessions[index].commit(text))


def _answers(crew: Crew, settings: WritingSettings) -> list[Draft]:
    rule = _answer_rule(crew, settings)
    return crew.each(lambda index: crew.sessions[index].propose(rule, settings.max_tokens or NO_LIMIT))


def _reason(draft: Draft, settings: WritingSettings) -> Reason:
    ended = draft.ended and draft.length == len(draft.data)
    return "stop" if ended or _stop_place(draft.data, settings) == draft.length else "length"


# ── where proposals end ─────────────────────────────────────────────────────────────────────────────────────────────────


def segment_rule(crew: Crew, index: int, method: Cool) -> StopRule:
    """Return where a model's proposal ends: at the first place that suits every tokenizer, or the best there is."""
    others = [other for place, other in enumerate(crew.sessions) if method.aligned and place != index]

    def rule(data: bytes, ends: Sequence[int], ended: bool, met: bool) -> int | None:
        crew.go_on()
        if ended and not data:
            return 0
        possible = [end for end in unit_ends(data, ended, method.segment)[method.length - 1 :] if end in ends]
        whole = whole_characters(data).encode()
        end = first_end(possible, [other.cuts(whole) for other in others] if possible else [], 1)
        if end is not None:
            return end
        if ended:
            return len(whole)
        return (last_resort(data, frozenset(ends)) or None) if met else None

    return rule


def _answer_rule(crew: Crew, settings: WritingSettings) -> StopRule:
    def rule(data: bytes, _: Sequence[int], ended: bool, met: bool) -> int | None:
        crew.go_on()
        place = _stop_place(data, settings)
        if place is not None and place <= settings.max_bytes:
            return place
        if ended or met or len(data) >= settings.max_bytes:
            return len(whole_characters(data[: settings.max_bytes]).encode())
        return None

    return rule


def _stop_place(data: bytes, settings: WritingSettings) -> int | None:
    """Return the byte at which the first stop string stands."""
    return min((place for stop in settings.stop if (place := data.find(stop.encode())) >= 0), default=None)


def _first_tokens(session: Session, most: int, begin: int) -> str:
    """Return the text from a byte on, as far as a session's first tokens write it."""
    last = session.ends[most - 1] if len(session.ends) > most else len(session.text)
    return whole_characters(session.text[:last])[len(session.text[:begin].decode()) :]


# ── choosing ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _choose(
    crew: Crew, method: Judging, drafts: Sequence[Draft], leader: int | None, together: bytes | None = None
) -> tuple[bytes, Passage, int]:
    """Return the chosen candidate's bytes (empty: the end), its passage, and its author.

    Args:
        crew: the models.
        method: chooses.
        drafts: what each proposes.
        leader: the author who wins ties.
        together: one candidate more, whose author is the index behind all models.

    Raises:
        ContextFullError: no model could propose anything, or none of it fits into every context.
        TokenizerError: no candidate can be written by every model.
    """
    proposed: dict[bytes, list[int]] = {}
    for index, text in enumerate([*(draft.text for draft in drafts), together]):
        if text is not None:
            proposed.setdefault(text, []).append(index)
    if not proposed:
        raise ContextFullError
    texts, authors = list(proposed), list(proposed.values())
    scores: list[float] = []
    best = 0
    if len(texts) > 1:
        choice = _judge(crew, method, texts, authors, leader)
        best, scores = choice.index, choice.scores.tolist()
    author = leader if leader in authors[best] else min(authors[best])
    assert author is not None
    labels = (*crew.labels, FUSED)
    by_label: dict[str, float] = {labels[index]: score for score, group in zip(scores, authors, strict=False) for index in group}
    said = {labels[index]: text.decode() for text, group in proposed.items() for index in group if index < len(drafts)}
    return texts[best], Passage(texts[best].decode(), labels[author], by_label, said), author


def _judge(crew: Crew, method: Judging, texts: list[bytes], authors: list[list[int]], leader: int | None) -> Choice:
    verdicts = crew.each(lambda index: crew.sessions[index].judge(texts))
    nll = np.array([[verdict.nll_nats for verdict in line] for line in verdicts])
    tokens = np.array([[verdict.tokens for verdict in line] for line in verdicts], np.int64)
    if np.isinf(nll).any(0).all():
        judge, place = np.argwhere(np.isinf(nll))[0]
        raise crew.sessions[judge].refusal(texts[place])
    return method(Judged(nll, tokens, np.array([max(len(text), 1) for text in texts])), authors, leader)
