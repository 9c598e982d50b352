"""``lmfuse evolve``: a recipe checked, searched, reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from lmfuse.artefacts import write_atomic
from lmfuse.console import Console
from lmfuse.evolution.outcome import Outcome
from lmfuse.evolution.run import WINNER, About
from lmfuse.evolution.run import evolve as search
from lmfuse.evolve_recipe import load_evolve_recipe
from lmfuse.evolve_recipe.plan import Prepared, prepare
from lmfuse.evolve_recipe.results import card, make_report
from lmfuse.plan import GIB
from lmfuse.report.page import headline, metric_name, render_folder


def evolve(recipe: Path, out: Path | None, *, cache: Path, workers: int, plan_only: bool = False) -> Outcome | None:
    """Do what a recipe says; with ``plan_only`` check it and stop. The same call goes on where an earlier one was interrupted.

    Raises:
        InputError, BusyError, ResourceError: whatever stands in the way; see ``prepare`` and ``evolution.run.evolve``.
    """
    loaded = load_evolve_recipe(recipe)
    place = out or Path("runs") / loaded.name
    console = Console()
    prepared = prepare(loaded, recipe.parent, cache, place, workers)
    show(console, prepared, workers)
    if plan_only:
        console.say("nothing stands in the way", style="green")
        return None
    reports: list[dict[str, Any]] = []

    def about(found: Outcome) -> About:
        reports.append(make_report(prepared, found))
        return card(prepared, found, reports[0])

    turns = loaded.generations * loaded.settings.population(len(loaded.parents))
    with console.task("evolve", turns, "children") as advance:
        outcome = search(
            loaded.settings, prepared.parents, prepared.fitness, prepared.data.splits, place, workers=workers,
            progress=lambda _: advance(1), about=about,
        )  # fmt: skip
    (report,) = reports
    write_atomic(place / "recipe.yaml", loaded.to_yaml().encode())
    (place / "report").mkdir(exist_ok=True)
    write_atomic(place / "report" / "report.json", (json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    tell(console, report, render_folder(place), place / WINNER)
    return outcome


def show(console: Console, prepared: Prepared, workers: int) -> None:
    """Print what will be searched, and what it needs."""
    recipe, splits = prepared.recipe, prepared.data.splits
    for label, facts in prepared.facts.items():
        kind = "base" if recipe.base and label == recipe.base.label else "parent"
        console.say(
            f"{kind} {label}: {facts.architecture}, {facts.parameters:,} parameters, licence {facts.licence or 'unknown'}", style="dim"
        )
    counts = f"{len(splits.evolve)} units to evolve on, {len(splits.select)} to select on, {len(splits.report)} to report on"
    genes = f"{recipe.genes} genes" + (f" through {recipe.express.name}" if recipe.express else "")
    console.say(f"{recipe.method.name} with {genes}; {recipe.fitness.name}: {counts}", style="dim")
    room = f"{prepared.memory_bytes / GIB:.1f} GiB of memory, {prepared.disk_bytes / GIB:.1f} GiB of disk"
    console.say(f"{workers} worker{'s' * (workers > 1)}: about {room}", style="dim")
    for warning in prepared.parents.warnings:
        console.warn(warning)


def tell(console: Console, report: dict[str, Any], page: Path, model: Path) -> None:
    """Print the values of every arm, what became of the children, the verdict, and where everything is."""
    title = f"{metric_name(report)} on data that neither evolution nor selection has seen"
    table = Table("arm", *report["domains"], "macro", title=title, min_width=60)
    for arm, values in report["arms"].items():
        table.add_row(arm, *(f"{values[domain]:.4f}" for domain in (*report["domains"], "macro")))
    console.table(table)
    run, counters = report["run"], report["counters"]
    fates = ", ".join(f"{counters[fate]} {fate.replace('_', ' ')}" for fate in FATES if counters.get(fate))
    console.say(f"{run['children']} children ({fates or 'none'}), {run['evaluations']} models scored; ended by {run['ended']}", style="dim")
    for fate, message in run["messages"].items():
        console.warn(f"{fate.replace('_', ' ')}, the first: {message}")
    for line in headline(report):
        console.say(line["text"], style={"better": "green", "worse": "red", "even": "yellow"}[line["kind"]])
    console.say(f"report: {page}")
    console.say(f"model:  {model}")


FATES = ("accepted", "not_better", "stopped", "raised", "not_finite", "not_made")
