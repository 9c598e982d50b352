from lmfuse.answer_stages import Election
from lmfuse.asking import Reply
from lmfuse.judges.protocol import Case
from lmfuse.modes import compare_modes
from lmfuse.types import Segment

NAMES = ("q1", "q2", "q3", "q4")


def test_win_rates_agreement_and_lengths_by_hand():
    cases = [Case(name, (Segment("?", "user", False),)) for name in NAMES]
    a = dict(zip(NAMES, [Reply("four", True, 2), Reply("é", True, 1), Reply("", True, 1), Reply("", False, 0, "too long")], strict=True))
    b = dict(zip(NAMES, [Reply("xx", True, 2), Reply("yyyy", False, 9), Reply("zz", True, 1), Reply("zz", True, 1)], strict=True))
    summary = {
        "judges": ["v"], "equal_winners": [[None]], "kendall_tau": [[None]], "questions_of_both": [[0]],
        "counters": {"by_score": 2, "by_index": 1, "all_judges_differ": 0, "won": 3},
    }  # fmt: skip
    scores = {"v": {"q1": [1.0, 0.0], "q2": [0.0, 0.0], "q3": [None, 1.0], "q4": [None, None]}}
    election = Election(("a", "b"), {"q1": ("a", "four"), "q2": ("a", "é"), "q3": ("b", "zz")}, summary, scores, {"a": a, "b": b})
    found = compare_modes(cases, {"q1": "a", "q2": "b", "q4": "b"}, election, dict.fromkeys(NAMES, "123456"))
    assert found["by_source"]["a"] == {
        "win_rate_truth": 1 / 3, "win_rate_answers": 2 / 3, "answers": 3, "cut": 0, "empty": 1, "left_out": 1, "mean_bytes": 3.0,
        "mean_scores": {"v": 0.5},
    }  # fmt: skip
    assert found["by_source"]["b"]["win_rate_truth"] == 2 / 3
    assert (found["by_source"]["b"]["cut"], found["by_source"]["b"]["mean_bytes"]) == (1, 2.5)
    assert found["by_source"]["b"]["mean_scores"] == {"v": 1 / 3}
    assert found["winners"] == [[1, 0], [1, 0]]
    assert (found["same_winner"], found["questions"]) == (0.5, 4)
    assert (found["truth_mean_bytes"], found["elected_mean_bytes"]) == (6.0, 8 / 3)
    assert found["decided_by"] == {"score": 2, "index": 1}
    assert found["judges"]["all_differ"] == 0


def test_where_nobody_wins_there_are_no_shares():
    summary = {"judges": [], "equal_winners": [], "kendall_tau": [], "questions_of_both": [], "counters": {"all_judges_differ": 0}}
    cases = [Case("q1", (Segment("?", "user", False),))]
    found = compare_modes(cases, {}, Election(("a",), {}, summary, {}, {"a": {"q1": Reply("", True, 1)}}), {"q1": ""})
    assert (found["same_winner"], found["elected_mean_bytes"], found["by_source"]["a"]["win_rate_answers"]) == (None, None, None)
