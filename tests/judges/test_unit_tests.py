"""Answers with code: right by construction scores 1, everything else 0, and what has no tests nothing."""

from __future__ import annotations

import json
import math

import pytest

from lmfuse.errors import InputError
from lmfuse.judges import unit_tests
from lmfuse.judges.sandbox import Ran, SandboxLimits
from lmfuse.judges.settings import UnitTests
from lmfuse.judges.system_calls import machine_is_known
from lmfuse.judges.unit_tests import UnitTestsScorer, code_of
from tests.judges.build import case

pytestmark = pytest.mark.skipif(not machine_is_known(), reason="no sandbox for this system")
QUESTION = case("add", "Write add(a, b).", tests="assert add(1, 2) == 3\nassert add('a', 'b') == 'ab'\n")
RIGHT = "Here you are:\n\n```python\ndef add(a, b):\n    return a + b\n```\nUse it like `add(1, 2)`."
LIMITS = SandboxLimits(wall_seconds=1.0, cpu_seconds=1)


def opinions(*answers, question=QUESTION, **settings):
    return UnitTestsScorer(UnitTests(limits=LIMITS, **settings)).opinions([question], [answers])[0]


def test_right_code_scores_1_and_everything_else_0():
    wrong = [
        "```python\ndef add(a, b:\n```",
        "```java\nint add;\n```",
        "```python\nwhile True: pass\n```",
        "```python\nimport time; time.sleep(9)\n```",
    ]
    answers = [RIGHT, "def add(a, b): return a + b", RIGHT.replace("+", "-"), "I cannot.", *wrong]
    found = opinions(*answers)
    assert [opinion.score for opinion in found] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert found[5].problem == "no_code"
    assert found[6].counters == {"runs_timeout": 1}
    assert found[7].counters == {"runs_timeout": 1}


def test_the_record_holds_program_tests_and_outcome():
    given, said = opinions(RIGHT.replace("+", "-"))[0].exchanges[0]
    assert json.loads(given) == {"answer.py": "def add(a, b):\n    return a - b\n", "tests.py": QUESTION.tests}
    assert (json.loads(said)["outcome"], json.loads(said)["detail"]) == ("failed", "tests.py, line 1: AssertionError")
    assert json.loads(said)["layers"]["seccomp"] is True


def test_several_at_once_answer_in_order():
    answers = [RIGHT, "x", RIGHT + " ", "y", RIGHT + "  "]
    assert [opinion.score for opinion in opinions(*answers, at_once=3)] == [1.0, 0.0, 1.0, 0.0, 1.0]


def test_without_tests_it_abstains_and_runs_nothing(monkeypatch):
    monkeypatch.setattr(unit_tests, "run_python", lambda *_: pytest.fail("it ran"))
    [opinion] = opinions(RIGHT, question=case("none"))
    assert (math.isnan(opinion.score), opinion.problem) == (True, "no_tests")
    assert UnitTestsScorer(UnitTests()).opinions([QUESTION], [[]]) == [[]]


def test_a_system_without_protection_stops_the_run(monkeypatch):
    def refuse(*_):
        raise InputError("unit_tests: this system cannot run a stranger's program safely: no namespaces")

    monkeypatch.setattr(unit_tests, "run_python", refuse)
    with pytest.raises(InputError, match="safely"):
        opinions(RIGHT)


@pytest.mark.parametrize(
    ("answer", "first", "last", "all_"),
    [
        ("x = 1", "x = 1", "x = 1", "x = 1"),
        ("```python\na\n```\n```\nb\n```\n```py\nc\n```", "a\n", "c\n", "a\n\nc\n"),
        ("```\na\n```\ntext\n```\nb\n```", "a\n", "b\n", "a\n\nb\n"),
        ("~~~Python title\na\n```\nb\n~~~", "a\n```\nb\n", "a\n```\nb\n", "a\n```\nb\n"),
        ("````python\n```\ninner\n```\n````", "```\ninner\n```\n", "```\ninner\n```\n", "```\ninner\n```\n"),
        ("```python\nunclosed", "unclosed", "unclosed", "unclosed"),
        ("```bash\nls\n```", "", "", ""),
        ("  ```python\n  a\n  ```", "  a\n", "  a\n", "  a\n"),
        ("", "", "", ""),
    ],
)
def test_by_hand_the_code_of_an_answer(answer, first, last, all_):
    assert [code_of(answer, which) for which in ("first", "last", "all")] == [first, last, all_]


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("def check(candidate):\n    assert candidate(1, 2) == 3", "check nothing"),
        ("import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(add(1, 2), 3)", "check nothing"),
        ("import unittest\nif __name__ == '__main__':\n    unittest.main()", "check nothing"),
        ("# nothing", "check nothing"),
        ("assert (", "are no Python"),
    ],
)
def test_tests_that_every_answer_would_pass_are_refused(tests, message, monkeypatch):
    monkeypatch.setattr(unit_tests, "run_python", lambda *_: pytest.fail("it ran"))
    with pytest.raises(InputError, match=f"question add {message}|question add .*{message}"):
        opinions(RIGHT, question=case("add", tests=tests))


@pytest.mark.parametrize(
    "tests",
    [
        "def check(f):\n    assert f(1, 2) == 3\ncheck(add)",
        "for a in range(3):\n    assert add(a, 1) == a + 1",
        "if add(1, 1) != 2: raise ValueError",
    ],
)
def test_tests_that_check_something_are_run(tests):
    assert [opinion.score for opinion in opinions(RIGHT, RIGHT.replace("+", "-"), question=case("add", tests=tests))] == [1.0, 0.0]


def test_a_folder_that_stays_is_counted(monkeypatch):
    monkeypatch.setattr(unit_tests, "run_python", lambda *_: Ran("passed", "", "", {}, folder_left=True))
    assert opinions(RIGHT)[0].counters == {"folders_left": 1}


def test_another_python_is_another_key(monkeypatch):
    before = UnitTestsScorer(UnitTests()).key
    monkeypatch.setattr(unit_tests.sys, "version", "3.99.0")
    assert UnitTestsScorer(UnitTests()).key != before


def test_the_key_is_that_of_settings_that_change_a_score():
    keys = {UnitTestsScorer(UnitTests(**given)).key for given in ({}, {"code": "last"}, {"limits": LIMITS}, {"at_once": 3}, {"label": "x"})}
    assert len(keys) == 3
