"""A method's numbers for one tensor: filters, layers and gradients of a merge recipe, resolved."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pydantic import ValidationError

from lmfuse.errors import RecipeError
from lmfuse.merge.family import Merge
from lmfuse.merge_recipe import HINT, MergeRecipe, Override, Scalar, Slice, parameters_of


@dataclass(frozen=True)
class Place:
    """Where a tensor of the result stands.

    Attributes:
        name: in the result.
        names: its name in each source, by the source's label.
        layer: of the result; None outside all layers.
        share: how far down its slice the layer is, from 0 to 1; 0 outside all layers, 1 for a slice of one layer.
    """

    name: str
    names: Mapping[str, str]
    layer: int | None = None
    share: float = 0.0


def method_at(recipe: MergeRecipe, part: Slice | None, place: Place) -> Merge:
    """Return the recipe's method with the numbers that hold for one tensor.

    Raises:
        RecipeError: the method does not take such a value.
    """
    found: dict[str, Any] = {}
    sources = recipe.sources_of(part)
    for name, per_source in parameters_of(recipe.method.name).items():
        default = getattr(recipe.method, name)
        if per_source:
            values = _per_source(recipe, part, place, sources, name)
            if any(value is not None for value in values):
                defaults = default if isinstance(default, tuple) else (default,) * len(sources)
                found[name] = tuple(own if value is None else value for value, own in zip(values, defaults, strict=True))
        else:
            value = lookup(_scopes(recipe, part, name), place.name, place)
            if value is not None:
                found[name] = value
    try:
        return type(recipe.method)(**(_fields(recipe.method) | found)) if found else recipe.method
    except ValidationError as error:
        problem = error.errors()[0]
        where, what = ".".join(map(str, problem["loc"])), str(problem["msg"]).removeprefix("Value error, ")
        raise RecipeError(f"{place.name}: {recipe.method.name} {where}: {what} (got {problem.get('input')!r})", hint=HINT) from None


def _fields(method: Merge) -> dict[str, Any]:
    return {each.name: getattr(method, each.name) for each in dataclasses.fields(method)}


def _per_source(recipe: MergeRecipe, part: Slice | None, place: Place, sources: Sequence[str], name: str) -> list[Scalar | None]:
    return [lookup(_scopes(recipe, part, name, source), place.names[source], place) for source in sources]


def _scopes(recipe: MergeRecipe, part: Slice | None, parameter: str, model: str | None = None) -> Iterator[Override]:
    """Yield the overrides of a parameter, the closest first; those for one model only where that model is asked about."""
    for overrides in (() if part is None else part.overrides, recipe.overrides):
        own = (each for each in overrides if model is not None and each.model == model)
        everyone = (each for each in overrides if each.model is None)
        yield from (each for each in chain(own, everyone) if each.parameter == parameter)


def lookup(overrides: Iterable[Override], name: str, place: Place) -> Scalar | None:
    """Return the value of the first override that speaks of a tensor, or None."""
    for each in overrides:
        if speaks_of(each, name, place):
            return each.value if each.gradient is None else interpolated(each.gradient, place.share)
    return None


def speaks_of(override: Override, name: str, place: Place) -> bool:
    """Return whether an override is for a tensor of this name at this place."""
    if override.filter is not None and override.filter not in name:
        return False
    return override.layers is None or (place.layer is not None and override.layers[0] <= place.layer < override.layers[1])


def interpolated(gradient: Sequence[float], share: float) -> float:
    """Return the value at a share of the way through numbers that stand at equal distances.

    >>> [interpolated((0.0, 1.0, 0.5), share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.5, 1.0, 0.75, 0.5]
    """
    scaled = share * (len(gradient) - 1)
    low = int(scaled)
    high = min(low + 1, len(gradient) - 1)
    return (1 - (scaled - low)) * gradient[low] + (scaled - low) * gradient[high]
