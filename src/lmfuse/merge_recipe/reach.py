"""Overrides that no tensor hears: a misspelt filter would otherwise merge with the wrong numbers, and nobody would know."""

from __future__ import annotations

from collections.abc import Sequence

from lmfuse.errors import RecipeError
from lmfuse.merge_recipe import MergeRecipe, Override, Slice, parameters_of
from lmfuse.merge_recipe.layers import Origin
from lmfuse.merge_recipe.values import speaks_of


def refuse_unheard(recipe: MergeRecipe, origins: Sequence[Origin]) -> None:
    """Refuse overrides that speak of no tensor, and those that come after others which speak of the same tensors.

    Raises:
        RecipeError: names the first.
    """
    _refuse(recipe, "overrides", recipe.overrides, origins)
    for number, part in enumerate(recipe.slices):
        _refuse(recipe, f"slices.{number}.overrides", part.overrides, [each for each in origins if each.part is part])


def _refuse(recipe: MergeRecipe, where: str, overrides: Sequence[Override], origins: Sequence[Origin]) -> None:
    taken: dict[tuple[str, str | None], set[tuple[int, str]]] = {}
    for each in overrides:
        heard = {
            (number, source)
            for number, origin in enumerate(origins)
            for source in _asking(recipe, each, origin.part)
            if speaks_of(each, origin.place.names[source] if source else origin.place.name, origin.place)
        }
        before = taken.setdefault((each.parameter, each.model), set())
        if heard <= before:
            raise RecipeError(f"{where}: {_described(each)} {_why(each, bool(heard))}", "correct it, or leave it out")
        before |= heard


def _asking(recipe: MergeRecipe, override: Override, part: Slice | None) -> list[str]:
    """Return the sources by whose names of tensors an override is looked up; ``""`` stands for the result's names."""
    if not parameters_of(recipe.method.name)[override.parameter]:
        return [""]
    return [source for source in recipe.sources_of(part) if override.model in (None, source)]


def _described(override: Override) -> str:
    said = {"model": override.model, "filter": override.filter, "layers": None if override.layers is None else list(override.layers)}
    chosen = ", ".join(f"{key} {value}" for key, value in said.items() if value is not None)
    return f"{override.parameter}{f' ({chosen})' if chosen else ''}"


def _why(override: Override, heard: bool) -> str:
    return "is never reached: what stands before it holds for the same tensors" if heard else "speaks of no tensor of the result"
