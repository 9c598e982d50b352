"""The page of a search, from ``report.json`` alone: the verdict first, then what every arm scored, how the search went, who the winner is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lmfuse.report import evolution_plots, plots
from lmfuse.report.page import METRICS, headline, metric_name


def render(report: Mapping[str, Any]) -> str:
    """Return the page. Everything that came from outside is escaped."""
    environment = Environment(
        loader=PackageLoader("lmfuse.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    run, metric = report["run"], report["metric"]
    name, things, more = METRICS[metric]
    parents = [source["name"] for source in run["sources"]]
    first = {parent: run["scores"][parent][0] for parent in parents if run["scores"].get(parent, [None])[0] is not None}
    figures = {
        "generations": evolution_plots.generations(run["steps"], first, name, 1 if more else -1),
        "arms": plots.arms_by_domain(report, metric_name(report).rstrip(",")),
        "intervals": plots.intervals([c for c in report["comparisons"] if c["domain"] == "macro"], name, 1 if more else -1, things),
    }
    if len(run["tree"]) > 1:
        figures["family"] = evolution_plots.family(run["tree"])
    if len(run["genes"]["groups"]) > 1:
        figures["genes"] = evolution_plots.gene_map(run["genes"])
    choose = max if more else min
    return environment.get_template("evolution.html").render(
        report=report,
        run=run,
        measure=metric_name(report).rstrip(","),
        headline=headline(report),
        figures={key: Markup(value) for key, value in figures.items()},
        best={domain: choose(arm[domain] for arm in report["arms"].values()) for domain in [*report["domains"], "macro"]},
    )
