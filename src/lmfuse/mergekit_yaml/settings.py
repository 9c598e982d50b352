"""A value in a mergekit file (a number, a gradient over the layers, values by filter) as overrides of ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isfinite
from typing import Any

from lmfuse.errors import RecipeError, did_you_mean
from lmfuse.merge_recipe import Override, Scalar
from lmfuse.mergekit_yaml.names import Parameter

HINT = "docs/merge.md says what is read of mergekit's files"
_WORDS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}


def refusal(where: str, what: str, hint: str = HINT) -> RecipeError:
    """Return the error to raise: where in the file, and what is wrong there."""
    return RecipeError(f"{where.removesuffix(':')}: {what}", hint)


def at(where: str, key: object) -> str:
    """Return the place of a key.

    >>> at("merge.yml:", "parameters"), at("merge.yml: parameters", "t")
    ('merge.yml: parameters', 'merge.yml: parameters.t')
    """
    return f"{where} {key}" if where.endswith(":") else f"{where}.{key}"


def mapping(value: Any, where: str, known: Collection[str], refused: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a value that must be a mapping of known keys; keys without a value are left out.

    Args:
        value: from the file.
        where: it stands.
        known: keys that are read.
        refused: keys of mergekit that are not, each with the reason.

    Raises:
        RecipeError: it is none, or has another key.
    """
    if not isinstance(value, dict):
        raise refusal(where, f"must be a mapping (got {value!r:.60})")
    for key, inner in value.items():
        if refused and key in refused and inner is not None:
            raise refusal(at(where, key), f"is not supported: {refused[key]}")
        if key not in known and key not in (refused or {}):
            raise refusal(at(where, key), did_you_mean(key, known))
    return {key: inner for key, inner in value.items() if inner is not None}


def read_setting(value: Any, parameter: Parameter, where: str, notes: list[str]) -> tuple[Override, ...]:
    """Return what one value says, in the order in which it is tried; only the last may be for every tensor.

    Raises:
        RecipeError: it is in none of mergekit's forms, or of the wrong type.
    """
    listed = isinstance(value, list) and any(isinstance(each, dict) for each in value)
    conditions = value if listed else [value if isinstance(value, dict) else {"value": value}]
    found: list[Override] = []
    for i, condition in enumerate(conditions):
        place = f"{where}.{i}" if listed else where
        entry = mapping(condition, place, ("filter", "value"))
        if "value" not in entry:
            raise refusal(place, "value is missing")
        if found and found[-1].filter is None:
            notes.append(f"{place}: never reached, what stands before it is for every tensor (as in mergekit)")
            break
        found.append(_override(entry, parameter, f"{place}.value" if isinstance(value, dict) or listed else place))
    return tuple(found)


def _override(entry: Mapping[str, Any], parameter: Parameter, where: str) -> Override:
    chosen, value = entry.get("filter"), entry["value"]
    if chosen is not None and not isinstance(chosen, str):
        raise refusal(where, f"filter must be text (got {chosen!r})")
    common: dict[str, Any] = {"parameter": parameter.ours or parameter.theirs, "filter": None if chosen in ("", "*") else chosen}
    if not isinstance(value, list):
        return Override(**common, value=scalar(value, parameter, where))
    if not value:
        raise refusal(where, "an empty list")
    if parameter.kind is not float:
        raise refusal(where, "a list of values over the layers is read for numbers only")
    return Override(**common, gradient=tuple(scalar(each, parameter, where) for each in value))


def scalar(value: Any, parameter: Parameter, where: str) -> Scalar:
    """Return one value in the parameter's type; text that mergekit would take for a number or a truth value is taken for it, too.

    Raises:
        RecipeError: it is neither.
    """
    if parameter.kind is bool:
        word = str(value).lower()
        if isinstance(value, bool | int | str) and word in _WORDS:
            return parameter.words.get(_WORDS[word], _WORDS[word])
        raise refusal(where, f"must be true or false (got {value!r:.60})")
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else float("nan")
    except ValueError:
        number = float("nan")
    if not isfinite(number) or (parameter.kind is int and not number.is_integer()):
        raise refusal(where, f"must be {'a whole' if parameter.kind is int else 'a'} number (got {value!r:.60})")
    return int(number) if parameter.kind is int else number
