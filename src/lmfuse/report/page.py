"""One self-contained HTML page from ``report.json`` alone: the verdict first, then counters, values, intervals, curves, sources."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from lmfuse.disk import write_atomic
from lmfuse.errors import InputError
from lmfuse.report import plots

CONTROLS = ("clm", "self", "target")  # of reports that do not name theirs
METRICS = {  # their names, what they are measured on, and whether more is better
    "bits_per_byte": ("bits per byte", "documents", False),
    "accuracy": ("accuracy", "questions", True),
    "score": ("score", "units", True),
}


def metric_name(report: Mapping[str, Any]) -> str:
    """Return what was measured, and which way is better.

    >>> metric_name({"metric": "accuracy"})
    'accuracy, higher is better,'
    """
    name, _, more = METRICS[report.get("metric", "bits_per_byte")]
    return f"{name}, {'higher' if more else 'lower'} is better,"


def verdict(found: Mapping[str, Any], metric: str = "bits_per_byte") -> str:
    """Return one comparison as a sentence that says whether it is a gain.

    >>> verdict({"a": "fused", "b": "clm", "domain": "macro", "mean": -0.0131, "ci95": [-0.021, -0.005], "n": 120})
    'fused is better than clm: -0.0131 bits per byte [-0.0210, -0.0050], 120 documents'
    >>> verdict({"a": "fused", "b": "clm", "domain": "macro", "mean": -0.001, "ci95": [-0.004, 0.002], "n": 120})
    'no gain of fused over clm can be told from chance: -0.0010 bits per byte [-0.0040, +0.0020], 120 documents'
    """
    low, high = found["ci95"]
    unit, things, _ = METRICS[metric]
    numbers = f"{found['mean']:+.4f} {unit} [{low:+.4f}, {high:+.4f}], {found['n']} {things}"
    told = {"better": "is better than", "worse": "is worse than"}.get(kind_of(found, metric))
    if told:
        return f"{found['a']} {told} {found['b']}: {numbers}"
    return f"no gain of {found['a']} over {found['b']} can be told from chance: {numbers}"


def kind_of(found: Mapping[str, Any], metric: str = "bits_per_byte") -> str:
    """Return ``better``, ``worse`` or, where the interval holds 0, ``even``: what the first of two models is beside the second.

    >>> kind_of({"ci95": [0.1, 0.2]}), kind_of({"ci95": [0.1, 0.2]}, "accuracy"), kind_of({"ci95": [0.0, 0.2]})
    ('worse', 'better', 'even')
    """
    low, high = found["ci95"]
    if low <= 0 <= high:
        return "even"
    return "better" if (low > 0) == METRICS[metric][2] else "worse"


def headline(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the result arm against each control, macro over domains, with a class for its colour."""
    result, metric = report["run"].get("result", "fused"), report.get("metric", "bits_per_byte")
    lines = []
    for control in report["run"].get("controls", CONTROLS):
        for found in report["comparisons"]:
            if (found["a"], found["b"], found["domain"]) == (result, control, "macro"):
                text = verdict(found, metric) + _by_seed(report["run"], result, control)
                lines.append({"kind": kind_of(found, metric), "text": text})
    return lines


def _by_seed(run: Mapping[str, Any], a: str, b: str) -> str:
    """Return the same difference seed by seed, which the interval over documents does not cover; nothing where there is one seed."""
    values = [run.get("macro_by_seed", {}).get(arm, []) for arm in (a, b)]
    differences = [f"{x - y:+.4f}" for x, y in zip(*values, strict=False)]
    return f"; seed by seed {', '.join(differences)}" if len(differences) > 1 else ""


def render(report: Mapping[str, Any]) -> str:
    """Return the page. Everything that came from outside is escaped."""
    environment = Environment(
        loader=PackageLoader("lmfuse.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    target = report["run"].get("controls", CONTROLS)[-1]
    given = {target, *(source["name"] for source in report["run"]["sources"])}  # so far off that they would squeeze the rest
    trained = set(report["arms"]) - given
    result = report["run"].get("result", "fused")
    shown = [c for c in report["comparisons"] if c["b"] in trained and (c["domain"] == "macro" or c["a"] == result)]
    figures = {"arms": plots.arms_by_domain(report)}
    if shown:
        figures["intervals"] = plots.intervals(shown)
    curves = {arm: log for arm, log in report["run"].get("curves", {}).items() if log}
    if curves:
        figures["curves"] = plots.curves(curves)
    if report["sources"]:
        figures["sources"] = plots.sources(report)
    if report["run"].get("answers"):
        figures["modes"] = plots.modes(report["run"]["answers"])
    best = {d: min(arm[d] for arm in report["arms"].values()) for d in [*report["domains"], "macro"]}
    return environment.get_template("page.html").render(
        report=report, run=report["run"], headline=headline(report), figures={k: Markup(v) for k, v in figures.items()}, best=best
    )


def render_folder(folder: Path) -> Path:
    """Write ``report/index.html`` of a run from its ``report/report.json``.

    Raises:
        InputError: the folder holds no finished run, or its report is malformed.
    """
    source = folder / "report" / "report.json"
    if not source.exists():
        raise InputError(f"{folder} holds no report/report.json", hint="`lmfuse run` writes it when a run is done")
    try:
        from lmfuse.report import evolution  # which needs this module

        report = json.loads(source.read_text(encoding="utf-8"))
        page = evolution.render(report) if report["run"].get("kind") == "evolution" else render(report)
    except (ValueError, KeyError, TypeError, AttributeError, UndefinedError) as error:
        raise InputError(f"{source}: not a report ({error!r})", hint="run the recipe again; finished stages are reused") from None
    target = folder / "report" / "index.html"
    write_atomic(target, page.encode())
    return target
