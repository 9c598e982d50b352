"""A merge of weights as data: which models, by which method, with which numbers for which tensors. Read from YAML and written back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lmfuse.catalogue import MergeMethod
from lmfuse.errors import RecipeError, did_you_mean
from lmfuse.merge.family import Merge
from lmfuse.merge.informed import Informed
from lmfuse.merge_recipe.informed import check_statistics
from lmfuse.models import ModelSpec
from lmfuse.schema_errors import problems
from lmfuse.yaml_strict import dump_yaml

Scalar = bool | int | float | str
HINT = "docs/merge.md explains every key"
Layers = tuple[int, int]  # first, and the one behind the last


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MergeModel(_Section):
    """One model of a merge; its folder or hub name alone will do.

    Attributes:
        model: a folder (relative to the recipe's), or a name on the Hugging Face hub.
        revision: a branch, tag or commit on the hub.
        name: how the recipe and the reports call it; by default the last part of ``model``.
    """

    model: str = Field(min_length=1)
    revision: str | None = None
    name: str = ""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @property
    def label(self) -> str:
        """Return the name in reports.

        >>> MergeModel(model="org/base-7b").label
        'base-7b'
        """
        return self.spec.label

    @property
    def spec(self) -> ModelSpec:
        """Return what opens it."""
        return ModelSpec(self.model, self.revision, name=self.name)


class Override(_Section):
    """Another value of one parameter for some tensors. Of the overrides for a tensor the first of the closest kind holds.

    Those of a slice come before the recipe's, and within both those for one model before those for all.

    Attributes:
        parameter: of the method.
        model: only this source's number, of a parameter that has one per source.
        filter: only tensors with this text in their name: for a parameter per source the name in that source, else in the result.
        layers: only layers ``[first, last)`` of the result.
        value: the value.
        gradient: instead of one value several, spread evenly over the layers (of the slice) and interpolated linearly between;
            tensors outside all layers have the first.
    """

    parameter: str
    model: str | None = None
    filter: str | None = Field(None, min_length=1)
    layers: Layers | None = None
    value: Scalar | None = None
    gradient: tuple[float, ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_value(self) -> Override:
        if (self.value is None) == (self.gradient is None):
            raise ValueError("give either value or gradient")
        if self.filter == "*":
            raise ValueError("filter: leave it out to mean every tensor")
        _check_layers(self.layers)
        return self


class SliceSource(_Section):
    """Layers ``[first, last)`` of one model."""

    model: str
    layers: Layers

    @field_validator("layers")
    @classmethod
    def _in_order(cls, layers: Layers) -> Layers:
        _check_layers(layers)
        return layers


def _closest_first(overrides: tuple[Override, ...]) -> tuple[Override, ...]:
    """Put overrides into the order in which they are looked at, so that recipes that mean the same are equal."""
    return tuple(sorted(overrides, key=lambda each: (each.parameter, each.model is None, each.model or "")))


Overrides = Annotated[tuple[Override, ...], AfterValidator(_closest_first)]


class Slice(_Section):
    """Some layers of the result: made of as many layers of each source, one by one."""

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    overrides: Overrides = ()

    @model_validator(mode="after")
    def _same_length(self) -> Slice:
        counts = [source.layers[1] - source.layers[0] for source in self.sources]
        if len(set(counts)) > 1:
            raise ValueError(f"its sources have {', '.join(map(str, counts))} layers, expected the same number")
        names = [source.model for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("a model stands twice in one slice")
        return self

    @property
    def num_layers(self) -> int:
        """Return how many layers of the result it is."""
        return self.sources[0].layers[1] - self.sources[0].layers[0]


class MergeRecipe(_Section):
    """One merge.

    Attributes:
        models: in the order that matters where order matters. Numbers per source stand in this order, the base left out where the
            method takes differences from it.
        base: name of the model from which differences are taken (or, for ``slerp``, at which it starts); config and tokenizer are its
            (by default the first model's).
        method: how several tensors become one.
        dtype: of the result; by default each tensor keeps that of its sources. Arithmetic is in float32 whatever it is.
        tokenizer: by default all models must have the same; ``union`` unites vocabularies that differ by added tokens or padding,
            ``base`` or a model's name takes that model's vocabulary.
        chat_template: by default the tokenizer's own; ``auto`` asks for the one that most models have, and stops if that is another.
        overrides: other numbers for some models, tensors or layers.
        slices: the result's layers from first to last, each a run of layers of some models; by default all layers of all models.
            What stands before the layers is made like the first slice, what stands behind like the last.
        max_shard_gb: the most 10^9 bytes of tensors in one weight file, unless one tensor is larger.
        statistics: for ``fisher`` and ``reg_mean``, the folders that ``lmfuse statistics`` wrote, one for each source.
    """

    models: tuple[MergeModel, ...] = Field(min_length=1)
    base: str | None = None
    method: MergeMethod
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    tokenizer: str | None = None
    chat_template: Literal["auto"] | None = None
    overrides: Overrides = ()
    slices: tuple[Slice, ...] = ()
    max_shard_gb: float = Field(5.0, gt=0, allow_inf_nan=False)
    statistics: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> MergeRecipe:
        labels = self.labels
        for each in self.models:
            if each.label in ("", ".."):
                raise ValueError(f"models: {each.model!r} is no name; write {{model: {each.model}, name: ...}}")
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"models: {label!r} stands twice; give each model its own name")
        places = [(each.model, each.revision) for each in self.models]
        for place in places:
            if places.count(place) > 1:
                raise ValueError(f"models: {place[0]!r} stands twice; name it once")
        if self.base is not None and self.base not in labels:
            raise ValueError(f"base: {did_you_mean(self.base, labels)}")
        if self.tokenizer not in (None, "base", "union", *labels):
            raise ValueError(f"tokenizer: {did_you_mean(str(self.tokenizer), ['base', 'union', *labels])}")
        if self.tokenizer in ("base", "union") and self.tokenizer in labels and self.tokenizer != self.donor:
            raise ValueError(f"tokenizer: {self.tokenizer!r} is also the name of a model; give that model another name")
        if self.statistics:
            check_statistics(self)
        _check_slices(self)
        _check_sources(self)
        _check_overrides(self)
        return self

    @property
    def labels(self) -> list[str]:
        """Return the models' names."""
        return [each.label for each in self.models]

    @property
    def donor(self) -> str:
        """Return the model whose configuration the result has."""
        return self.base or self.labels[0]

    def sources_of(self, part: Slice | None = None) -> list[str]:
        """Return the models that a slice (or without slices the whole) is made of; a base that differences are taken from is no source.

        The base is the first source of ``slerp``.
        """
        names = [source.model for source in part.sources] if part is not None else self.labels
        if takes_base(self.method):
            return [name for name in names if name != self.base]
        return sorted(names, key=lambda name: name != self.base) if self.method.name == "slerp" else names

    def to_yaml(self) -> str:
        """Return the recipe as YAML; what it does not say is left out."""
        return dump_yaml(self.model_dump(mode="json", exclude_defaults=True) | {"method": _all_of(self.method)})


def _all_of(method: Merge) -> dict[str, Any]:
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def takes_base(method: Merge) -> bool:
    """Return whether a method sees the base apart from the sources."""
    return method.needs_base or getattr(method, "name", "") == "multislerp"


def method_named(name: str) -> type[Merge]:
    """Return the class of a method of the catalogue."""
    return next(each for each in get_args(get_args(MergeMethod)[0]) if each.name == name)


@cache
def parameters_of(name: str) -> Mapping[str, bool]:
    """Return a method's parameters, and whether each has a number for every source."""
    method = method_named(name)
    hints = get_type_hints(method)
    kinds = {f.name: hints[f.name] for f in dataclasses.fields(method) if f.name != "name"}
    return {name: any(get_origin(kind) is tuple for kind in get_args(hint)) for name, hint in kinds.items()}


def _check_layers(layers: Layers | None) -> None:
    if layers is not None and not 0 <= layers[0] < layers[1]:
        raise ValueError(f"layers: got {list(layers)}, expected [first, last) with 0 <= first < last")


def _check_slices(recipe: MergeRecipe) -> None:
    for i, part in enumerate(recipe.slices):
        for j, source in enumerate(part.sources):
            if source.model not in recipe.labels:
                raise ValueError(f"slices.{i}.sources.{j}.model: {did_you_mean(source.model, recipe.labels)}")


def _check_sources(recipe: MergeRecipe) -> None:
    """Refuse too few or too many sources, a base that is missing, and another count of numbers than of sources."""
    for where, part in parts(recipe):
        sources = recipe.sources_of(part)
        present = recipe.labels if part is None else [source.model for source in part.sources]
        method = recipe.method
        check = method.check_sources if isinstance(method, Informed) and recipe.statistics else method.check
        try:
            check(len(sources), recipe.base in present)
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None
        for name in (name for name, per_source in parameters_of(recipe.method.name).items() if per_source):
            value = getattr(recipe.method, name)
            if isinstance(value, tuple) and len(value) != len(sources):
                named = ", ".join(sources)
                raise ValueError(f"{where}method.{name}: {len(value)} numbers for {len(sources)} sources ({named})")


def parts(recipe: MergeRecipe) -> Iterator[tuple[str, Slice | None]]:
    """Yield the slices, each with the beginning of a message about it; without slices one None."""
    yield from ((f"slices.{i}: ", part) for i, part in enumerate(recipe.slices)) if recipe.slices else [("", None)]


def _check_overrides(recipe: MergeRecipe) -> None:
    known = parameters_of(recipe.method.name)
    lists = [("overrides", recipe.overrides, None), *((f"slices.{i}.overrides", s.overrides, s) for i, s in enumerate(recipe.slices))]
    for where, overrides, part in lists:
        for i, each in enumerate(overrides):
            if each.parameter not in known:
                raise ValueError(f"{where}.{i}.parameter: {recipe.method.name} has no such: {did_you_mean(each.parameter, known)}")
            if each.model is None:
                continue
            if not known[each.parameter]:
                raise ValueError(f"{where}.{i}.model: {each.parameter} is one for all sources; leave model out")
            if part is None and recipe.slices:
                raise ValueError(f"{where}.{i}.model: with slices, what is for one model stands in its slice")
            if each.model not in recipe.sources_of(part):
                raise ValueError(f"{where}.{i}.model: {did_you_mean(each.model, recipe.sources_of(part))}")


def parse_merge_recipe(value: Any, name: str = "recipe") -> MergeRecipe:
    """Validate plain values as a merge recipe.

    Raises:
        RecipeError: every problem in one line, the first one first, with suggestions for unknown names.
    """
    if not isinstance(value, dict):
        what = "nothing" if value is None else "a list" if isinstance(value, list) else f"{value!r:.60}"
        raise RecipeError(f"{name}: a recipe is a mapping of keys to values, got {what}", hint=HINT)
    try:
        return MergeRecipe.model_validate(value)
    except ValidationError as error:
        raise RecipeError(f"{name}: {problems(error, MergeRecipe)}", hint=HINT) from None
