"""Merges written for mergekit, read as recipes of ours. What is not supported is refused by its key; nothing is guessed.

The dialect is that of mergekit 0.1.5: https://github.com/arcee-ai/mergekit
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmfuse.errors import did_you_mean
from lmfuse.merge_recipe import MergeRecipe, Override, parse_merge_recipe
from lmfuse.mergekit_yaml.names import IGNORED, TRANSLATIONS, UNTRANSLATED, Translation
from lmfuse.mergekit_yaml.scopes import Part, Place, Settings, Source, Translator
from lmfuse.mergekit_yaml.settings import at, mapping, read_setting, refusal

TOP = ("models", "slices", "merge_method", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer",
       "chat_template")  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16")
ONE_TEMPLATE = "the result has its tokenizer's template; edit chat_template.jinja in the result"


def is_mergekit(values: Any) -> bool:
    """Return whether plain values are a merge written for mergekit, to judge by its keys."""
    return isinstance(values, dict) and bool({"merge_method", "base_model", "modules"} & values.keys())


def read_mergekit(values: Mapping[str, Any], name: str = "recipe") -> tuple[MergeRecipe, tuple[str, ...]]:
    """Return the recipe that says the same, and what a reader should know.

    Raises:
        RecipeError: something in it is not supported, misplaced, missing or of the wrong type; in one line that names the key.
    """
    reader = _Reader(name)
    recipe = reader.recipe(dict(values))
    return parse_merge_recipe(recipe, name), tuple(dict.fromkeys(reader.notes))


class _Reader:
    """One file, and what was noted on the way to its recipe."""

    def __init__(self, name: str) -> None:
        self.where, self.notes = f"{name}:", list[str]()

    def recipe(self, values: dict[str, Any]) -> dict[str, Any]:
        found = mapping(values, self.where, TOP, {"modules": "models of several modules cannot be merged here"})
        translation = self._translation(found)
        base = _place(found["base_model"], at(self.where, "base_model")) if "base_model" in found else None
        if translation.needs_base and base is None:
            raise refusal(at(self.where, "base_model"), f"is missing; {translation.theirs} needs one")
        parts = self._parts(found, base, translation)
        shared = self._settings(found.get("parameters", {}), at(self.where, "parameters"), translation, own=False)
        places = list(dict.fromkeys([source.place for part in parts for source in part.sources] + ([base] if base else [])))
        names = labels(places)
        body = Translator(translation, base, names, self.notes).body(parts, shared)
        models = [{"model": place[0]} | ({"revision": place[1]} if place[1] else {}) for place in places]
        return {
            "models": [
                model | ({"name": names[place]} if "/" in names[place] else {}) for model, place in zip(models, places, strict=True)
            ],
            "base": names[base] if base else None,
            "dtype": self._dtype(found),
            "tokenizer": self._tokenizer(found, names),
            "chat_template": self._chat_template(found),
            **body,
        }

    def _translation(self, found: Mapping[str, Any]) -> Translation:
        where, name = at(self.where, "merge_method"), found.get("merge_method")
        if name in UNTRANSLATED:
            raise refusal(where, f"{name!r} is not supported: {UNTRANSLATED[str(name)]}")
        if name not in TRANSLATIONS:
            raise refusal(where, "is missing" if name is None else did_you_mean(str(name), TRANSLATIONS))
        translation = TRANSLATIONS[str(name)]
        if translation.note:
            self.notes.append(translation.note)
        return translation

    def _parts(self, found: Mapping[str, Any], base: Place | None, translation: Translation) -> tuple[Part, ...]:
        given = [key for key in ("models", "slices") if found.get(key)]
        if len(given) != 1:
            raise refusal(self.where, f"{' and '.join(given) or 'neither models nor slices'} given, expected one of the two")
        where, entries = at(self.where, given[0]), found[given[0]]
        if not isinstance(entries, list):
            raise refusal(where, "must be a list")
        if given == ["slices"]:
            return tuple(self._slice(entry, at(where, i), base, translation) for i, entry in enumerate(entries))
        sources = [self._source(entry, at(where, i), ("model", "parameters"), translation) for i, entry in enumerate(entries)]
        places = [source.place for source in sources]
        for i, place in enumerate(places):
            if place in places[:i]:
                raise refusal(at(where, i), f"{place[0]!r} stands twice; name it once")
        if base is not None and base not in places:
            sources.append(Source(base, at(self.where, "base_model")))
        return (Part(self.where, tuple(sources)),)

    def _slice(self, value: Any, where: str, base: Place | None, translation: Translation) -> Part:
        refused = {"residual_weight": "mergekit reads it and does nothing with it"}
        found = mapping(value, where, ("sources", "parameters", "base_model"), refused)
        if "base_model" in found and _place(found["base_model"], at(where, "base_model")) != base:
            raise refusal(at(where, "base_model"), "must be the base_model of the whole merge; another one for a slice is not supported")
        entries = found.get("sources")
        if not isinstance(entries, list) or not entries:
            raise refusal(at(where, "sources"), "must be a list of models with layer_range")
        keys = ("model", "layer_range", "parameters")
        sources = tuple(self._source(entry, at(at(where, "sources"), i), keys, translation) for i, entry in enumerate(entries))
        settings = self._settings(found.get("parameters", {}), at(where, "parameters"), translation, own=False)
        return Part(where, sources, settings)

    def _source(self, value: Any, where: str, keys: tuple[str, ...], translation: Translation) -> Source:
        found = mapping(value, where, keys)
        if "model" not in found:
            raise refusal(at(where, "model"), "is missing")
        settings = self._settings(found.get("parameters", {}), at(where, "parameters"), translation, own=True)
        place, layers = _place(found["model"], at(where, "model")), None
        if "layer_range" in keys:
            layers = found.get("layer_range")
            if not isinstance(layers, list) or len(layers) != 2 or not all(type(each) is int for each in layers):
                raise refusal(at(where, "layer_range"), f"must be [first, the one behind the last] (got {layers!r:.60})")
            layers = (layers[0], layers[1])
        return Source(place, where, layers, settings)

    def _settings(self, value: Any, where: str, translation: Translation, *, own: bool) -> Settings:
        """Return what a scope says of each parameter; ``own``: the scope of one model, where only its own parameters may stand."""
        known = {parameter.theirs: parameter for parameter in translation.parameters}
        found: dict[str, tuple[Override, ...]] = {}
        for key, inner in mapping(value, where, {**known, **IGNORED}).items():
            place = at(where, key)
            parameter = known.get(key) or IGNORED[key]
            if own and not parameter.per_source and key in known:
                raise refusal(place, f"is one for all models; {translation.theirs} does not read it here", "move it to parameters")
            overrides = read_setting(inner, parameter, place, self.notes)
            if parameter.only and any(value != parameter.default for each in overrides for value in each.gradient or (each.value,)):
                raise refusal(place, f"is not supported; only {str(parameter.default).lower()} is")
            if parameter.ours:
                found[key] = overrides
        return found

    def _dtype(self, found: Mapping[str, Any]) -> str | None:
        names = {key: str(found[key]).removeprefix("torch.") for key in ("dtype", "out_dtype") if key in found}
        for key, name in names.items():
            if name not in DTYPES:
                raise refusal(at(self.where, key), did_you_mean(name, DTYPES))
        if names.get("dtype", "float32") != "float32":
            self.notes.append(f"dtype {names['dtype']}: arithmetic is in float32 all the same, rounded once at the end")
        return names.get("out_dtype", names.get("dtype"))

    def _tokenizer(self, found: Mapping[str, Any], names: Mapping[Place, str]) -> str | None:
        if "tokenizer" in found and "tokenizer_source" in found:
            raise refusal(at(self.where, "tokenizer"), "stands beside tokenizer_source, expected one of the two")
        where, source = at(self.where, "tokenizer_source"), found.get("tokenizer_source")
        if "tokenizer" in found:
            reasons = {"tokens": "rows of single tokens cannot be chosen", "pad_to_multiple_of": "the vocabulary is not padded"}
            where = at(self.where, "tokenizer")
            source, where = mapping(found["tokenizer"], where, ("source",), reasons).get("source", "union"), at(where, "source")
        if source is None or source in ("union", "base"):
            return source
        place = _place(source, where)
        if place not in names:
            raise refusal(where, f"{place[0]!r} is not one of the models; its tokenizer cannot be taken")
        return names[place]

    def _chat_template(self, found: Mapping[str, Any]) -> str | None:
        template = found.get("chat_template")
        if template not in (None, "auto", "none"):
            raise refusal(at(self.where, "chat_template"), f"only auto is supported (got {str(template)[:40]!r})", ONE_TEMPLATE)
        return "auto" if template == "auto" else None


def _place(value: Any, where: str) -> Place:
    """Return folder or hub name and revision of a reference to a model."""
    revision = None
    if isinstance(value, dict):
        found = mapping(value, where, ("model",), {"lora": NO_LORA, "override_architecture": "models must be what they say they are"})
        value, where = found.get("model"), at(where, "model")
        if isinstance(value, dict):
            found = mapping(value, where, ("path", "revision"))
            value, revision, where = found.get("path"), found.get("revision"), at(where, "path")
            if revision is not None and not isinstance(revision, str):
                raise refusal(where, f"revision must be text (got {revision!r})")
            if isinstance(value, str) and value:
                return value, revision
    if not isinstance(value, str) or not value:
        raise refusal(where, f"must be a folder or a hub name (got {value!r:.60})")
    if "+" in value:
        raise refusal(where, f"{value!r}: {NO_LORA}", "merge the adapter into its model first, and name the result")
    name, _, revision = value.partition("@")
    return name, revision or None


NO_LORA = "an adapter (model+lora) is not supported"


def labels(places: list[Place]) -> dict[Place, str]:
    """Return a name for each model: the last part of its path, or all of it where that is not enough to tell them apart.

    >>> labels([("org/a", None), ("x/b", None), ("y/b", "main")])
    {('org/a', None): 'a', ('x/b', None): 'x/b', ('y/b', 'main'): 'y/b@main'}
    """
    last = [place[0].rstrip("/").rsplit("/", 1)[-1] for place in places]
    return {
        place: short if last.count(short) == 1 else "@".join(part for part in place if part)
        for place, short in zip(places, last, strict=True)
    }
