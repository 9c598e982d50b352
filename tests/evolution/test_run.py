"""Whole searches over tiny models: what they find, what kills cannot change, what is refused."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lmfuse.errors import BusyError, InputError, ModelError
from lmfuse.evolution.judge import Racing
from lmfuse.evolution.models import MemoryParents
from lmfuse.evolution.run import evolve
from lmfuse.evolution.settings import Acceptance, Budget, SearchSettings
from lmfuse.evolution.splits import Splits
from lmfuse.evolve.cma_es import CmaEs
from lmfuse.evolve.de_best_1 import DeBest1
from lmfuse.evolve.de_current_to_best_1 import DeCurrentToBest1
from lmfuse.evolve.de_rand_1 import DeRand1
from lmfuse.evolve.interpolation import Interpolation
from lmfuse.evolve.swarm import Swarm
from lmfuse.locks import lock
from lmfuse.merge.linear import Linear
from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.merge.ties import Ties
from tests.evolution import toys
from tests.evolution.toys import SETTINGS, SPLITS, Quadratic, calls, corners, tree

TARGET = (0.5, 0.25, 0.25)
METHODS = [Interpolation(), DeRand1(), DeBest1(), DeCurrentToBest1(), Swarm(), CmaEs()]


def by_label(outcome):
    return {arm.label: arm for arm in outcome.arms}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_quadratic_reaches_the_best_of_the_hull(method, tmp_path):
    """Its best place is a mean of the parents, with other weights than the uniform ones."""
    settings = SearchSettings(method=method, genes="layer", generations=20, size=6, seed=1, controls=("average",))
    outcome = evolve(settings, corners(), Quadratic(TARGET), SPLITS, tmp_path / "out")
    arms = by_label(outcome)
    start = max(arms[f"parent-{n}"].report for n in range(3))
    assert arms["evolved"].report > 0.1 * start  # both negative: at least 90% of the way to 0
    assert arms["evolved"].report > arms["average"].report
    assert arms["average"].ahead.low > 0
    written = load_file(outcome.path / "model.safetensors")
    assert written["norm.weight"].shape == (4,)


@pytest.mark.parametrize("method", [Interpolation(), DeBest1(), Swarm()], ids=lambda method: method.name)
def test_scalar_genes_reach_a_corner_that_no_parent_has(method, tmp_path):
    """Each number has its best value in one of the parents: crossover finds what no average can."""
    target = (1.0, 1.0, 0.0)  # ones where parent 0 or parent 1 has them
    settings = SearchSettings(method=method, generations=12, seed=1, size=6, controls=("average", "greedy_soup"))
    arms = by_label(evolve(settings, corners(), Quadratic(target), SPLITS, tmp_path / "out"))
    assert arms["evolved"].report > max(arms[f"parent-{n}"].report for n in range(3))
    assert arms["evolved"].report >= arms["average"].report


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_score_of_a_slot_never_falls(method, tmp_path):
    genes = "tensor" if method.needs_numbers else "scalar"
    settings = SearchSettings(method=method, genes=genes, generations=6, size=5, controls=())
    outcome = evolve(settings, corners(), Quadratic(TARGET, noise=0.05), SPLITS, tmp_path / "out")
    slots: dict[int, list[float]] = {}
    for step in outcome.steps:
        slots.setdefault(step.slot, []).append(step.champion)
    assert all(one == sorted(one) for one in slots.values())
    assert outcome.counters["accepted"] == sum(step.accepted for step in outcome.steps) > 0


@pytest.mark.parametrize(("f", "cr", "same"), [(0.5, 0.0, 0), (1.0, 1.0, 1)])
def test_a_search_that_changes_nothing_returns_a_parent(f, cr, same, tmp_path):
    settings = SearchSettings(method=Interpolation(f=f, cr=cr), generations=3, controls=())
    parents = corners()
    outcome = evolve(settings, parents, Quadratic(TARGET), SPLITS, tmp_path / "out")
    assert outcome.is_parent == "parent-0"
    assert outcome.evaluations == 3  # no child is another model than a parent
    written = load_file(outcome.path / "model.safetensors")
    assert all((written[name] == tensor).all() for name, tensor in parents.models["parent-0"].items())


@pytest.mark.parametrize(("method", "workers"), [(Interpolation(), 4), (CmaEs(), 2)], ids=lambda each: getattr(each, "name", str(each)))
def test_one_worker_and_four_end_in_the_same_bytes(method, workers, tmp_path):
    genes = "layer" if method.needs_numbers else "scalar"
    settings = SearchSettings(method=method, genes=genes, generations=3, size=5, seed=2, racing=Racing(fewest=3, deviations=1.0))
    fitness = Quadratic(TARGET, noise=0.2)
    evolve(settings, corners(), fitness, SPLITS, tmp_path / "one")
    evolve(settings, corners(), replace(fitness, wait=0.003), SPLITS, tmp_path / "four", workers=workers)
    assert tree(tmp_path / "one") == tree(tmp_path / "four")
    other = evolve(replace(settings, seed=3), corners(), fitness, SPLITS, tmp_path / "other")
    assert json.loads((tmp_path / "one" / "result.json").read_text())["winner"] != other.to_json()["winner"]


def run(out: Path, log: Path, *kills: str, workers: int = 1) -> list[int]:
    """Search in processes that are killed, one after the other; return their exit codes."""
    command = [sys.executable, "-m", "tests.evolution.toys", str(out), str(log), str(workers), *kills]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(toys.__file__).parents[2])
    assert found.returncode == 0, found.stderr
    return [int(line) for line in found.stdout.split()]


def test_kill_9_anywhere_ends_with_the_same_winner_and_repeats_nothing(tmp_path):
    evolve(SETTINGS, corners(), Quadratic(TARGET, log=str(tmp_path / "whole.log")), SPLITS, tmp_path / "whole")
    asked = calls(tmp_path / "whole.log")
    assert max(Counter(asked).values()) == 1
    out, log = tmp_path / "out", tmp_path / "log"
    kills = ["call:0", "call:2", "turn:2", "call:1", "turn:5", "turn:8", "call:0", "turn:11", "call:1", "call:5", "call:9", "call:2"]
    codes = run(out, log, *kills, "")  # turns 2, 5, 8 and 11 end generations
    assert codes[:-1] == [-9] * len(kills)
    assert codes[-1] == 0
    assert tree(out) == tree(tmp_path / "whole")
    answered = Counter(calls(log))
    assert max(answered.values()) == 1  # what was answered was published before the next kill, and is never asked again
    assert set(answered) == set(asked)
    assert evolve(SETTINGS, corners(), Quadratic(TARGET, log=str(log)), SPLITS, out).fresh == 0


def test_a_search_with_workers_that_is_killed_goes_on(tmp_path):
    assert run(tmp_path / "out", tmp_path / "log", "turn:4", "", workers=2) == [-9, 0]
    evolve(SETTINGS, corners(), Quadratic(TARGET), SPLITS, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_torn_last_line_is_cut_off(tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    first = evolve(SETTINGS, corners(), Quadratic(TARGET), SPLITS, out)
    journal = out / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-4]) + lines[-4][:40])  # three verdicts, and who won
    again = evolve(SETTINGS, corners(), Quadratic(TARGET, log=str(log)), SPLITS, out)
    assert again.fresh == 3 == len(calls(log))
    assert again.to_json() == first.to_json()


def test_the_splits_are_never_mixed(tmp_path):
    log = tmp_path / "log"
    evolve(SETTINGS, corners(), Quadratic(TARGET, log=str(log)), SPLITS, tmp_path / "out")
    parts = [set(part) for part in (SPLITS.evolve, SPLITS.select, SPLITS.report)]
    order = [next(n for n, part in enumerate(parts) if set(units) <= part) for _, units in calls(log)]
    assert order == sorted(order)
    assert set(order) == {0, 1, 2}


def test_racing_asks_less_and_a_stopped_child_never_wins(tmp_path):
    log, raced = tmp_path / "log", tmp_path / "raced.log"
    settings = SearchSettings(method=DeRand1(), generations=6, seed=1, controls=())
    whole = evolve(settings, corners(), Quadratic(TARGET, log=str(log), noise=0.01), SPLITS, tmp_path / "whole")
    with_racing = replace(settings, racing=Racing(first=0.25, fewest=3))
    outcome = evolve(with_racing, corners(), Quadratic(TARGET, log=str(raced), noise=0.01), SPLITS, tmp_path / "raced")
    assert outcome.counters["stopped"] > 3
    assert sum(len(units) for _, units in calls(raced)) < 0.8 * sum(len(units) for _, units in calls(log))
    assert outcome.winner == whole.winner
    assert not any(step.accepted for step in outcome.steps if step.fate == "stopped")


def test_an_accepted_child_must_pass_the_test(tmp_path):
    accepted = {}
    for test in ("strict", "sign_test", "bootstrap"):
        settings = SearchSettings(generations=5, seed=1, accept=Acceptance(test), controls=())
        outcome = evolve(settings, corners(), Quadratic((1 / 3,) * 3, noise=0.5), SPLITS, tmp_path / test)
        accepted[test] = outcome.counters["accepted"]
    assert accepted["strict"] > accepted["sign_test"]
    assert accepted["strict"] > accepted["bootstrap"]


@pytest.mark.parametrize("express", [Linear(), Ties(density=0.8)], ids=lambda method: method.name)
def test_with_a_merger_the_merged_population_gets_better(express, tmp_path):
    settings = SearchSettings(method=Interpolation(reference="random"), express=express, generations=8, seed=1, controls=("average",))
    outcome = evolve(settings, corners(base=True), Quadratic(TARGET), SPLITS, tmp_path / "out")
    champions = [step.champion for step in outcome.steps]
    assert champions == sorted(champions)
    assert champions[-1] > outcome.steps[0].score
    if express.name == "linear":
        assert by_label(outcome)["evolved"].report >= by_label(outcome)["average"].report


def test_coefficients_of_task_vectors(tmp_path):
    settings = SearchSettings(method=DeRand1(), genes="tensor", express=TaskArithmetic(), generations=15, low=-1.0, high=1.0, controls=())
    outcome = evolve(settings, corners(base=True), Quadratic((0.5, -0.5, 0.25)), SPLITS, tmp_path / "out")
    assert by_label(outcome)["evolved"].report > -0.05
    assert outcome.groups == corners().names


def test_all_controls_are_reported_with_intervals(tmp_path):
    outcome = evolve(SETTINGS, corners(base=True), Quadratic(TARGET, noise=0.01), SPLITS, tmp_path / "out")
    labels = ["evolved", "parent-0", "parent-1", "parent-2", "average", "task_arithmetic", "greedy_soup", "best_random_draw"]
    assert [arm.label for arm in outcome.arms] == labels
    for arm in outcome.arms[1:]:
        assert arm.ahead.low <= arm.ahead.mean <= arm.ahead.high
        assert arm.ahead.mean == pytest.approx(outcome.arms[0].report - arm.report, abs=1e-9)
        assert arm.ahead.n == len(SPLITS.report)
    without = evolve(SETTINGS, corners(), Quadratic(TARGET), SPLITS, tmp_path / "without")
    assert "task_arithmetic" not in by_label(without)
    assert without.counters["control_left_out_task_arithmetic"] == 1


def test_a_winner_by_luck_is_found_out_on_the_second_split(tmp_path):
    """Where models differ by noise only, the best score on the first split says nothing, and the second one is asked."""
    log = tmp_path / "log"
    settings = SearchSettings(generations=6, seed=4, finalists=4, controls=())
    outcome = evolve(settings, corners(), Quadratic(TARGET, noise=5.0, log=str(log)), SPLITS, tmp_path / "out")
    finalists = {digest for digest, units in calls(log) if set(units) <= set(SPLITS.select)}
    assert len(finalists) in (4, 5)  # and the best parent
    assert outcome.arms[0].select is not None
    assert outcome.arms[0].evolve < max(step.champion for step in outcome.steps)  # the best there was not the best here


def test_budgets_end_a_search(tmp_path):
    few = evolve(replace(SETTINGS, budget=Budget(evaluations=8)), corners(), Quadratic(TARGET), SPLITS, tmp_path / "few")
    assert (few.evaluations, few.ended) == (8, "evaluations")
    slow = Quadratic(TARGET, wait=0.05)
    short = evolve(replace(SETTINGS, controls=(), budget=Budget(minutes=0.4 / 60)), corners(), slow, SPLITS, tmp_path / "short")
    assert short.ended == "minutes"
    assert 3 <= short.evaluations < 12
    again = evolve(replace(SETTINGS, controls=(), budget=Budget(minutes=0.4 / 60)), corners(), slow, SPLITS, tmp_path / "short")
    assert again.fresh == 0
    assert again.to_json() == short.to_json()
    settings = SearchSettings(method=Interpolation(cr=0.0), generations=50, patience=2, controls=())
    idle = evolve(settings, corners(), Quadratic(TARGET), SPLITS, tmp_path / "idle")
    assert (idle.ended, len(idle.steps)) == ("patience", 6)


@pytest.mark.parametrize(("trouble", "fate", "workers"), [("raise", "raised", 1), ("nan", "not_finite", 1), ("raise", "raised", 2)])
def test_children_that_cannot_be_scored_are_discarded_and_counted(trouble, fate, workers, tmp_path):
    settings = replace(SETTINGS, controls=())
    outcome = evolve(settings, corners(), Quadratic(TARGET, trouble=trouble), SPLITS, tmp_path / "out", workers=workers)
    assert outcome.counters[fate] == len(outcome.steps) == 12
    assert outcome.is_parent == "parent-0"
    assert re.fullmatch(r"RuntimeError: no such luck|u\d+ scored nan", outcome.messages[fate])
    assert evolve(settings, corners(), Quadratic(TARGET, trouble=trouble), SPLITS, tmp_path / "out").fresh == 0


def test_bad_input_is_one_clear_line_and_nothing_is_lost(tmp_path):
    out = tmp_path / "out"

    def refused(message, settings=SETTINGS, parents=None, fitness=None, splits=SPLITS, kind=InputError):
        with pytest.raises(kind, match=message) as caught:
            evolve(settings, parents or corners(), fitness or Quadratic(TARGET), splits, out)
        assert "\n" not in str(caught.value)
        assert caught.value.hint

    refused(
        "fitness: 0 of 3 models of the first population can be scored: RuntimeError: no such luck$",
        fitness=Quadratic(TARGET, trouble="all"),
    )
    refused("splits: 'u0' is in evolve and report", splits=Splits(("u0",), ("u1",), ("u0",)))
    refused("splits: select is empty", splits=Splits(("u0",), (), ("u1",)))
    refused("budget: 0 evaluations", replace(SETTINGS, budget=Budget(evaluations=0)))
    refused("budget: 2 evaluations, the first population alone needs 3", replace(SETTINGS, budget=Budget(evaluations=2)))
    refused("budget: 0 minutes", replace(SETTINGS, budget=Budget(minutes=0)))
    refused("cma_es needs coefficients, and genes are scalar", replace(SETTINGS, method=CmaEs()))
    refused("interpolation asks how good single members are", replace(SETTINGS, express=Linear()))
    one = MemoryParents({"alone": corners().models["parent-0"]})
    refused("parents: 1, expected 2 or more", parents=one)
    models = corners().models
    renamed = MemoryParents({"average": models["parent-0"], "b": models["parent-1"]})
    refused("parents: one of them is called as reports call something else: average", parents=renamed)
    with pytest.raises(ModelError, match=r"parent-1: tensor norm.weight is \[5\], in parent-0 it is \[4\]"):
        MemoryParents({**models, "parent-1": {**models["parent-1"], "norm.weight": models["parent-1"]["embed.weight"][:, 0]}})
    with pytest.raises(ModelError, match=r"parent-1: tensor norm.weight is missing"):
        MemoryParents({**models, "parent-1": {name: t for name, t in models["parent-1"].items() if name != "norm.weight"}})
    assert [path.name for path in out.iterdir()] == ["journal.jsonl"]  # which holds nothing: another search may begin there
    evolve(SETTINGS, corners(4), Quadratic(TARGET), SPLITS, out)


def test_a_folder_with_something_else_is_refused(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty: it holds thesis.txt"):
        evolve(SETTINGS, corners(), Quadratic(TARGET), SPLITS, out)
    (out / "thesis.txt").unlink()
    evolve(SETTINGS, corners(), Quadratic(TARGET), SPLITS, out)
    with pytest.raises(InputError, match="is of another search"):
        evolve(replace(SETTINGS, seed=9), corners(), Quadratic(TARGET), SPLITS, out)
    with pytest.raises(InputError, match="is of another search"):
        evolve(SETTINGS, corners(4), Quadratic(TARGET), SPLITS, out)
    with lock(out), pytest.raises(BusyError, match=f"process {os.getpid()}"):
        evolve(SETTINGS, corners(), Quadratic(TARGET), SPLITS, out)
