import json

from lmfuse.evolution.outcome import Arm, Outcome, family_tree
from lmfuse.evolution.search import Step
from lmfuse.evolve.genome import Numbers, Parent, Within, crossed, mixed
from lmfuse.evolve.program import from_program

A, B, C = Parent(0), Parent(1), Parent(2)
FIRST = crossed(A, mixed([(0.5, A), (0.5, C)]), 0.5, 1)
WINNER = crossed(B, Within(mixed([(1.5, B), (-0.5, FIRST)])), 0.5, 2)
LABELS = ["evolved", "a", "b", "c"]


def step(turn, genome, accepted=True):
    return Step(turn, turn // 3, turn % 3, genome.key, -1.0 / (1 + turn), accepted, "accepted" if accepted else "not_better", 0.0)


def test_a_family_tree_by_hand():
    tree = family_tree(WINNER, [step(0, FIRST), step(1, C, accepted=False), step(4, WINNER)], LABELS)
    assert [(each["genome"], each["parent"], each.get("turn"), each["of"]) for each in tree] == [
        (WINNER.key, None, 4, [B.key, FIRST.key]),
        (B.key, "b", None, []),
        (FIRST.key, None, 0, [A.key, C.key]),
        (A.key, "a", None, []),
        (C.key, "c", None, []),
    ]
    assert family_tree(Numbers((0.5,)), [], LABELS) == [{"genome": Numbers((0.5,)).key, "parent": None, "of": []}]


def test_a_result_leads_back_to_its_winner_and_has_no_times_or_paths(tmp_path):
    arms = (Arm("evolved", WINNER, report=0.5), *(Arm(name, Parent(n)) for n, name in enumerate("abc")))
    outcome = Outcome(tmp_path / "model", WINNER, "", arms, (step(0, FIRST),), {"b": 1, "a": 2}, {}, 4, 9, "generations")
    outcome.write(tmp_path / "result.json")
    text = (tmp_path / "result.json").read_text()
    found = json.loads(text)
    assert from_program(found["winner"]) == WINNER
    assert str(tmp_path) not in text
    assert set(found) == {"winner", "is_parent", "arms", "steps", "counters", "messages", "evaluations", "ended", "groups", "tree"}
