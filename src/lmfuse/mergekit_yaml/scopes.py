"""Where mergekit looks for a parameter, model before slice before whole file, as the fields and overrides of a recipe of ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmfuse.merge_recipe import Override, Scalar, method_named, parameters_of
from lmfuse.mergekit_yaml.names import REQUIRED, Parameter, Translation
from lmfuse.mergekit_yaml.settings import at, refusal

Settings = Mapping[str, tuple[Override, ...]]
Place = tuple[str, str | None]  # where a model is: folder or hub name, and revision


@dataclass(frozen=True)
class Source:
    """One model of a slice: which layers of it, and what is said of it alone."""

    place: Place
    where: str
    layers: tuple[int, int] | None = None
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A slice, or all models from their first layer to their last, and what is said of it."""

    where: str
    sources: tuple[Source, ...]
    settings: Settings = field(default_factory=dict)


def rest(overrides: Sequence[Override]) -> Scalar | None:
    """Return the one value that holds for all tensors for which nothing else is said, or None."""
    return overrides[-1].value if overrides and overrides[-1].filter is None else None


def complete(overrides: Sequence[Override]) -> bool:
    """Return whether every tensor has a value."""
    return bool(overrides) and overrides[-1].filter is None


@dataclass
class Translator:
    """Turns scopes into fields of the method and overrides."""

    translation: Translation
    base: Place | None
    names: Mapping[Place, str]
    notes: list[str]

    def body(self, parts: Sequence[Part], shared: Settings) -> dict[str, Any]:
        """Return the recipe's ``method``, ``overrides`` and ``slices``.

        Raises:
            RecipeError: some tensor would have no value of a parameter that must be given.
        """
        self._check(parts, shared)
        sliced = parts[0].sources[0].layers is not None
        method: dict[str, Any] = {"name": self.translation.ours, **self.translation.fixed}
        overrides: list[Override] = []
        for parameter in (each for each in self.translation.parameters if each.ours):
            wide = shared.get(parameter.theirs, ())
            if not sliced and parameter.per_source and not self._listed(parameter):
                own = parts[0].sources[0].settings.get(parameter.theirs, ())
                wide = own if complete(own) else (*own, *wide)
            value: Any = rest(wide)
            overrides += wide if value is None else wide[:-1]
            value = self._default(parameter) if value is None else value
            if not sliced and self._listed(parameter):
                value, found = self._per_source(parameter, parts[0], wide, value)
                overrides += found
            method |= {parameter.ours: value}
        return {
            "method": method,
            "overrides": [_plain(each) for each in overrides],
            "slices": [self._slice(part) for part in parts] if sliced else [],
        }

    def apart(self, source: Source) -> bool:
        """Return whether a model is the base that differences are taken from, which has no numbers of its own."""
        return self.translation.base_apart and source.place == self.base

    def _listed(self, parameter: Parameter) -> bool:
        """Return whether our method has a number for every source; mergekit's has one for the only source where ours has one at all."""
        return parameters_of(self.translation.ours)[parameter.ours]

    def _default(self, parameter: Parameter) -> Any:
        """Return mergekit's default; of a parameter without one, that of our method: then every tensor is spoken of elsewhere."""
        if parameter.default is not REQUIRED:
            return parameter.default
        return next(each.default for each in dataclasses.fields(method_named(self.translation.ours)) if each.name == parameter.ours)

    def _per_source(self, parameter: Parameter, part: Part, wide: Sequence[Override], shared: Any) -> tuple[Any, list[Override]]:
        """Return one number for each source, or one for all, and the overrides for single models."""
        sources = [source for source in part.sources if not self.apart(source)]
        given = {self.names[source.place]: source.settings.get(parameter.theirs, ()) for source in sources}
        if (rest(wide) is None and wide) or len(wide) > 1:  # overrides for all models: a model's own number has to come before them
            return shared, [each.model_copy(update={"model": name}) for name, own in given.items() for each in own]
        found = [
            each.model_copy(update={"model": name}) for name, own in given.items() for each in (own if rest(own) is None else own[:-1])
        ]
        if all(rest(own) is None for own in given.values()):
            return shared, found
        unused = self._default(parameter)
        return tuple(
            unused if complete(own) and rest(own) is None else shared if rest(own) is None else rest(own) for own in given.values()
        ), found

    def _slice(self, part: Part) -> dict[str, Any]:
        found: list[Override] = []
        for parameter in (each for each in self.translation.parameters if each.ours):
            wide = part.settings.get(parameter.theirs, ())
            for source in (source for source in part.sources if not self.apart(source)):
                own = source.settings.get(parameter.theirs, ())
                if self._listed(parameter):
                    found += [each.model_copy(update={"model": self.names[source.place]}) for each in own]
                else:
                    wide = own if complete(own) else (*own, *wide)
            found += wide
        return {
            "sources": [{"model": self.names[source.place], "layers": list(source.layers or ())} for source in part.sources],
            "overrides": [_plain(each) for each in found],
        }

    def _check(self, parts: Sequence[Part], shared: Settings) -> None:
        """Refuse tensors without a value where one must be given."""
        required = [each for each in self.translation.parameters if each.default is REQUIRED]
        for part in parts:
            for source in part.sources:
                if self.apart(source):
                    where = at(source.where, "parameters")
                    self.notes += [f"{at(where, name)}: the base has none; not used (as in mergekit)" for name in source.settings]
                    continue
                for parameter in required:
                    scopes = ([source.settings] if parameter.per_source else []) + [part.settings, shared]
                    if not any(complete(scope.get(parameter.theirs, ())) for scope in scopes):
                        place = at(source.where if parameter.per_source else part.where, f"parameters.{parameter.theirs}")
                        some = any(parameter.theirs in scope for scope in scopes)
                        what = "has a value only for some tensors; add one without filter" if some else "is missing"
                        raise refusal(place, what)


def _plain(override: Override) -> dict[str, Any]:
    return override.model_dump(exclude_defaults=True)
