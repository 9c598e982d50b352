"""Plots of a search: scores by generation, the winner's family tree, and what it has of each parent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from lmfuse.report.plots import COLOURS, MARKERS, STYLE, as_svg

MOST_LABELS = 60  # rows of a heat map that can still be read


def generations(steps: Sequence[Sequence[Any]], parents: Mapping[str, float], name: str, sign: int) -> str:
    """Return the score of every child by its generation, and the best of the population after each.

    Args:
        steps: generation, slot, score, fate and the slot's best score afterwards, of every child.
        parents: their scores, by label.
        name: of the measure.
        sign: -1 where scores are negative values of it.
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.5, 3.6))
        for accepted, colour, marker, label in ((False, COLOURS[6], "x", "not accepted"), (True, COLOURS[2], "o", "accepted")):
            points = [(g + 1, sign * score) for g, _, score, fate, _ in steps if score is not None and (fate == "accepted") == accepted]
            axis.plot(*(zip(*points, strict=True) if points else ([], [])), marker, color=colour, markersize=4, label=label)
        best = max(parents.values(), default=None)
        line = [] if best is None else [(0, sign * best)]
        for generation in sorted({step[0] for step in steps}):
            reached = [step[4] for step in steps if step[0] == generation and step[4] is not None]
            best = max([*reached, *([] if best is None else [best])], default=None)
            line += [] if best is None else [(generation + 1, sign * best)]
        axis.plot(*(zip(*line, strict=True) if line else ([], [])), color=COLOURS[0], linewidth=1.5, label="best so far")
        for index, (label, value) in enumerate(parents.items()):
            axis.plot(0, sign * value, MARKERS[index % 8], color=COLOURS[index % 8], markersize=6, label=label)
        axis.set(xlabel="generation (0: the parents)", ylabel=f"{name}, on the first split")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
        return as_svg(figure)


def family(tree: Sequence[Mapping[str, Any]]) -> str:
    """Return the winner's forebears: generations from left to right, parents by name, lines from each member to what it was bred from."""
    places: dict[str, tuple[float, float]] = {}
    founders = [each for each in tree if each["parent"] is not None]
    others = [each for each in tree if each["parent"] is None]
    for row, each in enumerate(founders):
        places[each["genome"]] = (0, row)
    for row, each in enumerate(others):
        born = each.get("generation")
        places[each["genome"]] = (0 if born is None else born + 1, each.get("slot", len(founders) + row))
    with plt.rc_context(STYLE):
        height = 0.5 * (1 + max((y for _, y in places.values()), default=1)) + 1.2
        figure, axis = plt.subplots(figsize=(7.5, height))
        for each in tree:
            x, y = places[each["genome"]]
            for other in each["of"]:
                if other in places:
                    axis.plot([x, places[other][0]], [y, places[other][1]], color=COLOURS[6], linewidth=0.8, zorder=1)
        for each in tree:
            x, y = places[each["genome"]]
            winner = each is tree[0]
            colour = COLOURS[1] if winner else COLOURS[0] if each["parent"] is None else COLOURS[2]
            axis.plot(x, y, "*" if winner else "o", color=colour, markersize=13 if winner else 6, zorder=2)
            if each["parent"] is not None:
                axis.annotate(each["parent"], (x, y), xytext=(-8, 0), textcoords="offset points", ha="right", va="center", fontsize=8)
        axis.set(xlabel="generation (0: the parents)", yticks=[])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.margins(x=0.25, y=0.15)
        axis.invert_yaxis()
        return as_svg(figure)


def gene_map(genes: Mapping[str, Any]) -> str:
    """Return a heat map: a row for each tensor or layer, a column for each parent."""
    groups, parents, values = genes["groups"], genes["parents"], genes["values"]
    with plt.rc_context(STYLE | {"axes.grid": False}):
        shown = len(groups) <= MOST_LABELS
        height = 0.24 * len(groups) + 1.4 if shown else 9.0
        figure, axis = plt.subplots(figsize=(1.6 + 0.9 * len(parents) + (3 if shown else 0), height))
        image = axis.imshow(values, aspect="auto", cmap="cividis")
        axis.set(xticks=range(len(parents)), yticks=range(len(groups)) if shown else [])
        axis.set_xticklabels(parents, rotation=30, ha="right", fontsize=8)
        if shown:
            axis.set_yticklabels(groups, fontsize=7)
        figure.colorbar(image, ax=axis, fraction=0.05, pad=0.03)
        return as_svg(figure)
