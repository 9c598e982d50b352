"""Recipes of ours written as mergekit reads them, where mergekit can say what they say; else refused by key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lmfuse.errors import RecipeError
from lmfuse.merge_recipe import MergeRecipe, Override, Slice, parameters_of
from lmfuse.mergekit_yaml.names import REQUIRED, TRANSLATIONS, Parameter, Translation
from lmfuse.yaml_strict import dump_yaml

Entries = list[dict[str, Any]]


def write_mergekit(recipe: MergeRecipe) -> str:
    """Return a merge as YAML for mergekit 0.1.5. Arithmetic is asked for in float32, which is what ours is in.

    Read back it is a recipe that gives every tensor the same numbers. Names that were given to models are not kept.

    Raises:
        RecipeError: mergekit cannot say it; names what.
    """
    return dump_yaml(_Writer(recipe).values())


class _Writer:
    def __init__(self, recipe: MergeRecipe) -> None:
        self.recipe, self.translation = recipe, _translation(recipe)
        self.places = {each.label: _reference(each.model, each.revision) for each in recipe.models}
        self.base = recipe.base or (recipe.labels[0] if self.translation.needs_base else None)
        if recipe.max_shard_gb != MergeRecipe.model_fields["max_shard_gb"].default:
            raise _refusal("max_shard_gb", "mergekit takes it from the command line (--out-shard-size)")
        for where, overrides in _override_lists(recipe):
            for i, each in enumerate(overrides):
                if each.layers is not None:
                    raise _refusal(f"{where}.{i}.layers", "mergekit has filters and gradients, but no choice of layers")

    def values(self) -> dict[str, Any]:
        recipe = self.recipe
        values: dict[str, Any] = {"merge_method": self.translation.theirs}
        if self.base is not None:
            values["base_model"] = self.places[self.base]
        if recipe.slices:
            values["slices"] = [self._slice(part) for part in recipe.slices]
        else:
            values["models"] = [{"model": self.places[label]} | self._own(label, None) for label in recipe.labels]
        values |= _parameters({each.theirs: self._shared(each) for each in self._known()})
        if recipe.dtype is not None:
            values |= {"dtype": "float32", "out_dtype": recipe.dtype}
        if recipe.tokenizer is not None:
            values["tokenizer_source"] = self.places.get(recipe.tokenizer, recipe.tokenizer)
        return values | ({"chat_template": recipe.chat_template} if recipe.chat_template else {})

    def _known(self) -> list[Parameter]:
        return [each for each in self.translation.parameters if each.ours]

    def _slice(self, part: Slice) -> dict[str, Any]:
        sources = [
            {"model": self.places[source.model], "layer_range": list(source.layers)} | self._own(source.model, part)
            for source in part.sources
        ]
        return {"sources": sources} | _parameters({each.theirs: _entries(part.overrides, each, None) for each in self._known()})

    def _own(self, label: str, part: Slice | None) -> dict[str, Any]:
        """Return the parameters of one model: what is said of it alone, and its number in a list of one per source."""
        sources = self.recipe.sources_of(part)
        if label not in sources:
            return {}
        overrides, found = (self.recipe.overrides if part is None else part.overrides), dict[str, Entries]()
        for each in (each for each in self._known() if self._listed(each)):
            entries = _entries(overrides, each, label)
            value = getattr(self.recipe.method, each.ours)
            if isinstance(value, tuple) and not _complete(entries):  # mergekit has no list at the top: what comes before it comes along
                entries += _entries((*(part.overrides if part else ()), *self.recipe.overrides), each, None)
                entries += [] if _complete(entries) else [{"value": value[sources.index(label)]}]
            found[each.theirs] = entries
        return _parameters(found)

    def _listed(self, parameter: Parameter) -> bool:
        return parameters_of(self.recipe.method.name)[parameter.ours]

    def _shared(self, parameter: Parameter) -> Entries:
        entries, value = _entries(self.recipe.overrides, parameter, None), getattr(self.recipe.method, parameter.ours)
        if isinstance(value, tuple):
            return []  # said of each model
        known = value == parameter.default and parameter.default is not REQUIRED
        return entries if known or _complete(entries) else [*entries, {"value": _said(parameter, value)}]


def _translation(recipe: MergeRecipe) -> Translation:
    """Return what mergekit calls the recipe's method with these settings."""
    method = recipe.method
    candidates = [each for each in TRANSLATIONS.values() if each.ours == method.name]
    if not candidates:
        raise _refusal("method.name", f"mergekit has no {method.name}")
    fitting = [each for each in candidates if all(getattr(method, name) == value for name, value in each.fixed.items())]
    if not fitting:
        name, value = next((name, value) for name, value in candidates[0].fixed.items() if getattr(method, name) != value)
        raise _refusal(f"method.{name}", f"mergekit has only {value!r} (got {getattr(method, name)!r})")
    found = fitting[0]
    said = {*found.fixed, *(each.ours for each in found.parameters)}
    for each in dataclasses.fields(method):
        if each.name not in (*said, "name") and (value := getattr(method, each.name)) != each.default:
            raise _refusal(f"method.{each.name}", f"mergekit's {found.theirs} has no such parameter (got {value!r})")
    for where, overrides in _override_lists(recipe):
        for i, override in enumerate(overrides):
            if override.parameter not in {parameter.ours for parameter in found.parameters}:
                raise _refusal(f"{where}.{i}.parameter", f"mergekit's {found.theirs} has no {override.parameter} for single tensors")
    return found


def _override_lists(recipe: MergeRecipe) -> list[tuple[str, Sequence[Override]]]:
    return [("overrides", recipe.overrides), *((f"slices.{i}.overrides", part.overrides) for i, part in enumerate(recipe.slices))]


def _reference(model: str, revision: str | None) -> str:
    if "+" in model or "@" in model:
        raise _refusal("models", f"mergekit reads + and @ in {model!r} as adapter and revision")
    return f"{model}@{revision}" if revision else model


def _entries(overrides: Sequence[Override], parameter: Parameter, label: str | None) -> Entries:
    """Return the overrides of a parameter for one model, or for all, as mergekit's conditions."""
    chosen = [each for each in overrides if (each.parameter, each.model) == (parameter.ours, label)]
    return [
        ({"filter": each.filter} if each.filter else {})
        | {"value": _said(parameter, each.value) if each.gradient is None else list(each.gradient)}
        for each in chosen
    ]


def _said(parameter: Parameter, value: Any) -> Any:
    """Return a value in mergekit's words."""
    theirs = {ours: word for word, ours in parameter.words.items()}
    if theirs and value not in theirs:
        raise _refusal(parameter.ours, f"mergekit has no {value!r} (only {', '.join(map(str, theirs))})")
    return theirs.get(value, value)


def _complete(entries: Entries) -> bool:
    return any("filter" not in entry for entry in entries)


def _parameters(entries: Mapping[str, Entries]) -> dict[str, Any]:
    short = {name: found[0]["value"] if len(found) == 1 and "filter" not in found[0] else found for name, found in entries.items() if found}
    return {"parameters": short} if short else {}


def _refusal(where: str, what: str) -> RecipeError:
    return RecipeError(f"{where} cannot be written for mergekit: {what}", "keep the recipe in our own form")
