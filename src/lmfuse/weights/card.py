"""The card of a merged model: what it is made of, under which licences and whether they agree, what was noticed, how to make it again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lmfuse import __version__
from lmfuse.model_files import HUB_NAME
from lmfuse.weights.plan import MergePlan, UnitedVocabulary

SAME_NAME = {"apache license": "apache-2.0", "mit license": "mit", "the mit license (mit)": "mit"}  # how LICENSE files begin
FREE = re.compile(r"^(apache-2\.0|mit|bsd.*|isc|cc0-1\.0|cc-by-\d.*|unlicense|wtfpl)$")
NON_COMMERCIAL = re.compile(r"(^|-)nc(-|$)|non-?commercial|research|academic")
NO_DERIVATIVES = re.compile(r"(^|-)nd(-|$)|no-?deriv")
SAME_AGAIN = re.compile(r"^(a|l)?gpl|^cc-by(-nc)?-sa|^eupl|^mpl|^osl")


COUNTED = {  # what a counter means, for so many of something
    "fisher_without_statistics": "{} had no diagonal of Fisher information: averaged",
    "karcher_no_direction": "{} had no mean direction: the search for their mean began at the first source",
    "karcher_not_converged": "{} had a mean that still moved after the last iteration",
    "karcher_zero_tensor": "{} held zeros only: averaged",
    "model_stock_no_angle": "{} had a source that equals the base: its cosines count as 0",
    "model_stock_opposite": "{} had changes in opposite directions: they stay as in the base",
    "multislerp_no_direction": "{} had no mean direction: averaged",
    "reg_mean_without_statistics": "{} had no Gram matrices, as nothing but linear layers has: averaged",
    "sce_nothing_selected": "{} were the same in all sources: they stay as in the base",
    "sce_uniform_weights": "{} gave all sources the same weight, as no selected change told them apart",
    "select_by_digits": "{} took three more looks to select from; the result is exact all the same",
    "slerp_opposite": "{} pointed opposite ways: averaged along the straight line",
    "slerp_parallel": "{} pointed the same way: averaged along the straight line, which is the same there",
    "slerp_zero_tensor": "{} held zeros only in one source: averaged along the straight line",
    "varm_no_change": "{} were the base's in all sources, which weigh the same then",
}


def sentence(counter: str, count: int) -> str:
    """Return what a counter of fallbacks says.

    >>> sentence("karcher_zero_tensor", 2)
    '2 units of tensors held zeros only: averaged (karcher_zero_tensor)'
    """
    if counter == "rows_without_base":
        return f"{count:,} rows are of tokens that the base lacks: each is the mean of the sources that have it (rows_without_base)"
    return f"{COUNTED.get(counter, '{} took a fallback').format(f'{count:,} units of tensors')} ({counter})"


def licence_name(text: str) -> str:
    """Return a licence as people write it in cards, from what a folder says.

    >>> licence_name("Apache License"), licence_name("MIT"), licence_name("")
    ('apache-2.0', 'mit', '')
    """
    name = " ".join(text.lower().split())
    return SAME_NAME.get(name, name)


def licence_report(licences: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the licence that all models share, or ``""``, and sentences on what stands against using or sharing the merge.

    Args:
        licences: by model; ``""`` where nothing is said.

    >>> licence_report({"a": "mit", "b": "MIT License"})
    ('mit', [])
    >>> licence_report({"a": "apache-2.0", "b": "cc-by-nc-4.0"})[1]
    ['cc-by-nc-4.0 (b) forbids commercial use: so does the merge.', 'The licences differ: apache-2.0 (a); cc-by-nc-4.0 (b). All of them bind.']
    """
    names = {label: licence_name(text) for label, text in licences.items()}
    told = [line for name in dict.fromkeys(names.values()) if (line := _terms(name, [label for label in names if names[label] == name]))]
    told += _conflicts(names)
    return (next(iter(names.values())) if len(set(names.values())) == 1 else ""), told


def _terms(name: str, labels: Sequence[str]) -> str:
    """Return what a licence means for a merge of models under it, ``""`` where it allows everything."""
    who = f"{name} ({', '.join(labels)})"
    if not name:
        return f"No licence is named by {', '.join(labels)}: whether the merge may be used or shared is unknown."
    if NO_DERIVATIVES.search(name):
        return f"{who} forbids derived works: the merge may not be shared."
    if NON_COMMERCIAL.search(name):
        return f"{who} forbids commercial use: so does the merge."
    if SAME_AGAIN.search(name):
        return f"{who} wants derived works under itself."
    return "" if FREE.search(name) else f"{who} has terms of its own: read them."


def _conflicts(names: Mapping[str, str]) -> list[str]:
    kinds = sorted(set(names.values()))
    if len(kinds) < 2:
        return []
    again = [name for name in kinds if SAME_AGAIN.search(name)]
    told = []
    if len(again) > 1 or (again and any(NON_COMMERCIAL.search(name) and name not in again for name in kinds)):
        told.append(
            f"They conflict: {' and '.join(again)} cannot be kept together with {', '.join(k or 'unknown' for k in kinds if k not in again[:1])}."
        )
    by_name = "; ".join(f"{kind or 'unknown'} ({', '.join(label for label, name in names.items() if name == kind)})" for kind in kinds)
    return [*told, f"The licences differ: {by_name}. All of them bind."]


def merge_card(plan: MergePlan, name: str, *, warnings: Sequence[str], counters: Mapping[str, int], distances: Mapping[int, float]) -> str:
    """Return README.md of a merged model.

    Args:
        plan: what was merged.
        name: of the result.
        warnings: what may be wrong with it, beside licences.
        counters: how often which fallback was taken.
        distances: for each model that has a base how far it is from it, over the base's size.
    """
    licence, told = licence_report({model.label: model.licence for model in plan.models})
    lines = [
        *_front_matter(plan, licence),
        f"# {name}",
        "",
        f"{len(plan.models)} models merged weight by weight with lmfuse {__version__}.",
        "",
    ]
    lines += ["| model | from | licence | hash | distance from the base |", "|---|---|---|---|---|"]
    for index, model in enumerate(plan.models):
        origin = f"{model.source}{f' @ {model.revision[:12]}' if model.revision else ''}"
        distance = "the base" if index == plan.base else f"{distances[index]:.3g}" if index in distances else ""
        lines.append(f"| {_cell(model.label)} | {_cell(origin)} | {_cell(model.licence or 'unknown')} | `{model.key}` | {distance} |")
    agreed = f"All models are under {licence}." if licence else ""
    lines += ["", "## Licences", "", *([agreed] if agreed else []), *(f"- {_flat(line)}" for line in told), ""]
    if warnings:
        lines += ["## Warnings", "", *(f"- {_flat(line)}" for line in warnings), ""]
    lines += ["## How it was made", "", *(f"- {_flat(line)}" for line in (*plan.notes, *_vocabulary(plan))), ""]
    if counters:
        lines += [*(f"- {sentence(name, count)}" for name, count in sorted(counters.items())), ""]
    return "\n".join([*lines, "```yaml", plan.recipe_text.rstrip().replace("```", "'''"), "```", ""])


def _front_matter(plan: MergePlan, licence: str) -> list[str]:
    hub = list(dict.fromkeys(model.source for model in plan.models if "/" in model.source and HUB_NAME.fullmatch(model.source)))
    lines = ["---", "library_name: transformers", "tags: [lmfuse, merge]"]
    lines += [f"license: {licence}"] if re.fullmatch(r"[a-z0-9.-]+", licence) else []
    lines += ["base_model:", *(f"- {name}" for name in hub), "base_model_relation: merge"] if hub else []
    return [*lines, "---", ""]


def _vocabulary(plan: MergePlan) -> tuple[str, ...]:
    if isinstance(plan.tokenizer_from, UnitedVocabulary):
        return plan.tokenizer_from.report
    return (f"Tokenizer, chat template and generation defaults are those of {plan.models[plan.tokenizer_from].label}.",)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _flat(text).replace("|", "\\|")
