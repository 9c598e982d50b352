"""What a whole search does when a fitness fails for a while, when a parent wins, and what the breeder hears of a stopped child."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from lmfuse.errors import InputError
from lmfuse.evolution.judge import Racing
from lmfuse.evolution.run import evolve
from lmfuse.evolution.scores import UnitScore, mean_score
from lmfuse.evolution.settings import SearchSettings
from lmfuse.evolution.splits import Splits
from lmfuse.evolve.family import Slots
from lmfuse.evolve.interpolation import Interpolation
from tests.evolution.toys import SETTINGS, SPLITS, Quadratic, corners, flat, tree

TARGET = (0.5, 0.25, 0.25)
FEW = replace(SETTINGS, controls=())


class Flaky:
    """A fitness that fails at some calls on units of one split."""

    def __init__(self, part, fails):
        self.fitness, self.part, self.fails, self.asked = Quadratic(TARGET), part, set(fails), 0
        self.key = self.fitness.key

    def __call__(self, model, units):
        if units[0] in self.part:
            self.asked += 1
            if self.asked - 1 in self.fails:
                raise OSError("network is down")
        return self.fitness(model, units)


def flaky(part=(), fails=()):
    return Flaky(part, fails)


def test_a_failure_on_report_that_passes_loses_nothing(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="report: the winner cannot be scored on this split: OSError: network is down"):
        evolve(SETTINGS, corners(), flaky(SPLITS.report, range(99)), SPLITS, out)
    evolve(SETTINGS, corners(), flaky(), SPLITS, out)
    evolve(SETTINGS, corners(), flaky(), SPLITS, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


def test_a_finalist_that_fails_is_named_and_tried_again(tmp_path):
    out = tmp_path / "out"
    whole = evolve(FEW, corners(), flaky(), SPLITS, tmp_path / "whole")
    blip = evolve(FEW, corners(), flaky(SPLITS.select, {1}), SPLITS, out)  # the best child comes after the best parent
    assert blip.winner != whole.winner
    assert blip.counters["finalist_dropped"] == 1
    assert blip.messages[f"finalist_dropped_{whole.winner.key}"] == "OSError: network is down"
    again = evolve(FEW, corners(), flaky(), SPLITS, out)
    assert again.to_json() == whole.to_json()
    assert tree(out) == tree(tmp_path / "whole")  # weights and result are those of the new winner


def test_an_arm_that_fails_is_named(tmp_path):
    outcome = evolve(FEW, corners(), flaky(SPLITS.report, {1, 3}), SPLITS, tmp_path / "out")
    assert outcome.counters["arm_dropped"] == 2
    assert {name for name in outcome.messages if "dropped" in name} == {"arm_dropped_parent-0", "arm_dropped_parent-2"}
    assert [arm.report is None for arm in outcome.arms] == [False, True, False, True]


def test_random_draws_that_fail_end_no_search(tmp_path):
    settings = replace(SETTINGS, controls=("best_random_draw",))
    outcome = evolve(settings, corners(), flaky(SPLITS.select, range(4, 99)), SPLITS, tmp_path / "out")
    assert "best_random_draw" not in [arm.label for arm in outcome.arms]
    assert outcome.counters["control_dropped"] == 3
    assert outcome.counters["control_left_out_best_random_draw"] == 1


@pytest.mark.parametrize("genes", ["scalar", "layer"])
def test_a_parent_that_wins_is_reported_as_that_parent(genes, tmp_path):
    """Parent 0 is the best to evolve on, parent 1 on the rest; no child is any good."""

    class Loyal:
        key = "loyal"

        def __call__(self, model, units):
            weights = flat(model)
            who = next((n for n in range(3) if all(value == float(d % 3 == n) for d, value in enumerate(weights.tolist()))), 3)
            return [UnitScore((1.0, 0.9, 0.1, 0.0)[who] if unit in SPLITS.evolve else (0.5, 0.9, 0.1, 0.0)[who]) for unit in units]

    outcome = evolve(replace(FEW, genes=genes), corners(), Loyal(), SPLITS, tmp_path / "out")
    assert outcome.is_parent == "parent-1"
    found = load_file(outcome.path / "model.safetensors")
    assert flat({name: found[name] for name in corners().names}).equal(flat(corners().models["parent-1"]))


def test_the_breeder_hears_numbers_that_can_be_compared(tmp_path, monkeypatch):
    """Units differ far more than models: the mean of a few says little, the difference from the rival on these much."""
    heard = {}
    settle = Slots.settle
    monkeypatch.setattr(
        Slots, "settle", lambda self, turn, genome, score, ok: (heard.update({turn: score}), settle(self, turn, genome, score, ok))[1]
    )

    class Hard(Quadratic):
        def __call__(self, model, units):
            return [
                UnitScore(score.value / score.weight + 10.0 * int(unit[1:]))
                for unit, score in zip(units, super().__call__(model, units), strict=True)
            ]

    settings = SearchSettings(method=Interpolation(), generations=6, seed=1, controls=(), racing=Racing(first=0.25, fewest=3))
    outcome = evolve(settings, corners(), Hard((1.0, 0.1, 0.0), noise=0.01), SPLITS, tmp_path / "out")
    stopped = [step for step in outcome.steps if step.fate == "stopped"]
    assert len(stopped) > 3
    lines = [json.loads(line) for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()]
    parent = next(line["scores"] for line in lines if set(line.get("scores", ())) == set(SPLITS.evolve))
    level = mean_score({unit: UnitScore(*score) for unit, score in parent.items()})
    assert all(abs(heard[step.turn] - level) < 2.0 for step in stopped)
    assert any(abs(step.score - level) > 2.0 for step in stopped)


def test_equal_documents_in_two_splits_are_refused(tmp_path):
    class Texts(Quadratic):
        contents = {unit: (unit,) for unit in ("u0", "u1")} | {"u2": ("u0",)}

    with pytest.raises(InputError, match="splits: 'u2' of report and 'u0' of evolve hold the same document"):
        evolve(FEW, corners(), Texts(TARGET), Splits.checked(["u0"], ["u1"], ["u2"]), tmp_path / "out")
