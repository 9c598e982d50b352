"""What judges have in common: cases and candidates in, scores and a verbatim record out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lmfuse.artefacts import content_key
from lmfuse.types import Document, Segment

VERSION = 1  # part of every judge's key: raise it when the same inputs would give other scores


@dataclass(frozen=True)
class Case:
    """A question that all sources answered, and what is known of the right answer.

    Attributes:
        id: its identity in files.
        prompt: the conversation up to the answer; a user's turn stands last.
        truth: the right answer, for ``verifier``; ``""`` where it is not known.
        tests: Python source of assertions about the answer's code, for ``unit_tests``; ``""`` where there are none.
    """

    id: str
    prompt: tuple[Segment, ...]
    truth: str = ""
    tests: str = ""

    @property
    def question(self) -> str:
        r"""Return the prompt as one text: what the user asks, or of a longer conversation every turn with its role.

        >>> Case("a", (Segment("Hi", "user"),)).question, Case("b", (Segment("Be brief.", "system"), Segment("Hi", "user"))).question
        ('Hi', 'system: Be brief.\n\nuser: Hi')
        """
        if len(self.prompt) == 1:
            return self.prompt[0].text
        return "\n\n".join(f"{segment.role}: {segment.text}" for segment in self.prompt)

    def answered(self, text: str) -> Document:
        """Return the conversation with an answer, of which alone the bytes count."""
        said = tuple(Segment(segment.text, segment.role, trained=False) for segment in self.prompt)
        return Document((*said, Segment(text, "assistant")))


@dataclass(frozen=True)
class Opinion:
    """What a judge makes of one answer.

    Attributes:
        score: higher is better; ``nan`` where it abstains.
        exchanges: what it was given and what it said, verbatim, in order.
        problem: in a word why it abstains, or why it gave the lowest score unseen; counted.
        counters: what else happened, by name.
        passing: whether it abstains for a reason that may be gone tomorrow; a journal does not keep that.
    """

    score: float
    exchanges: tuple[tuple[str, str], ...] = ()
    problem: str = ""
    counters: Mapping[str, int] = field(default_factory=dict)
    passing: bool = False

    def plain(self) -> dict[str, Any]:
        """Return it as JSON types; an abstention's score is null."""
        score = None if math.isnan(self.score) else self.score
        return {
            "score": score,
            "problem": self.problem,
            "counters": dict(self.counters),
            "exchanges": [list(each) for each in self.exchanges],
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Opinion:
        """Return what ``plain`` made JSON of."""
        score = math.nan if plain["score"] is None else float(plain["score"])
        return cls(score, tuple((given, said) for given, said in plain["exchanges"]), plain["problem"], plain["counters"])


class Scorer(ABC):
    """One model, program or service that scores answers; it is loaded with the first question and gone after ``close``.

    Attributes:
        label: what files and reports call it.
    """

    label: str

    @property
    @abstractmethod
    def key(self) -> str:
        """Return 32 hex digits that change with whatever can change a score; found without loading weights."""

    @abstractmethod
    def opinions(self, cases: Sequence[Case], texts: Sequence[Sequence[str]]) -> list[list[Opinion]]:
        """Return an opinion of each of a case's answers, which are all different and not empty.

        Raises:
            LmfuseError: the scorer cannot be loaded, or is set up wrongly.
        """

    def close(self) -> None:  # noqa: B027  (whoever holds nothing has nothing to do)
        """Give back what it holds."""


@dataclass(frozen=True)
class Judgement:
    """Scores of all answers, higher is better, ``nan`` where the judge abstains; opinions by scorer and case of the ``distinct`` texts."""

    scores: Float[np.ndarray, "S N"]
    opinions: Sequence[Sequence[Sequence[Opinion]]]
    counters: Mapping[str, int]


class Judge:
    """A judge of answers, made of one scorer or of several whose scores it combines."""

    def __init__(self, label: str, parts: Sequence[Scorer]) -> None:
        self.label, self.parts = label, tuple(parts)

    @property
    def key(self) -> str:
        """Return 32 hex digits that change with whatever can change a score."""
        return content_key([part.key for part in self.parts])

    def combine(self, scores: Float[np.ndarray, "P S N"], empty: Bool[np.ndarray, "S N"]) -> Float[np.ndarray, "S N"]:
        """Return one score for each answer from those of P parts; ``empty`` [S N] says which answers nobody was asked about."""
        assert len(scores) == 1
        return scores[0]

    def score(self, cases: Sequence[Case], candidates: Sequence[Sequence[str]]) -> Judgement:
        """Judge S answers to each of N questions.

        Args:
            cases: the questions.
            candidates: for each question the answer of every source; an empty one is not judged (``nan``), the same one only once.

        Raises:
            ValueError: not as many lists of answers as questions, or not as many answers to each.
            LmfuseError: see ``Scorer.opinions``.
        """
        found = []
        for part in self.parts:
            try:
                found.append(part.opinions(cases, [distinct(texts) for texts in candidates]))
            finally:
                part.close()
        return self.judgement(candidates, found)

    def judgement(self, candidates: Sequence[Sequence[str]], opinions: Sequence[Sequence[Sequence[Opinion]]]) -> Judgement:
        """Return the scores that the parts' opinions amount to."""
        spread = np.stack([spread_scores(candidates, found) for found in opinions])
        empty = np.array([[not text.strip() for text in texts] for texts in candidates], bool).T
        counters: Counter[str] = Counter()
        for opinion in (opinion for found in opinions for each in found for opinion in each):
            counters.update(opinion.counters)
            counters.update([opinion.problem] if opinion.problem else [])
        return Judgement(self.combine(spread, empty), opinions, dict(sorted(counters.items())))


def distinct(texts: Sequence[str]) -> list[str]:
    """Return the answers to judge: each text once, those without any left out.

    >>> distinct(["a", " ", "b", "a"])
    ['a', 'b']
    """
    return [text for text in dict.fromkeys(texts) if text.strip()]


def spread_scores(candidates: Sequence[Sequence[str]], opinions: Sequence[Sequence[Opinion]]) -> Float[np.ndarray, "S N"]:
    """Return for each source's answer to each question the score of its text; ``nan`` for an empty one.

    Raises:
        ValueError: the numbers of questions or answers do not fit together.
    """
    if len(candidates) != len(opinions) or len({len(texts) for texts in candidates}) > 1:
        raise ValueError(f"judges: {len(candidates)} lists of answers for {len(opinions)} questions, each as long as the others")
    scores = np.full((len(candidates[0]) if candidates else 0, len(candidates)), np.nan)
    for place, (texts, found) in enumerate(zip(candidates, opinions, strict=True)):
        of = dict(zip(distinct(texts), (opinion.score for opinion in found), strict=True))
        scores[:, place] = [of.get(text, np.nan) for text in texts]
    return scores
