"""What a search found, as ``report.json``: the form of every run's report, with the search itself beside it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lmfuse import __version__
from lmfuse.artefacts import content_key
from lmfuse.evolution.outcome import Arm, Outcome, family_tree
from lmfuse.evolution.run import About
from lmfuse.evolution.scores import Scores
from lmfuse.evolution.settings import CONTROLS
from lmfuse.evolve.genome import Base, Cross, Genome, Joined, Mix, Numbers, Parent
from lmfuse.evolve.program import parts_of, program
from lmfuse.evolve_recipe.plan import Prepared
from lmfuse.report.page import headline
from lmfuse.results import RunResults
from lmfuse.types import DocumentScore

METRICS = {"bits_per_byte": "bits_per_byte", "choices": "accuracy", "function": "score"}  # of bits less is better, of the others more


def make_report(prepared: Prepared, outcome: Outcome) -> dict[str, Any]:
    """Return ``report.json``: nothing in it differs between two equal searches."""
    recipe = prepared.recipe
    metric = METRICS[recipe.fitness.name]
    arms = [arm for arm in outcome.arms if arm.by_unit]
    others = [arm.label for arm in arms if arm.label != "evolved"]
    results = RunResults(
        scores={arm.label: _as_documents(arm.by_unit) for arm in arms},
        counters={**prepared.data.counters, **outcome.counters},
        run=_describe(prepared, outcome, arms),
    )
    pairs = [("evolved", other) for other in others]
    report = results.report(pairs, samples=recipe.evaluate.bootstrap_samples, seed=recipe.evaluate.seed)
    return report if metric == "bits_per_byte" else _turned(report, metric)


def _as_documents(scores: Scores) -> list[DocumentScore]:
    """Return scores as those of documents, of which less is better."""
    return [DocumentScore(unit, each.group or "all", -each.value * math.log(2), each.weight) for unit, each in scores.items()]


def _turned(report: dict[str, Any], metric: str) -> dict[str, Any]:
    """Return a report of a measure of which more is better."""
    arms = {arm: {domain: -value + 0.0 for domain, value in values.items()} for arm, values in report["arms"].items()}
    comparisons = [c | {"mean": -c["mean"] + 0.0, "ci95": [-c["ci95"][1] + 0.0, -c["ci95"][0] + 0.0]} for c in report["comparisons"]]
    return report | {"metric": metric, "arms": arms, "comparisons": comparisons}


def _describe(prepared: Prepared, outcome: Outcome, arms: Sequence[Arm]) -> dict[str, Any]:
    recipe, facts = prepared.recipe, prepared.facts
    models = [
        {"name": spec.label, "architecture": facts[spec.label].architecture, "parameters": facts[spec.label].parameters,
         "licence": facts[spec.label].licence, "key": facts[spec.label].key}
        for spec in prepared.specs
    ]  # fmt: skip
    splits = prepared.data.splits
    settings = {name: value for name, value in recipe.model_dump(mode="json").items() if name in SETTINGS}
    return {
        "kind": "evolution", "name": recipe.name, "version": __version__, "recipe": content_key(recipe.to_yaml()), "result": "evolved",
        "controls": [*(arm.label for arm in arms if arm.label in CONTROLS), _best_parent(arms)],
        "sources": models[: len(recipe.parents)], "base": models[-1] if recipe.base else None, "is_parent": outcome.is_parent,
        "units": {"evolve": len(splits.evolve), "select": len(splits.select), "report": len(splits.report)},
        "settings": settings, "evaluations": outcome.evaluations, "children": len(outcome.steps), "ended": outcome.ended,
        "messages": dict(outcome.messages), "scores": {arm.label: [arm.evolve, arm.select, arm.report] for arm in outcome.arms},
        "steps": [[s.generation, s.slot, s.score, s.fate, s.champion] for s in outcome.steps],
        "tree": family_tree(outcome.winner, outcome.steps, [arm.label for arm in outcome.arms]),
        "genes": genes(outcome.winner, outcome.groups, prepared.parents.labels),
    }  # fmt: skip


SETTINGS = ("method", "genes", "express", "generations", "budget", "accept", "racing", "behind", "finalists", "seed", "fitness", "resident")


def _best_parent(arms: Sequence[Arm]) -> str:
    """Return the parent that did best on the last split: the hardest to beat."""
    parents = [arm for arm in arms if isinstance(arm.genome, Parent | Numbers) and arm.label not in ("evolved", *CONTROLS)]
    parents = parents or [arm for arm in arms if arm.label not in ("evolved", *CONTROLS)]
    return max(parents, key=lambda arm: arm.report if arm.report is not None else -math.inf).label


def genes(winner: Genome, groups: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Return what the winner has of each parent: its coefficients by tensor or layer, or of scalar genes the share that is expected.

    >>> genes(Cross(Parent(0), Parent(1), 0.25, seed=1), (), ("a", "b"))
    {'groups': ['all'], 'parents': ['a', 'b'], 'values': [[0.75, 0.25]]}
    """
    if isinstance(winner, Numbers):
        count = len(labels)
        rows = [list(winner.values[number * count : (number + 1) * count]) for number in range(len(groups))]
        return {"groups": list(groups), "parents": list(labels), "values": rows}
    found = _shares(winner)
    return {"groups": ["all"], "parents": list(labels), "values": [[found.get(index, 0.0) for index in range(len(labels))]]}


def _shares(winner: Genome) -> Mapping[int, float]:
    """Return how much of each parent a genome with scalar genes is expected to hold; what moves numbers a little counts as nothing."""
    known: dict[str, Mapping[int, float]] = {}
    waiting = [winner]
    while waiting:  # no recursion: a lineage may be longer than Python's stack
        each = waiting[-1]
        missing = [part for part in parts_of(each) if part.key not in known]
        if missing:
            waiting += missing
            continue
        waiting.pop()
        known[each.key] = _own_shares(each, known)
    return known[winner.key]


def _own_shares(each: Genome, known: Mapping[str, Mapping[int, float]]) -> Mapping[int, float]:
    if isinstance(each, Parent):
        return {each.index: 1.0}
    if isinstance(each, Base):
        return {}
    parts = parts_of(each)
    weights: Sequence[float] = [1.0]
    if isinstance(each, Mix):
        weights = each.weights
    elif isinstance(each, Cross):
        weights = [1 - each.rate, each.rate]
    elif isinstance(each, Joined):
        weights = [1 / len(parts)] * len(parts)
    found: dict[int, float] = defaultdict(float)
    for weight, part in zip(weights, parts, strict=True):
        for index, share in known[part.key].items():
            found[index] += weight * share
    return dict(found)


def card(prepared: Prepared, outcome: Outcome, report: Mapping[str, Any]) -> About:
    """Return what the winner's card says of the search and its report."""
    recipe = prepared.recipe
    who = f"It is the parent {outcome.is_parent}: no child was better." if outcome.is_parent else _bred(outcome)
    macro = ", ".join(f"{arm} {values['macro']:.4f}" for arm, values in report["arms"].items())
    notes = (
        f"Evolved by {recipe.method.name} with {recipe.genes} genes; {outcome.evaluations} models were scored. {who}",
        f"On data that neither evolution nor selection has seen, {report['metric'].replace('_', ' ')}: {macro}.",
        *(line["text"] for line in headline(report)),
    )
    return About(notes, recipe.to_yaml())


def _bred(outcome: Outcome) -> str:
    return f"Its recipe has {len(program(outcome.winner))} steps."
