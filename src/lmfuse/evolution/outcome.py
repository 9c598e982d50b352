"""What a search hands back, and as it is written to ``result.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmfuse.disk import write_atomic
from lmfuse.evaluate.paired import Comparison
from lmfuse.evolution.scores import Scores
from lmfuse.evolution.search import Step
from lmfuse.evolve.genome import Genome, Parent
from lmfuse.evolve.program import parts_of, program


@dataclass(frozen=True)
class Arm:
    """The winner, or something that it is compared with.

    Attributes:
        label: such as ``evolved``, ``average`` or a parent's.
        genome: what it is.
        evolve, select, report: its scores on the three splits, None where it was not scored on one.
        ahead: how far the winner is ahead of it on ``report``, with a 95% interval of the paired bootstrap over units; None for itself.
        by_unit: what it scored on each unit of ``report``; no part of the file.
    """

    label: str
    genome: Genome
    evolve: float | None = None
    select: float | None = None
    report: float | None = None
    ahead: Comparison | None = None
    by_unit: Scores = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A finished search.

    Attributes:
        path: the winner's folder.
        winner: its genome.
        is_parent: the label of the parent that won, ``""`` where a child did.
        arms: the winner first, then every parent, then the controls.
        steps: every child, in order.
        counters: of children by fate, and of whatever was left out.
        messages: of the first failure of each kind.
        evaluations: different individuals scored in the search.
        fresh: verdicts that this run made, rather than found in the journal; no part of the file.
        ended: why the search ended.
        groups: what coefficients belong to, where genes are coefficients.
    """

    path: Path
    winner: Genome
    is_parent: str
    arms: tuple[Arm, ...]
    steps: tuple[Step, ...]
    counters: Mapping[str, int]
    messages: Mapping[str, str]
    evaluations: int
    fresh: int
    ended: str
    groups: Sequence[str] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Return plain data: no times and no paths, so that equal searches are equal files."""
        return {
            "winner": program(self.winner),
            "is_parent": self.is_parent,
            "arms": [_arm(each) for each in self.arms],
            "steps": [asdict(step) for step in self.steps],
            "counters": dict(sorted(self.counters.items())),
            "messages": dict(sorted(self.messages.items())),
            "evaluations": self.evaluations,
            "ended": self.ended,
            "groups": list(self.groups),
            "tree": family_tree(self.winner, self.steps, [arm.label for arm in self.arms]),
        }

    def write(self, path: Path) -> None:
        """Write the file."""
        write_atomic(path, (json.dumps(self.to_json(), indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def _arm(arm: Arm) -> dict[str, Any]:
    return {
        "label": arm.label,
        "genome": arm.genome.key,
        "program": program(arm.genome),
        "evolve": arm.evolve,
        "select": arm.select,
        "report": arm.report,
        "ahead": None if arm.ahead is None else asdict(arm.ahead),
    }


def family_tree(winner: Genome, steps: Sequence[Step], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return the winner's forebears with scalar genes, itself first: each child that was accepted, when, and what it was bred from.

    Coefficients do not remember what they were bred from.

    Args:
        winner: where the tree begins.
        steps: of the search.
        labels: of the arms: the winner, then the parents in order.
    """
    turns = {step.genome: step for step in reversed(steps) if step.accepted}
    found: dict[str, dict[str, Any]] = {}
    waiting = [winner]
    while waiting:
        each = waiting.pop(0)
        if each.key in found:
            continue
        step, nearest = turns.get(each.key), _nearest(each, turns)
        name = labels[1 + each.index] if isinstance(each, Parent) else None
        place = {} if step is None else {"turn": step.turn, "generation": step.generation, "slot": step.slot, "score": step.score}
        found[each.key] = {"genome": each.key, "parent": name, **place, "of": [part.key for part in nearest]}
        waiting += nearest
    return list(found.values())


def _nearest(genome: Genome, turns: Mapping[str, Step]) -> list[Genome]:
    """Return the closest forebears that were members of a population."""
    found: dict[str, Genome] = {}
    waiting, seen = list(parts_of(genome)), set[str]()
    while waiting:
        each = waiting.pop(0)
        if each.key in seen:
            continue
        seen.add(each.key)
        if isinstance(each, Parent) or each.key in turns:
            found[each.key] = each
        else:
            waiting += parts_of(each)
    return list(found.values())
