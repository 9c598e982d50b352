"""What all judges have in common: each text is judged once, empty ones never, and records survive the disk."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest

from lmfuse.errors import InputError
from lmfuse.judges.journal import Journal
from lmfuse.judges.protocol import Case, Judge, Opinion, distinct
from lmfuse.types import Segment
from tests.judges.build import Scripted, case

CASES = [case("a"), case("b")]


def test_each_text_is_judged_once_and_an_empty_one_never():
    heard: deque[str] = deque()
    judge = Judge("j", [Scripted("j", lambda _, text: heard.append(text) or float(len(text)))])
    found = judge.score(CASES, [["xx", "", "xx", " "], ["y", "yy", "yyy", "y"]])
    assert np.array_equal(found.scores, np.array([[2, np.nan, 2, np.nan], [1, 2, 3, 1]]).T, equal_nan=True)
    assert list(heard) == ["xx", "y", "yy", "yyy"]
    assert judge.parts[0].closed == 1


def test_what_judges_met_is_counted():
    class Meeting(Scripted):
        def opinions(self, cases, texts):
            return [[Opinion(math.nan, problem="too_long", counters={"tries": 2}) for _ in answers] for answers in texts]

    found = Judge("j", [Meeting("j", None)]).score(CASES, [["x", "y"], ["z", ""]])
    assert found.counters == {"too_long": 3, "tries": 6}
    assert np.isnan(found.scores).all()


def test_a_judge_goes_even_where_it_fails():
    scorer = Scripted("j", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Judge("j", [scorer]).score(CASES, [["x"], ["y"]])
    assert scorer.closed == 1


def test_what_does_not_fit_together_is_refused():
    judge = Judge("j", [Scripted("j", lambda *_: 1.0)])
    with pytest.raises(ValueError, match="each as long as the others"):
        judge.score(CASES, [["x", "y"], ["z"]])
    with pytest.raises(ValueError, match="zip"):
        judge.score(CASES, [["x"]])


def test_a_case_as_text_and_as_document():
    longer = Case("c", (Segment("Be brief.", "system"), Segment("Hi", "user"), Segment("Hello", "assistant"), Segment("Why?", "user")))
    assert longer.question == "system: Be brief.\n\nuser: Hi\n\nassistant: Hello\n\nuser: Why?"
    document = longer.answered("So.")
    assert document.trained_bytes == b"So.\xff"
    assert [segment.role for segment in document.segments] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    "opinion",
    [
        Opinion(0.1 + 0.2),
        Opinion(math.nan, problem="timeout"),
        Opinion(-1e-300, (("given\n\ud800", "said"), ("again", "")), counters={"n": 1}),
    ],
    ids=str,
)
def test_opinions_survive_a_journal(tmp_path, opinion):
    journal = Journal(tmp_path / "j.jsonl", "key")
    assert journal.find("b") is None
    journal.add("b", CASES[:1], [["x"]], [[opinion]])
    found = Journal(tmp_path / "j.jsonl", "key").find("b")
    assert found is not None
    assert (found[0][0].plain(), str(found[0][0].score)) == (opinion.plain(), str(opinion.score))


def test_a_journal_keeps_whole_lines_only(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path, "key").add("b", CASES[:1], [["x"]], [[Opinion(1.0)]])
    whole = path.read_bytes()
    for rest in (b'{"batch"', b'{"batch": "c", "cases": [{"id": "a"}]}\n', b"[1]\n", b"\xff\n"):
        path.write_bytes(whole + rest)
        assert Journal(path, "key").find("b") is not None
        assert path.read_bytes() == whole
    with pytest.raises(InputError, match="another judge"):
        Journal(path, "other")


def test_the_key_of_a_batch_is_everything_that_it_asks():
    keys = {
        Journal.batch_key([case("a")], [["x"]]), Journal.batch_key([case("b")], [["x"]]), Journal.batch_key([case("a", truth="1")], [["x"]]),
        Journal.batch_key([case("a", tests="1")], [["x"]]), Journal.batch_key([case("a", "Why?")], [["x"]]), Journal.batch_key([case("a")], [["x", "y"]]),
        Journal.batch_key([case("a")], [["xy"]]),
    }  # fmt: skip
    assert len(keys) == 7
    assert distinct(["", "b", "a", "b"]) == ["b", "a"]
