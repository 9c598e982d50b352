"""Several judges and their vote: resumable, counted, and right where a judge is right by construction."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydantic
import pytest

from lmfuse.errors import BusyError, InputError
from lmfuse.judges import panel as module
from lmfuse.judges.agreement import agreement
from lmfuse.judges.family import Surroundings
from lmfuse.judges.panel import Panel, judge_answers
from lmfuse.judges.protocol import Judge
from lmfuse.judges.settings import Likelihood, PairRanker, RewardModel, Verifier
from lmfuse.locks import lock
from lmfuse.models import ModelSpec
from lmfuse.vote.first_places import FirstPlaces
from lmfuse.vote.mean_z import MeanZ
from lmfuse.vote.single import Single
from tests.judges.build import Scripted, bert_folder, case, chat_folder, reward_folder
from tests.vote.build import NAN, ballots

SOURCES = {name: ModelSpec(f"/none/{name}") for name in ("a", "b", "c")}
CASES = [case(f"q{i}", f"What is {i} + {i}?", truth=f"#### {2 * i}") for i in range(7)]
RIGHT = [i % 3 for i in range(7)]  # the source that is right
CANDIDATES = [[f"It is {2 * i + (s != RIGHT[i]) * (s + 1)}." for s in range(3)] for i in range(7)]


def around(tmp_path: Path, sources=SOURCES) -> Surroundings:
    return Surroundings(sources, "cpu", tmp_path / "cache")


def scripted(monkeypatch, **judges) -> dict[str, Scripted]:
    """Let the judges of a panel be functions of a case and a text; the panel's settings only give their labels."""
    scorers = {label: Scripted(label, say) for label, say in judges.items()}
    monkeypatch.setattr(module, "make_judge", lambda settings, _: Judge(settings.label, [scorers[settings.label]]))
    return scorers


def of(*labels: str, **more) -> Panel:
    return Panel(tuple(Verifier(label=label) for label in labels), **({"batch_questions": 3} | more))


def test_a_verifier_that_is_right_selects_the_right_answers(tmp_path):
    found = judge_answers(Panel((Verifier(),)), CASES, CANDIDATES, around(tmp_path), tmp_path / "out")
    assert found.winners.tolist() == RIGHT
    assert found.win_rates == pytest.approx(np.array([3, 2, 2]) / 7)
    assert found.counters == {
        "abstentions": 0, "all_judges_differ": 0, "by_first_places": 7, "candidates_empty": 0, "candidates_identical": 0, "judges_silent": 0,
        "questions": 7, "verifier.nan": 0, "won": 7,
    }  # fmt: skip
    votes = [json.loads(line) for line in (tmp_path / "out" / "votes.jsonl").read_text().splitlines()]
    assert votes[1] == {"id": "q1", "winner": "b", "why": "first_places", "scores": {"verifier": [0.0, 1.0, 0.0]}}
    assert json.loads((tmp_path / "out" / "panel.json").read_text())["win_rates"] == pytest.approx([3 / 7, 2 / 7, 2 / 7])


def test_everything_that_a_judge_heard_and_said_is_kept(tmp_path):
    judge_answers(Panel((Verifier(),), batch_questions=3), CASES, CANDIDATES, around(tmp_path), tmp_path / "out")
    header, *batches = (tmp_path / "out" / "verifier" / "0-verifier.jsonl").read_text().splitlines()
    assert list(json.loads(header)) == ["key"]
    kept = [each for line in batches for each in json.loads(line)["cases"]]
    assert [each["id"] for each in kept] == [each.id for each in CASES]
    assert [each["texts"] for each in kept] == CANDIDATES
    assert kept[1]["opinions"][1] == {
        "score": 1.0,
        "problem": "",
        "counters": {},
        "exchanges": [["truth: #### 2\nanswer: It is 2.", "right"]],
    }


def test_nan_empty_identical_and_disagreeing_are_defined_and_counted(tmp_path, monkeypatch):
    table = {"x": [1, 2, 3], "y": [3, 1, 2], "z": [2, 3, 1]}

    def judge(name):
        def say(asked, text):
            return NAN if asked.id == "nan" else float(table[name]["abc".index(text[0])])

        return say

    scorers = scripted(monkeypatch, x=judge("x"), y=judge("y"), z=judge("z"))
    cases = [case(name) for name in ("differ", "nan", "empty", "same", "one")]
    candidates = [["a", "b", "c"], ["a", "b", "c"], ["", " ", "\n"], ["a", "a", "a "], ["", "b", ""]]
    cost = np.array([[3.0, 1, 1, 3, 1], [2, 1, 1, 2, 1], [1, 1, 1, 1, 1]])
    found = judge_answers(of("x", "y", "z"), cases, candidates, around(tmp_path), tmp_path / "out", cross_entropy=cost)
    assert found.winners.tolist() == [2, -1, -1, 2, 1]
    assert [outcome.why for outcome in found.outcomes] == ["cross_entropy", "no_judge", "all_empty", "only_candidate", "only_candidate"]
    assert {name: found.counters[name] for name in ("dropped", "won", "candidates_empty", "candidates_identical", "abstentions", "all_judges_differ")} == {
        "dropped": 2, "won": 3, "candidates_empty": 5, "candidates_identical": 2, "abstentions": 9, "all_judges_differ": 1,
    }  # fmt: skip
    assert found.counters["x.nan"] == 3 + 3 + 2
    assert [scorer.closed for scorer in scorers.values()] == [1, 1, 1]


def test_the_vote_is_that_of_the_panel(tmp_path, monkeypatch):
    scripted(monkeypatch, x=lambda _, text: {"a": 2.0, "b": 1.0, "c": 0.0}[text], y=lambda _, text: {"a": 0.0, "b": 9.0, "c": 1.0}[text])
    for number, (vote, winner) in enumerate([(FirstPlaces(), 1), (MeanZ(), 1), (Single(judge="x"), 0), (Single(judge="y"), 1)]):
        found = judge_answers(of("x", "y", vote=vote), [case("q")], [["a", "b", "c"]], around(tmp_path), tmp_path / str(number))
        assert found.winners.tolist() == [winner]


def test_an_interrupted_panel_goes_on_where_it_stopped(tmp_path, monkeypatch):
    def dies(asked, text):
        if asked.id == "q4":
            raise KeyboardInterrupt
        return float(len(text))

    whole = judge_answers(of("verifier", "other"), CASES, CANDIDATES, around(tmp_path), tmp_path / "whole")
    scripted(monkeypatch, x=lambda _, text: float(len(text)), y=dies)
    with pytest.raises(KeyboardInterrupt):
        judge_answers(of("x", "y"), CASES, CANDIDATES, around(tmp_path), tmp_path / "out")
    with open(tmp_path / "out" / "y" / "0-y.jsonl", "a") as file:
        file.write('{"batch": "ab')  # as a kill in the middle of a line leaves it
    scorers = scripted(monkeypatch, x=lambda _, text: pytest.fail("asked again"), y=lambda _, text: float(len(text)))
    judge_answers(of("x", "y"), CASES, CANDIDATES, around(tmp_path), tmp_path / "out")
    assert scorers["y"].asked == [["q3", "q4", "q5"], ["q6"]]
    scripted(monkeypatch, x=lambda _, text: float(len(text)), y=lambda _, text: float(len(text)))
    judge_answers(of("x", "y"), CASES, CANDIDATES, around(tmp_path), tmp_path / "straight")
    for name in ("x/0-x.jsonl", "y/0-y.jsonl", "votes.jsonl", "panel.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert whole.judges == ("verifier", "other")


def test_what_failed_in_passing_is_asked_again(tmp_path, monkeypatch):
    class Flaky(Scripted):
        down = True

        def opinions(self, cases, texts):
            found = super().opinions(cases, texts)
            down = self.down and cases[0].id == "q3"
            return [[replace(each, score=NAN, problem="unreachable", passing=True) for each in some] for some in found] if down else found

    scorer = Flaky("x", lambda _, text: float(len(text)))
    monkeypatch.setattr(module, "make_judge", lambda settings, _: Judge("x", [scorer]))
    first = judge_answers(of("x"), CASES, CANDIDATES, around(tmp_path), tmp_path / "out")
    assert (first.counters["x.unreachable"], first.counters["x.nan"]) == (9, 9)
    scorer.down, scorer.asked = False, []
    second = judge_answers(of("x"), CASES, CANDIDATES, around(tmp_path), tmp_path / "out")
    assert scorer.asked == [["q3", "q4", "q5"]]
    assert second.counters["x.nan"] == 0


def test_after_kill_9_no_batch_is_judged_twice(tmp_path):
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from pathlib import Path
from lmfuse.judges import panel as module
from lmfuse.judges.protocol import Judge
from tests.judges.build import Scripted
from tests.judges.test_panel import CASES, CANDIDATES, around, of
def say(asked, text):
    if asked.id == "q4": print("here", flush=True); time.sleep(60)
    return float(len(text))
module.make_judge = lambda settings, _: Judge(settings.label, [Scripted(settings.label, say)])
module.judge_answers(of("x"), CASES, CANDIDATES, around(Path({str(tmp_path)!r})), Path({str(tmp_path / "out")!r}))
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    asked: list[str] = []

    def say(each, text):
        asked.append(each.id)
        return float(len(text))

    with pytest.MonkeyPatch.context() as patch:
        scripted(patch, x=say)
        judge_answers(of("x"), CASES, CANDIDATES, around(tmp_path), tmp_path / "out")
    assert sorted(set(asked)) == ["q3", "q4", "q5", "q6"]


def test_a_journal_of_another_judge_is_neither_used_nor_lost(tmp_path):
    judge_answers(Panel((Verifier(),)), CASES, CANDIDATES, around(tmp_path), tmp_path / "out")
    kept = (tmp_path / "out" / "verifier" / "0-verifier.jsonl").read_bytes()
    with pytest.raises(InputError, match="opinions of another judge or of other settings"):
        judge_answers(Panel((Verifier(tolerance=1.0),)), CASES, CANDIDATES, around(tmp_path), tmp_path / "out")
    assert (tmp_path / "out" / "verifier" / "0-verifier.jsonl").read_bytes() == kept
    changed = [replace(CASES[0], truth="#### 1"), *CASES[1:]]  # the judge is the same: only what changed is asked again
    judge_answers(Panel((Verifier(),), batch_questions=1), changed, CANDIDATES, around(tmp_path), tmp_path / "out")


def test_real_judges_one_after_the_other_and_none_of_them_twice(tmp_path, monkeypatch):
    sources = {
        name: ModelSpec(str(chat_folder(tmp_path / name, seed=i)), dtype="float32", chat_template="own", name=name)
        for i, name in enumerate("abc")
    }
    reward, bert = reward_folder(tmp_path / "reward"), bert_folder(tmp_path / "bert", context=128)
    judges = (
        RewardModel(str(reward), dtype="float32"),
        PairRanker(str(bert), dtype="float32"),
        Likelihood(),
        Likelihood(author="left_out", label="others"),
        Verifier(),
    )
    panel, seen = Panel(judges, batch_questions=4), []
    found = judge_answers(
        panel, CASES, CANDIDATES, around(tmp_path, sources), tmp_path / "out", progress=lambda label, n: seen.append((label, n))
    )
    assert found.scores.shape == (5, 3, 7)
    assert np.isfinite(found.scores).all()
    assert (found.winners >= 0).all()
    assert seen[:2] == [("reward", 4), ("reward", 3)]
    assert [label for label, n in seen if n == 3] == ["reward", "bert", "a", "b", "c", "a", "b", "c", "verifier"]
    from lmfuse.judges import likelihood, reward_model

    monkeypatch.setattr(likelihood, "load_model", lambda *_: pytest.fail("loaded again"))
    monkeypatch.setattr(reward_model, "Classifier", lambda *_: pytest.fail("loaded again"))
    again = judge_answers(panel, CASES, CANDIDATES, around(tmp_path, sources), tmp_path / "out")
    assert np.array_equal(again.scores, found.scores)
    assert found.agreement.equal_winners.diagonal().tolist() == [1.0] * 5


def test_by_hand_agreement():
    votes = [ballots([[3, 2, 1], [3, 1, 2], [1, 2, 3]]), ballots([[1, 2, 3], [NAN, 2, 3], [5, 5, 5]]), ballots([[1, 2], [2, 1], [0, 0]])]
    found = agreement(votes)
    assert found.questions.tolist() == [[3, 3, 1], [3, 3, 1], [1, 1, 1]]
    assert found.equal_winners[0, 1] == pytest.approx(2 / 3)
    assert found.kendall_tau[0, 1] == pytest.approx(((2 - 1) + 1 - 1) / 5)  # 3 pairs, 1 that both know, 1
    assert found.kendall_tau[0, 2] == -1
    assert found.all_differ == 1
    nothing = agreement([ballots([[1, 1], [2, 2]])])
    assert np.isnan(nothing.equal_winners).all()
    assert nothing.all_differ == 0


def test_oracle_agreement_is_kendalls_tau_where_nothing_is_tied():
    stats = pytest.importorskip("scipy.stats")
    rows = np.random.default_rng(0).normal(size=(3, 8))
    found = agreement([ballots(rows)])
    for a in range(3):
        for b in range(3):
            assert found.kendall_tau[a, b] == pytest.approx(stats.kendalltau(rows[a], rows[b]).statistic)


@pytest.mark.parametrize(
    ("cases", "candidates", "message"),
    [
        (CASES[:1], [["a", "b"]], "question q0 has 2 answers of 3 sources"),
        (CASES[:2], [["a", "b", "c"]], "1 lists of answers for 2 questions"),
        ([], [], "0 lists of answers for 0 questions"),
        ([CASES[0], CASES[0]], [["a", "b", "c"]] * 2, "the question 'q0' stands twice"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, cases, candidates, message):
    with pytest.raises(InputError, match=message):
        judge_answers(Panel((Verifier(),)), cases, candidates, around(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_panels_do_not_write_one_folder(tmp_path):
    with lock(tmp_path / "out"), pytest.raises(BusyError):
        judge_answers(Panel((Verifier(),)), CASES, CANDIDATES, around(tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judges": ()}, "at least 1 item"),
        ({"judges": (Verifier(), Verifier(check="exact"))}, "verifier stands twice"),
        ({"judges": (Verifier(),), "vote": {"name": "single", "judge": "verifer"}}, "did you mean 'verifier'"),
        ({"judges": ({"name": "verifyer"},)}, "verifyer"),
        ({"judges": ({"name": "unit_tests", "limits": {"wall_seconds": 0}},)}, "greater than 0"),
    ],
)
def test_panels_that_are_none_are_refused(settings, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        Panel(**settings)


def test_a_panel_as_a_recipe_writes_it():
    told = {
        "judges": [{"name": "reward_model", "model": "org/rm"}, {"name": "verifier"}, {"name": "unit_tests", "limits": {"cpu_seconds": 3}}],
        "vote": {"name": "mean_rank"},
    }
    panel = pydantic.TypeAdapter(Panel).validate_python(told)
    assert [type(judge).__name__ for judge in panel.judges] == ["RewardModel", "Verifier", "UnitTests"]
    assert (panel.vote.name, panel.judges[2].limits.cpu_seconds) == ("mean_rank", 3)
    assert pydantic.TypeAdapter(Panel).validate_json(pydantic.TypeAdapter(Panel).dump_json(panel)) == panel
