"""Programmatic verifiers: numbers, letters, texts, patterns."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmfuse.judges.settings import Verifier
from lmfuse.judges.verifier import VerifierScorer, choice_letter, final_number, same_number
from tests.judges.build import case


def verdicts(truth: str, *answers: str, **settings) -> list[float]:
    return [opinion.score for opinion in VerifierScorer(Verifier(**settings)).opinions([case(truth=truth)], [answers])[0]]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5 + 3 = 8. #### 8", "8"), ("The total is $1,234,567.89.", "123456789/100"), ("-5", "-5"), ("−5 degrees", "-5"), ("minus $-3", "-3"),
        ("it fell by -$2.50!", "-5/2"), ("10-7", "7"), ("(10)-7", "7"), ("x=-7", "-7"), ("3/4", "3/4"), ("1 1/2", "3/2"), ("\\frac{3}{4}", "3/4"),
        ("-\\dfrac{1}{2}", "-1/2"),
        ("$\\boxed{42}$", "42"), (".5", "1/2"), ("0.50", "1/2"), ("€20", "20"), ("£1,000", "1000"), ("1,2,3", "3"), ("12,345,67", "67"),
        ("1e3", "1000"), ("2.5E-1", "1/4"),
        ("**7**", "7"), ("18 dollars", "18"), ("5.", "5"), ("7 eggs, 8 hens", "8"), ("A1", "1"), ("50%", "50"), ("50 \\%", "50"), ("3:30", "30"),
    ],
)  # fmt: skip
def test_by_hand_the_last_number(text, number):
    found = final_number(text)
    assert found is not None
    assert str(found[0]) == number


@pytest.mark.parametrize("text", ["", "none", "#### ", "1/0", "\\frac{1}{0}", "9" * 400, "$"])
def test_no_number(text):
    assert final_number(text) is None
    assert not same_number(text, "#### 1")


@given(st.integers(-(10**12), 10**12))
def test_every_way_to_write_a_number_is_the_same_number(number):
    for text in (
        f"{number}",
        f"{number:,}",
        f"{number:,}.00",
        f"so ${number:,}",
        f"**{number}**.",
        f"It is {number} apples.",
        f"#### {number}\n",
    ):
        assert same_number(text, f"some work 3 + 4\n#### {number}"), text
    assert not same_number(f"{number + 1}", f"#### {number}")


@given(st.fractions(min_value=0, max_denominator=1000))
def test_fractions_are_exact(value):
    assert final_number(f"it is {value.numerator}/{value.denominator}") == (value, False)
    assert final_number(f"\\frac{{{value.numerator}}}{{{value.denominator}}}") == (value, False)


def test_only_the_last_number_behind_the_marks_of_the_truth_counts():
    assert verdicts("He has 3 left of 10.\n#### 7", "so 7", "7 of 10", "", "no") == [1.0, 0.0, 0.0, 0.0]
    assert verdicts("it is 7", "7") == [1.0]


def test_percent_and_tolerance():
    assert verdicts("#### 50%", "50", "0.5", "50%", "5000%", "0.005") == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert verdicts("0.5", "50%", "50") == [1.0, 0.0]
    assert verdicts("#### 0.333", "1/3", tolerance=0.001) == [1.0]
    assert verdicts("#### 0.333", "1/3") == [0.0]
    assert Fraction(1, 3) != Fraction("0.333")


def test_numbers_without_end_take_no_time():
    begun = time.monotonic()
    for text in (
        "1" * 200_000,
        "1," * 100_000,
        "1,111" * 50_000,
        "1 " * 100_000,
        "1/" * 100_000,
        "$-" * 100_000,
        "1e999",
        "\\frac{" * 50_000,
    ):
        final_number(text)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("(C)", "C"), ("The answer is (D).", "D"), ("Answer: A", "A"), ("answer is: **B**", "B"), ("(A) is wrong. I choose (C)", "C"),
        ("The correct option is B, not C", "B"),
        ("A) cats B) dogs; so B)", "B"), ("\\boxed{E}", "E"), ("A dog and I", ""), ("", ""), ("F", ""), ("The answer is A. The answer is C.", "C"),
        ("Answer: Because", ""), ("it's b", ""),
    ],
)  # fmt: skip
def test_by_hand_the_letter(text, letter):
    assert choice_letter(text) == letter


@pytest.mark.parametrize(
    "text", ["answer" + " " * 40_000 + "x", "answer" + " :*" * 20_000, "answer " * 20_000, "." * 40_000 + "A" + "." * 40_000 + "x"]
)
def test_letters_take_no_time(text):
    begun = time.monotonic()
    choice_letter(text)
    assert time.monotonic() - begun < 2


def test_patterns_are_not_tried_on_texts_without_end():
    [[opinion]] = VerifierScorer(Verifier(check="regex", pattern="x")).opinions([case(truth="x")], [["x" * 100_001]])
    assert (math.isnan(opinion.score), opinion.problem) == (True, "too_long")
    assert verdicts("x", "x" * 100_000, check="regex", pattern="x") == [1.0]


def test_letters_against_the_truth():
    assert verdicts("B", "(B)", "the answer is C", "", check="choice_letter") == [1.0, 0.0, 0.0]
    assert verdicts("(F)", "F", check="choice_letter", letters="ABCDEF") == [1.0]
    assert math.isnan(verdicts("F", "F", check="choice_letter")[0])


def test_texts_and_patterns():
    assert verdicts("Anna  Karenina", "anna karenina\n", "Anna Karenina!", check="exact") == [1.0, 0.0]
    assert verdicts("Anna", "anna", check="exact", ignore_case=False) == [0.0]
    assert verdicts("Paris", "It is paris, France.", "It is Pa ris.", check="contains") == [1.0, 0.0]
    assert verdicts("42", "<answer>41</answer> <answer> 42 </answer>", "42", check="regex", pattern="<answer>(.*?)</answer>") == [1.0, 0.0]
    assert verdicts("b2", "a1 B2", "B2 a1", check="regex", pattern=r"[a-z]\d") == [1.0, 0.0]
    assert verdicts("x", "ab", check="regex", pattern="a(x)?b") == [0.0]


@pytest.mark.parametrize("check", ["final_number", "choice_letter", "exact", "contains"])
def test_without_a_truth_it_abstains(check):
    [[opinion]] = VerifierScorer(Verifier(check=check)).opinions([case(truth=" ")], [["7"]])
    assert (math.isnan(opinion.score), opinion.problem) == (True, "no_truth")
    if check in ("final_number", "choice_letter"):
        [[opinion]] = VerifierScorer(Verifier(check=check)).opinions([case(truth="none")], [["7"]])
        assert opinion.problem == "unfit_truth"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
     ({"check": "regex"}, "pattern: is what check: regex needs"), ({"pattern": "a"}, "pattern: is what"),
     ({"check": "regex", "pattern": "("}, "pattern: missing"),
     ({"tolerance": -1}, "greater than or equal to 0"),
     ({"letters": "abc"}, "should match pattern"), ({"check": "best"}, "Input should be"),
     ({"label": "../x"}, "names a file"), ({"label": ".."}, "names a file")],
)  # fmt: skip
def test_settings_that_are_none_are_refused(settings, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        Verifier(**settings)


def test_the_key_is_that_of_the_settings():
    keys = {
        VerifierScorer(Verifier(**settings)).key
        for settings in ({}, {"check": "exact"}, {"tolerance": 0.1}, {"letters": "AB"}, {"ignore_case": False}, {"label": "x"})
    }
    assert len(keys) == 5
