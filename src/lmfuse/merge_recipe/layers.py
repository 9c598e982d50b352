"""Which tensors of which models a tensor of the result is made of: all layers one to one, or layers put together from slices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lmfuse.errors import RecipeError
from lmfuse.merge_recipe import MergeRecipe, Slice
from lmfuse.merge_recipe.values import Place

_LAYER = re.compile(r"((?:[^.]+\.)*?)(\d+)(\..+)")
_BEFORE = re.compile(r"emb(?!ed_out)|wte|wpe|relative_pe")  # what comes before the layers is called so in every architecture


@dataclass(frozen=True)
class Origin:
    """Where a tensor of the result comes from: its slice, if there are any, and its name in each of the slice's models."""

    part: Slice | None
    place: Place


def split_name(name: str) -> tuple[str, int, str] | None:
    """Return what stands before a layer's number, the number, and what stands behind; None for a tensor outside all layers.

    >>> split_name("model.layers.3.mlp.experts.7.w1.weight"), split_name("lm_head.weight")
    (('model.layers.', 3, '.mlp.experts.7.w1.weight'), None)
    """
    found = _LAYER.fullmatch(name)
    return (found[1], int(found[2]), found[3]) if found else None


def depths(names: Iterable[str]) -> Counter[str]:
    """Return how many layers there are, by what stands before their number."""
    found: Counter[str] = Counter()
    for before, layer, _ in filter(None, map(split_name, names)):
        found[before] = max(found[before], layer + 1)
    return found


def origins(recipe: MergeRecipe, names: Mapping[str, tuple[str, ...]]) -> Iterator[Origin]:
    """Yield every tensor of the result.

    Args:
        recipe: the merge.
        names: of each model's tensors, by label; of the donor of the configuration those that a result without slices has.

    Raises:
        RecipeError: a slice names layers that a model does not have.
    """
    if recipe.slices:
        yield from _sliced(recipe, names)
        return
    counts = depths(names[recipe.donor])
    for name in names[recipe.donor]:
        found = split_name(name)
        layer, share = (found[1], _share(found[1], counts[found[0]])) if found else (None, 0.0)
        yield Origin(None, Place(name, dict.fromkeys(recipe.labels, name), layer, share))


def _share(index: int, count: int) -> float:
    return index / (count - 1) if count > 1 else 1.0


def _sliced(recipe: MergeRecipe, names: Mapping[str, tuple[str, ...]]) -> Iterator[Origin]:
    before = _only_stack(recipe, names)
    outside = [name for name in names[recipe.donor] if split_name(name) is None]
    for name in (name for name in outside if _BEFORE.search(name)):
        yield _outside(recipe.slices[0], name)
    layer = 0
    for part in recipe.slices:
        for step in range(part.num_layers):
            numbers = {source.model: source.layers[0] + step for source in part.sources}
            first = part.sources[0].model
            for name in names[first]:
                found = split_name(name)
                if found is not None and found[1] == numbers[first]:
                    of_models = {label: f"{before}{number}{found[2]}" for label, number in numbers.items()}
                    yield Origin(part, Place(f"{before}{layer}{found[2]}", of_models, layer, _share(step, part.num_layers)))
            layer += 1
    for name in (name for name in outside if not _BEFORE.search(name)):
        yield _outside(recipe.slices[-1], name)


def _outside(part: Slice, name: str) -> Origin:
    return Origin(part, Place(name, {source.model: name for source in part.sources}))


def _only_stack(recipe: MergeRecipe, names: Mapping[str, tuple[str, ...]]) -> str:
    """Return what stands before every layer's number, once all slices are known to name layers that are there."""
    counts = {label: depths(names[label]) for label in recipe.labels}
    stacks = sorted({before for found in counts.values() for before in found})
    if len(stacks) != 1:
        raise RecipeError(f"slices: {len(stacks)} stacks of layers found ({', '.join(stacks)}), expected one", "merge whole models instead")
    for i, part in enumerate(recipe.slices):
        for j, source in enumerate(part.sources):
            depth = counts[source.model][stacks[0]]
            if source.layers[1] > depth:
                raise RecipeError(
                    f"slices.{i}.sources.{j}: layers {source.layers[0]} to {source.layers[1]} of {source.model}, which has {depth}",
                    "the second number is the one behind the last layer",
                )
    return stacks[0]
