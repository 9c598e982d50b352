"""The report's plots, as SVG text that goes into the page itself.

Colours are those of Okabe and Ito (2008), which people with colour-blindness can tell apart; shapes repeat what colours say.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("svg")  # no display is needed, wherever this runs

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6b6b6b", "#000000")
MARKERS = "osD^vPX*"
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "svg.hashsalt": "lmfuse", "axes.grid": True,
         "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True}  # fmt: skip


def as_svg(figure: Figure) -> str:
    """Return a figure as SVG text, and close it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def arms_by_domain(report: Mapping[str, Any], measure: str = "bits per byte, lower is better") -> str:
    """Return a dot plot: what each arm was measured at, one column a domain."""
    domains = [*report["domains"], "macro"]
    arms = list(report["arms"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(domains), figsize=(2.6 * len(domains), 0.32 * len(arms) + 1.1), sharey=True, squeeze=False)
        for column, domain in enumerate(domains):
            axis = axes[0][column]
            for row, arm in enumerate(arms):
                axis.plot(report["arms"][arm][domain], row, MARKERS[row % 8], color=COLOURS[row % 8], markersize=7)
            axis.set(title=domain, yticks=range(len(arms)), yticklabels=arms)
            axis.margins(x=0.15)
        axes[0][0].invert_yaxis()
        figure.supxlabel(measure, fontsize=10)
        figure.tight_layout()
        return as_svg(figure)


def intervals(comparisons: Sequence[Mapping[str, Any]], name: str = "bits per byte", sign: int = -1, things: str = "documents") -> str:
    """Return a forest plot of paired differences with 95% intervals.

    Args:
        comparisons: of a report.
        name: of the measure.
        sign: -1 where less is better: left of zero the first model is better then; 1 where more is.
        things: what the interval is over.
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.5, 0.34 * len(comparisons) + 1.0))
        for row, found in enumerate(comparisons):
            low, high = found["ci95"]
            kind = 0 if low <= 0 <= high else 1 if (low > 0) == (sign > 0) else -1
            colour = {1: COLOURS[2], -1: COLOURS[1], 0: COLOURS[6]}[kind]
            axis.plot([low, high], [row, row], color=colour, linewidth=2)
            axis.plot(found["mean"], row, {1: "o", -1: "X", 0: "s"}[kind], color=colour)
        axis.axvline(0, color="black", linewidth=1)
        labels = [f"{found['a']} - {found['b']}, {found['domain']}" for found in comparisons]
        axis.set(yticks=range(len(comparisons)), yticklabels=labels, xlabel=f"difference in {name}, 95% interval over {things}")
        axis.invert_yaxis()
        return as_svg(figure)


def curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the training curves: plain cross-entropy on ground truth by step, one line an arm."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.5, 3.4))
        for index, (arm, log) in enumerate(logs.items()):
            points = [(entry["step"], entry["clm_nats"]) for entry in log if "clm_nats" in entry]
            axis.plot(
                *zip(*points, strict=True), label=arm, color=COLOURS[index % 8], marker=MARKERS[index % 8], markersize=3, linewidth=1.2
            )
        axis.set(xlabel="step", ylabel="cross-entropy, nats per token")
        axis.legend(frameon=False)
        return as_svg(figure)


def sources(report: Mapping[str, Any]) -> str:
    """Return bars for each source: coverage, lost mass and win rate, as shares."""
    names = list(report["sources"])
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.5, 0.7 * len(names) + 1.0))
        for offset, (key, label) in enumerate((("coverage", "coverage"), ("win_rate", "taught by it"), ("lost_mass", "lost mass"))):
            values = [report["sources"][name][key] for name in names]
            bars = axis.barh(
                [row + 0.26 * (offset - 1) for row in range(len(names))], values, height=0.24, color=COLOURS[offset], label=label
            )
            axis.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
        axis.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 1.18))
        axis.invert_yaxis()
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
        return as_svg(figure)


def modes(answers: Mapping[str, Any]) -> str:
    """Return bars for each candidate: how often it is the best one by the ground truth, and by what it says."""
    names = list(answers["by_source"])
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.5, 0.6 * len(names) + 1.0))
        shown = (("win_rate_truth", "least surprised by the ground truth"), ("win_rate_answers", "best answer"))
        for offset, (key, label) in enumerate(shown):
            values = [answers["by_source"][name][key] or 0.0 for name in names]
            bars = axis.barh(
                [row + 0.36 * (offset - 0.5) for row in range(len(names))], values, height=0.33, color=COLOURS[offset], label=label
            )
            axis.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
        axis.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 1.18), xlabel="share of the questions")
        axis.invert_yaxis()
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=2)
        return as_svg(figure)
