"""Training conversations as questions: what is asked, what is known of the answer, and what becomes of the answer that was elected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lmfuse.artefacts import content_key
from lmfuse.bytes import ByteTokenizer
from lmfuse.conversation_windows import ConversationFitter
from lmfuse.judges.protocol import Case
from lmfuse.types import Document, Segment


def question_of(document: Document, with_truth: bool = True) -> Case | None:
    """Return what stands before the last trained answer of a conversation as a question; None where nothing is asked.

    Earlier answers are context, whether they are trained elsewhere or not.

    >>> talk = Document(tuple(Segment(text, role) for text, role in [("Hi", "user"), ("Hello.", "assistant")]))
    >>> question_of(talk).question, question_of(talk).truth, question_of(Document.plain("Hi"))
    ('Hi', 'Hello.', None)
    """
    answers = [place for place, segment in enumerate(document.segments) if segment.trained and segment.role == "assistant"]
    if not document.is_conversation or not answers or not answers[-1]:
        return None
    prompt = tuple(replace(segment, trained=False) for segment in document.segments[: answers[-1]])
    if prompt[-1].role != "user":
        return None
    return Case(document.id, prompt, document.segments[answers[-1]].text if with_truth else "")


def questions_of(windows: Sequence[Document], truth_domains: Sequence[str] = ()) -> list[Case]:
    """Return the questions of some windows, in their order; the truth of those domains alone, where there are any."""
    found = (question_of(window, not truth_domains or window.domain in truth_domains) for window in windows)
    return [case for case in found if case is not None]


def questions_key(cases: Sequence[Case]) -> str:
    """Return the identity of what is asked, whatever the truth."""
    return content_key([[case.id, [[segment.text, segment.role] for segment in case.prompt]] for case in cases])


@dataclass(frozen=True)
class Elected:
    """What training reads of the elected answers.

    Attributes:
        documents: for each training window the question with the elected answer, the only trained segment; None where there is none to read.
        producers: who wrote the answer, by the document's id.
        counters: ``answers_read``, and why others are not: ``windows_without_question``, ``questions_without_winner``,
            ``elected_answers_unfit`` (beyond a chat template), ``elected_answers_too_long`` (for a model or the window); and
            ``answers_equal_truth``, which are read all the same: they are what the winner says, and its rows go with them.
    """

    documents: tuple[Document | None, ...]
    producers: Mapping[str, str]
    counters: Mapping[str, int]

    @cached_property
    def key(self) -> str:
        """Return the identity of the documents and of who teaches each."""
        return content_key([document and [document.id, document.domain, self.producers[document.id]] for document in self.documents])

    @property
    def winners(self) -> tuple[str, ...]:
        """Return who wrote at least one of the answers, sorted."""
        return tuple(sorted(set(self.producers.values())))

    def won_by(self, label: str) -> tuple[Document, ...]:
        """Return the documents whose answer a model wrote, each once."""
        return tuple(
            {each.id: each for each in self.documents if each is not None and self.producers[each.id] == label}.values()
        )  # fmt: skip


def elected_documents(
    windows: Sequence[Document],
    winners: Mapping[str, tuple[str, str]],
    tokenizers: Sequence[ByteTokenizer],
    limits: Sequence[int],
) -> Elected:
    """Return the texts of an election: questions with the winners' answers, where every model can read them whole.

    Args:
        windows: the training windows.
        winners: who won and with which text, by the window's id; none where there is no winner.
        tokenizers: of the models that must be able to read the answers.
        limits: the most tokens of each.
    """
    counters: Counter[str] = Counter(dict.fromkeys(("windows_without_question", "questions_without_winner", "answers_equal_truth"), 0))
    found: list[tuple[int, str, Document]] = []
    for place, window in enumerate(windows):
        case, won = question_of(window), winners.get(window.id)
        if case is None or won is None:
            counters["windows_without_question" if case is None else "questions_without_winner"] += 1
            continue
        label, text = won
        counters["answers_equal_truth"] += text.strip() == case.truth.strip()
        found.append((place, label, replace(window, segments=(*case.prompt, Segment(text, "assistant")))))
    fitter = ConversationFitter(tokenizers, limits, "leave_out")
    kept = {id(document) for document in fitter.fit([document for _, _, document in found])}
    documents: list[Document | None] = [None] * len(windows)
    producers: dict[str, str] = {}
    for place, label, document in found:
        if id(document) in kept:
            documents[place] = document
            producers.setdefault(document.id, label)
    counters["elected_answers_unfit"] = fitter.counters["conversations_unfit"]
    counters["elected_answers_too_long"] = fitter.counters["conversations_left_out"]
    counters["answers_read"] = len(kept)
    return Elected(tuple(documents), producers, dict(sorted(counters.items())))
