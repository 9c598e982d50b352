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
from lmfuse.generate.draft import Draft, StopRule, Written
from lmfuse.generate.release import Reason, release
from lmfuse.generate.session import ContextFullError
from lmfuse.writing import Passage, WritingSettings

NO_LIMIT = 1 << 40
FUSED = "fused"  # how scores call the answer that the models wrote together


def write_segments(crew: Crew, method: Cool, settings: WritingSettings) -> Iterator[Passage | Reason]:
    """Yield segments, one author each, until the end is the best candidate, the reference model has written enough, or a context is full."""
    leader: int | None = None
    while tokens_left(crew, settings) > 0:
        try:
            passage, leader = write_segment(crew, method, settings, leader)
        except ContextFullError:
            break
        if passage is None:
            yield "stop"
            return
        yield passage
    yield "length"


def write_segment(crew: Crew, method: Cool, settings: WritingSettings, leader: int | None) -> tuple[Passage | None, int]:
    """Write one segment, None for the end, as far as the limits allow; return it with its author.

    Raises:
        ContextFullError: there is no room for one.
        TokenizerError: no proposal can be written by every model.
    """
    rules = [segment_rule(crew, index, method, settings) for index in range(len(crew.sessions))]
    drafts = _proposals(crew, rules, method.segment_tokens, settings)
    text, passage, author = _choose(crew, method, [draft.text for draft in drafts], leader)
    if not text:
        return None, author
    commit(crew, text)
    return passage, author


def write_answers(crew: Crew, method: Rerank, settings: WritingSettings) -> Iterator[Passage | Reason]:
    """Yield the best of the models' whole answers, as one passage."""
    if len(crew.sessions) == 1:
        yield from write_segments(crew, Cool(), settings)
        return
    drafts = _answers(crew, settings)
    try:
        text, passage, author = _choose(crew, method, _if_any_says_something([draft.text for draft in drafts]), None)
        commit(crew, text)
    except ContextFullError:
        yield "length"
        return
    if text:
        yield passage
    yield _reason(drafts[author], settings)


def write_reranked(crew: Crew, method: CoolRerank, settings: WritingSettings) -> Iterator[Passage | Reason]:
    """Yield the best of the models' own answers and the fused one, whose passages keep their authors.

    The first passage has the scores of whole answers, and these; the others have none.
    """
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
        texts = _if_any_says_something([*(draft.text for draft in drafts), together])
        text, passage, author = _choose(crew, method, texts, len(drafts))
        commit(crew, text)
    except ContextFullError:  # the fused text was read by all
        yield from fused
        yield reason
        return
    if author < len(drafts):
        yield from [passage] if passage.text else []
        yield _reason(drafts[author], settings)
        return
    for place, each in enumerate(fused):
        yield replace(each, scores={} if place else passage.scores, candidates={} if place else passage.candidates)
    yield reason


def _if_any_says_something(answers: Sequence[bytes | None]) -> list[bytes | None]:
    """Leave out empty answers, unless all are: what a model makes of the end of a text does not compare with what it makes of a text."""
    return [answer or None for answer in answers] if any(answers) else list(answers)


def _reason(draft: Draft, settings: WritingSettings) -> Reason:
    return "stop" if draft.is_whole or _stop_place(draft.data, settings) == draft.length else "length"


def commit(crew: Crew, text: bytes) -> None:
    """Make a text part of what all models have read.

    Raises:
        ContextFullError, TokenizerError: see ``Session.commit``.
    """
    if text:
        crew.each(lambda index: crew.sessions[index].commit(text))


# ── where proposals end ─────────────────────────────────────────────────────────────────────────────────────────────────


def tokens_left(crew: Crew, settings: WritingSettings) -> int:
    """Return how many tokens the reference model may still write."""
    return (settings.max_tokens or NO_LIMIT) - crew.sessions[0].num_tokens


def fitting(crew: Crew, text: bytes, settings: WritingSettings) -> int:
    """Return how many bytes of what may follow every model can hold and the reference model may write, whole characters."""
    limits = (settings.max_tokens, *[None] * (len(crew.sessions) - 1))
    while True:
        fits = min(session.fitting(text, limit) for session, limit in zip(crew.sessions, limits, strict=True))
        if fits == len(text):
            return fits
        text = text[:fits]  # cut elsewhere it may have more tokens


def _proposals(crew: Crew, rules: Sequence[StopRule], most_tokens: int, settings: WritingSettings) -> list[Draft]:
    """Return what each model would write next, cut to what fits; one of which nothing is left proposes nothing."""
    limit = min(most_tokens, tokens_left(crew, settings), *(session.room for session in crew.sessions))
    drafts = crew.each(lambda index: crew.sessions[index].propose(rules[index], limit))
    for draft in drafts:
        if draft.text:
            draft.length = fitting(crew, draft.text, settings) or None
    return drafts


def _answers(crew: Crew, settings: WritingSettings) -> list[Draft]:
    return _proposals(crew, [_answer_rule(crew, settings)] * len(crew.sessions), NO_LIMIT, settings)


def segment_rule(crew: Crew, index: int, method: Cool, settings: WritingSettings) -> StopRule:
    """Return where a model's proposal ends: at the first place that suits every tokenizer, or the best there is.

    Also behind a stop string and where the text is as long as it may be, whatever stands there: what follows is not shown.
    """
    others = [other for place, other in enumerate(crew.sessions) if method.aligned and place != index]
    stops = [stop.encode() for stop in settings.stop]
    text = crew.sessions[index].text
    left, before = settings.max_bytes - len(text), text[-max(map(len, stops), default=0) :]

    def rule(written: Written) -> int | None:
        crew.go_on()
        if written.ended and not written.data:
            return 0
        possible = [end for end in unit_ends(written.data, written.ended, method.segment)[method.length - 1 :] if end in written.ends]
        whole = whole_characters(written.data).encode()
        end = first_end(possible, [other.cuts(whole) for other in others] if possible else [], 1)
        if end is not None:
            return end
        if written.ended or len(whole) >= left or any(stop in before + whole for stop in stops):
            return len(whole) or None
        return (last_resort(written.data, frozenset(written.ends)) or None) if written.limit_met else None

    return rule


def _answer_rule(crew: Crew, settings: WritingSettings) -> StopRule:
    def rule(written: Written) -> int | None:
        crew.go_on()
        data, most = written.data, settings.max_bytes
        place = _stop_place(data, settings)
        if place is not None and place <= most:
            return place
        return len(whole_characters(data[:most]).encode()) if written.ended or written.limit_met or len(data) >= most else None

    return rule


def _stop_place(data: bytes, settings: WritingSettings) -> int | None:
    """Return the byte at which the first stop string stands."""
    return min((place for stop in settings.stop if (place := data.find(stop.encode())) >= 0), default=None)


# ── choosing ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _choose(crew: Crew, method: Judging, candidates: Sequence[bytes | None], leader: int | None) -> tuple[bytes, Passage, int]:
    """Return the chosen candidate's bytes (empty: the end), its passage, and its author.

    Args:
        crew: the models.
        method: chooses.
        candidates: what each model proposes, if anything; one more may stand behind these: what they wrote together.
        leader: the author who wins ties.

    Raises:
        ContextFullError: no model could propose anything.
        TokenizerError: no candidate can be written by every model.
    """
    proposed: dict[bytes, list[int]] = {}
    for index, text in enumerate(candidates):
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
    author = leader if leader is not None and leader in authors[best] else min(authors[best])
    labels = (*crew.labels, FUSED)
    by_label = {labels[index]: score for score, group in zip(scores, authors, strict=False) for index in group}
    said = {labels[index]: text.decode() for text, group in proposed.items() for index in group}
    return texts[best], Passage(texts[best].decode(), labels[author], by_label, said), author


def _judge(crew: Crew, method: Judging, texts: list[bytes], authors: list[list[int]], leader: int | None) -> Choice:
    verdicts = crew.each(lambda index: crew.sessions[index].judge(texts))
    nll = np.array([[verdict.nll_nats for verdict in line] for line in verdicts])
    tokens = np.array([[verdict.tokens for verdict in line] for line in verdicts], np.int64)
    if np.isinf(nll).any(0).all():
        judge, place = np.argwhere(np.isinf(nll))[0]
        raise crew.sessions[judge].refusal(texts[place])
    return method(Judged(nll, tokens, np.array([max(len(text), 1) for text in texts])), authors, leader)
