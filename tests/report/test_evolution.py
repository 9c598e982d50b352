"""The page of a search says what is true of it, escapes what came from outside, and says "no gain" where there is none."""

import copy

import pytest

from lmfuse.report.evolution import render
from lmfuse.report.page import headline, kind_of, verdict


def comparison(b, mean, low, high):
    return {"a": "evolved", "b": b, "domain": "macro", "mean": mean, "ci95": [low, high], "n": 40}


REPORT = {
    "schema": 1,
    "metric": "bits_per_byte",
    "domains": ["law"],
    "arms": {
        "evolved": {"law": 1.5, "macro": 1.5},
        "a": {"law": 2.0, "macro": 2.0}, "<b>": {"law": 1.75, "macro": 1.75}, "average": {"law": 1.25, "macro": 1.25}},
    "comparisons": [comparison("a", -0.5, -0.6, -0.4), comparison("<b>", -0.25, -0.55, 0.05), comparison("average", 0.25, 0.2, 0.3)],
    "sources": {},
    "counters": {"accepted": 2, "raised": 1, "stopped": 0},
    "run": {
        "kind": "evolution", "name": "tiny", "version": "0", "result": "evolved", "controls": ["average", "<b>"], "is_parent": "",
        "sources": [{"name": name, "architecture": "Llama", "parameters": 7, "licence": ""} for name in ("a", "<b>")], "base": None,
        "units": {"evolve": 80, "select": 40, "report": 40}, "settings": {"method": {"name": "de_rand_1"}, "genes": "scalar", "express": None, "seed": 1},
        "evaluations": 4, "children": 2, "ended": "generations", "messages": {"raised": "<script>alert(1)</script>"},
        "scores": {"evolved": [-1.0, -1.0, -1.5], "a": [-2.0, None, -2.0], "<b>": [-1.5, None, -1.75], "average": [None, None, -1.25]},
        "steps": [[0, 0, -1.4, "accepted", -1.4], [0, 1, None, "raised", -1.5], [1, 0, -1.6, "not_better", -1.4]],
        "tree": [{"genome": "k", "parent": None, "turn": 0, "generation": 0, "slot": 0, "score": -1.4, "of": ["p", "q"]},
                 {"genome": "p", "parent": "a", "of": []}, {"genome": "q", "parent": "<b>", "of": []}],
        "genes": {"groups": ["all"], "parents": ["a", "<b>"], "values": [[0.75, 0.25]]},
    },
}  # fmt: skip


def test_the_page_says_what_was_found():
    page = render(REPORT)
    for line in headline(REPORT):
        assert line["text"].replace("<", "&lt;").replace(">", "&gt;") in page
    assert "evolved is worse than average" in page
    assert "no gain of evolved over &lt;b&gt; can be told from chance" in page
    assert '<td class="best">1.2500</td>' in page
    assert "0.750" in page
    assert page.count("<svg") == 4  # generations, arms, intervals, family
    assert "stopped" not in page  # zeros are left out


def test_what_came_from_outside_is_escaped():
    page = render(REPORT)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>" not in page


def test_a_parent_that_won_is_no_gain():
    report = copy.deepcopy(REPORT)
    report["run"]["is_parent"] = "a"
    assert "no gain: the winner is the parent a as it was; no child was better" in render(report)
    assert "no gain: the winner" not in render(REPORT)


def test_coefficients_are_a_map():
    report = copy.deepcopy(REPORT)
    report["run"]["genes"] = {"groups": ["model.layers.0", "model.layers.1"], "parents": ["a", "<b>"], "values": [[0.5, 0.5], [1.0, 0.0]]}
    report["run"]["tree"] = report["run"]["tree"][:1]
    page = render(report)
    assert page.count("<svg") == 4  # genes in place of the family
    assert "model.layers.1" in page


@pytest.mark.parametrize(("metric", "more"), [("bits_per_byte", "worse"), ("accuracy", "better"), ("score", "better")])
def test_more_is_better_where_it_is(metric, more):
    found = comparison("a", 0.1, 0.05, 0.2)
    assert kind_of(found, metric) == more
    assert f"evolved is {more} than a: +0.1000" in verdict(found, metric)
    assert kind_of(found | {"ci95": [-0.1, 0.2]}, metric) == kind_of(found | {"ci95": [0.0, 0.0]}, metric) == "even"
    report = copy.deepcopy(REPORT) | {"metric": metric}
    best = "1.2500" if metric == "bits_per_byte" else "2.0000"
    assert f'<td class="best">{best}</td>' in render(report)
