"""Answers compared with the known one by a program: numbers, letters, texts, patterns."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cached_property

from lmfuse.artefacts import content_key
from lmfuse.judges.protocol import VERSION, Case, Opinion, Scorer
from lmfuse.judges.settings import Verifier, label_of

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
NUMBER = re.compile(
    rf"(?P<sign>(?<![\w.)\]}}%])[-−–]\s?)?(?:[$€£¥]\s?(?P<sign2>-)?)?(?:"
    rf"\\[dt]?frac\{{(?P<tex_over>[0-9]+)\}}\{{(?P<tex_under>[0-9]+)\}}"
    rf"|(?P<whole>[0-9]+)[ ](?P<mixed_over>[0-9]+)/(?P<mixed_under>[0-9]+)(?![0-9/])"
    rf"|(?P<over>[0-9]+)/(?P<under>[0-9]+)(?![0-9/])"
    rf"|(?P<number>{_DIGITS})(?P<power>[eE][-+]?[0-9]{{1,3}}(?![0-9A-Za-z]))?)(?P<percent>\s?\\?%)?"
)
LONGEST_NUMBER = 300  # characters; what is longer is nobody's final answer
LONGEST_TEXT = 100_000  # characters that a pattern is tried on
GSM8K = "####"


def final_number(text: str) -> tuple[Fraction, bool] | None:
    r"""Return the last number of a text and whether it is a percentage; None where there is none.

    Thousands separated by commas, decimals, signs, fractions (``3/4``, ``1 1/2``, ``\frac{3}{4}``), currencies and powers of ten are read.

    >>> [str(final_number(text)[0]) for text in ("#### 1,234", "from 3 to -2.50.", "It is $1,000.5", "1 1/2 cups", "10-7=3 apples")]
    ['1234', '-5/2', '2001/2', '3/2', '3']
    """
    found = next(iter(deque(NUMBER.finditer(text), maxlen=1)), None)
    if found is None or len(found[0]) > LONGEST_NUMBER:
        return None
    try:
        if found["number"]:
            value = Fraction(found["number"].replace(",", "") + (found["power"] or ""))
        else:
            over, under = next((found[a], found[b]) for a, b in _FRACTIONS if found[a])
            value = int(found["whole"] or 0) + Fraction(int(over), int(under))
    except ZeroDivisionError:
        return None
    return -value if found["sign"] or found["sign2"] else value, bool(found["percent"])


_FRACTIONS = (("tex_over", "tex_under"), ("mixed_over", "mixed_under"), ("over", "under"))


def same_number(answer: str, truth: str, tolerance: float = 0.0) -> bool:
    """Return whether the last number of an answer is that of the truth, of which what follows the last ``####`` counts.

    A percent sign may stand on either side or not: ``50%`` is 50, and it is 0.5.

    >>> same_number("So she pays $18.00.", "9 * 2 = 18\\n#### 18"), same_number("18 of 20", "#### 18"), same_number("50%", "0.5")
    (True, False, True)
    """
    found, known = final_number(answer), final_number(truth.rsplit(GSM8K, 1)[-1])
    if found is None or known is None:
        return False
    (value, percent), (wanted, wanted_percent) = found, known
    values = {value, value / 100 if percent and not wanted_percent else value}
    wants = {wanted, wanted / 100 if wanted_percent and not percent else wanted}
    return any(abs(a - b) <= Fraction(tolerance) for a in values for b in wants)


def choice_letter(text: str, letters: str = "ABCDE") -> str:
    """Return the letter that a text chooses, ``""`` where it chooses none: the last one called the answer, else the last that stands alone.

    >>> choice_letter("(A) is wrong, so the answer is (C)."), choice_letter("B"), choice_letter("A dog."), choice_letter("I take D) dogs")
    ('C', 'B', '', 'D')
    """
    called = re.findall(rf"(?i:answer|option|choice)\W{{0,30}}(?i:is|would be)?[\s:*(\[{{$\"'`]{{0,30}}([{letters}])(?![\w'])", text)
    marked = re.findall(
        rf"\(([{letters}])\)|\[([{letters}])\]|\*\*([{letters}])\*\*|\\boxed\{{([{letters}])\}}|(?<!\w)([{letters}])[).:](?!\w)", text
    )
    alone = re.fullmatch(rf"\W*([{letters}])\W*", text)
    groups = ["".join(found) for found in marked]
    return next((found[-1] for found in (called, [alone[1]] if alone else [], groups) if found), "")


def squeezed(text: str, ignore_case: bool) -> str:
    """Return a text with every run of whitespace as one space, in lower case if case is ignored."""
    plain = " ".join(text.split())
    return plain.casefold() if ignore_case else plain


class VerifierScorer(Scorer):
    """The judge ``verifier``."""

    def __init__(self, settings: Verifier) -> None:
        self.settings, self.label = settings, label_of(settings)
        self._pattern = re.compile(settings.pattern, re.IGNORECASE if settings.ignore_case else 0)

    @cached_property
    def key(self) -> str:
        """Return a hash of its settings."""
        said = self.settings
        return content_key(["verifier", VERSION, said.check, said.pattern, said.ignore_case, said.tolerance, said.letters])

    def opinions(self, cases: Sequence[Case], texts: Sequence[Sequence[str]]) -> list[list[Opinion]]:
        """Return 1 for a right answer, 0 for a wrong one, ``nan`` where no truth is known, or none of the kind that is checked."""
        return [[self._opinion(case, text) for text in answers] for case, answers in zip(cases, texts, strict=True)]

    def _opinion(self, case: Case, text: str) -> Opinion:
        if not case.truth.strip():
            return Opinion(math.nan, problem="no_truth")
        if not self._has_truth(case.truth):
            return Opinion(math.nan, ((f"truth: {case.truth}", "nothing of this kind in the truth"),), "unfit_truth")
        if self.settings.check == "regex" and len(text) > LONGEST_TEXT:
            return Opinion(math.nan, ((f"truth: {case.truth}\nanswer: {text}", "longer than patterns are tried on"),), "too_long")
        right = self._checks[self.settings.check](text, case.truth)
        return Opinion(float(right), ((f"truth: {case.truth}\nanswer: {text}", "right" if right else "wrong"),))

    def _has_truth(self, truth: str) -> bool:
        if self.settings.check == "final_number":
            return final_number(truth.rsplit(GSM8K, 1)[-1]) is not None
        return self.settings.check != "choice_letter" or bool(choice_letter(truth, self.settings.letters))

    @cached_property
    def _checks(self) -> dict[str, Callable[[str, str], bool]]:
        said = self.settings

        def plain(text: str) -> str:
            return squeezed(text, said.ignore_case)

        def matches(text: str, truth: str) -> bool:
            found = list(self._pattern.finditer(text))
            return bool(found) and plain((found[-1][1] if self._pattern.groups else found[-1][0]) or "") == plain(truth)

        return {
            "final_number": lambda text, truth: same_number(text, truth, said.tolerance),
            "choice_letter": lambda text, truth: choice_letter(text, said.letters) == choice_letter(truth, said.letters),
            "exact": lambda text, truth: plain(text) == plain(truth),
            "contains": lambda text, truth: plain(truth) in plain(text),
            "regex": matches,
        }
