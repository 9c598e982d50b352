"""From a merge recipe to the plan that the engine executes: only headers, configurations and tokenizers are read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmfuse.errors import RecipeError
from lmfuse.merge.informed import Informed
from lmfuse.merge_recipe import MergeModel, MergeRecipe, takes_base
from lmfuse.merge_recipe.layers import Origin, depths, origins
from lmfuse.merge_recipe.reach import refuse_unheard
from lmfuse.merge_recipe.tokens import template_of, token_warnings, with_token_ids
from lmfuse.merge_recipe.values import method_at
from lmfuse.model_files import ModelSpec
from lmfuse.safetensors_header import SPELLED, TensorEntry
from lmfuse.weights.check import check_models, check_plan, is_computed, is_vocabulary_tensor
from lmfuse.weights.files import result_config
from lmfuse.weights.plan import MergePlan, OpenedModel, OutputTensor, TensorRef, UnitedVocabulary, open_models
from lmfuse.weights.read import DTYPES
from lmfuse.weights.statistics import StatisticsFolder, WithStatistics, open_statistics
from lmfuse.weights.vocabulary import unite_vocabularies


def located(recipe: MergeRecipe, beside: Path) -> tuple[ModelSpec, ...]:
    """Return what opens each model: a folder beside the recipe (an absolute one and ``~`` are where they are), else a name on the hub.

    Raises:
        RecipeError: a folder is in the current folder, but not beside the recipe; or two models are one folder.
    """
    found, seen = [], dict[Path, str]()
    for each in recipe.models:
        relative = Path(each.model).expanduser()
        folder = beside / relative
        if folder.is_dir():
            other = seen.setdefault(folder.resolve(), each.label)
            if other != each.label:
                raise RecipeError(f"models: {other} and {each.label} are one folder", "name each model once")
        elif relative.is_dir():
            raise RecipeError(
                f"models: {each.model} is in the current folder, but not beside the recipe", "paths begin at the recipe's folder"
            )
        found.append(replace(each.spec, model=str(folder)) if folder.is_dir() else each.spec)
    return tuple(found)


def make_merge_plan(recipe: MergeRecipe, beside: Path, cache: Path | None = None, notes: Sequence[str] = ()) -> MergePlan:
    """Check everything that can be checked before a byte is written, and resolve every tensor's method and numbers.

    Args:
        recipe: the merge.
        beside: the recipe's folder.
        cache: folder in which hashes of large files are remembered.
        notes: on how the recipe was read, for card and terminal.

    Raises:
        RecipeError: the recipe asks for layers, numbers or a template that cannot be had.
        ModelError: models that cannot be trusted, or are of different architectures; see ``open_models`` and ``check_models``.
        TokenizerError: vocabularies that cannot be united.
        ResourceError: the disk is full.
    """
    models = open_models([replace(spec, name=each.label) for spec, each in zip(located(recipe, beside), recipe.models, strict=True)], cache)
    labels = recipe.labels
    donor = labels.index(recipe.donor)
    agreement = check_models(models, donor, layers_may_differ=bool(recipe.slices))
    united = _vocabulary(recipe, models, donor)
    names = {model.label: tuple(name for name in model.tensors if not is_computed(name, model.entry(name))) for model in models}
    places = tuple(origins(recipe, names | {recipe.donor: agreement.names}))
    refuse_unheard(recipe, places)
    made = _Tensors(recipe, models, united, _statistics(recipe, models, beside))
    tensors = tuple(map(made.output, places))
    config, warnings = _config(recipe, models[donor], united, tensors)
    if united.ground != donor:
        config = with_token_ids(config, models[united.ground].folder.config)
    told = [f"{one} and {other} hold the same weights" for one, other in _same_twice(models)]
    plan = MergePlan(
        models=models,
        tensors=tensors,
        config=config,
        tokenizer_from=united if united.added or any(united.row_maps) else united.ground,
        notes=(*notes, *agreement.notes, *made.notes),
        warnings=(*agreement.warnings, *token_warnings(models, united), *warnings, *told),
        recipe_text=_portable(recipe, models).to_yaml(),
        base=None if recipe.base is None else labels.index(recipe.base),
        max_shard_bytes=round(recipe.max_shard_gb * 10**9),
    )
    check_plan(plan)
    return plan


def _vocabulary(recipe: MergeRecipe, models: Sequence[OpenedModel], donor: int) -> UnitedVocabulary:
    named = recipe.tokenizer in recipe.labels and recipe.tokenizer not in ("base", "union")
    united = unite_vocabularies(models, recipe.labels.index(str(recipe.tokenizer)) if named else donor, union=recipe.tokenizer == "union")
    if recipe.chat_template == "auto":
        _check_template(models, united.ground)
    return united


def _check_template(models: Sequence[OpenedModel], ground: int) -> None:
    """Refuse a tokenizer whose chat template is not the one that most models have."""
    found = [template_of(model) for model in models]
    common = Counter(text for text in found if text).most_common(1)
    if common and found[ground] != common[0][0]:
        having = models[found.index(common[0][0])].label
        raise RecipeError(
            f"chat_template auto is that of {having}, the tokenizer comes from {models[ground].label}", f"set tokenizer: {having}"
        )


def _statistics(recipe: MergeRecipe, models: Sequence[OpenedModel], beside: Path) -> tuple[StatisticsFolder, ...]:
    if not isinstance(recipe.method, Informed):
        return ()
    sources = [models[recipe.labels.index(label)] for label in recipe.sources_of()]
    return open_statistics([beside / Path(each).expanduser() for each in recipe.statistics], recipe.method, sources)


class _Tensors:
    """The tensors of a result, one by one."""

    def __init__(
        self,
        recipe: MergeRecipe,
        models: Sequence[OpenedModel],
        united: UnitedVocabulary,
        statistics: tuple[StatisticsFolder, ...] = (),
    ) -> None:
        self.recipe, self.models, self.united, self.statistics = recipe, models, united, statistics
        self.index = {model.label: i for i, model in enumerate(models)}
        self._mixed: Counter[tuple[str, ...]] = Counter()  # types of the sources, of the base, and of the result

    @property
    def notes(self) -> list[str]:
        """Return a sentence for each mixture of types that was met."""
        return [
            f"{count} tensors are {sources}{f', {base} in the base' if base else ''}; the result's are {result}"
            for (sources, base, result), count in sorted(self._mixed.items())
        ]

    def output(self, origin: Origin) -> OutputTensor:
        place, recipe = origin.place, self.recipe
        sources = tuple(self._ref(label, place.names[label]) for label in recipe.sources_of(origin.part))
        apart = takes_base(recipe.method) and recipe.base is not None and recipe.base in place.names
        base = self._ref(str(recipe.base), place.names[str(recipe.base)]) if apart else None
        entries = [self.models[ref.model].entry(ref.name) for ref in sources]
        like, dtype = entries[0], self._dtype(entries, None if base is None else self.models[base.model].entry(base.name))
        shape = (self.united.num_rows, *like.shape[1:]) if is_vocabulary_tensor(place.name) else like.shape
        method = method_at(recipe, origin.part, place)
        if isinstance(method, Informed):
            method = WithStatistics.of(method, self.statistics)
        return OutputTensor(place.name, shape, dtype, method, sources, base)

    def _ref(self, label: str, name: str) -> TensorRef:
        index = self.index[label]
        return TensorRef(index, name, self.united.row_maps[index] if is_vocabulary_tensor(name) else None)

    def _dtype(self, sources: Sequence[TensorEntry], base: TensorEntry | None) -> str:
        """Return the type of a result: the recipe's, or the narrowest that holds every value of its sources; integers keep theirs."""
        kinds = sorted({entry.dtype for entry in sources})
        if not set(kinds) <= DTYPES.keys():
            return sources[0].dtype
        dtype = SPELLED[self.recipe.dtype] if self.recipe.dtype else kinds[0] if len(kinds) == 1 else "F32"
        apart = base.dtype if base is not None and kinds != [base.dtype] else ""
        if len(kinds) > 1 or apart:
            self._mixed[" and ".join(kinds), apart, dtype] += 1
        return dtype


def _config(
    recipe: MergeRecipe, donor: OpenedModel, united: UnitedVocabulary, tensors: Sequence[OutputTensor]
) -> tuple[dict[str, Any], list[str]]:
    """Return the result's configuration, and what in it may be wrong."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in DTYPES:
            sizes[tensor.dtype] += math.prod(tensor.shape)
    dtype = max(sizes, key=lambda name: (sizes[name], name), default="F32")
    config = result_config(donor, dtype, num_rows=united.num_rows, num_layers=sum(part.num_layers for part in recipe.slices) or None)
    if not recipe.slices:
        return config, []
    old, warnings = max(depths(donor.tensors).values()), []
    inner = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    for key, value in inner.items():
        if "layer" in key and isinstance(value, list) and value:
            if len(value) == old:
                inner[key] = [value[layer] for part in recipe.slices for layer in range(*part.sources[0].layers)]
            else:
                warnings.append(f"config.json: {key} is {donor.label}'s and may name other layers now")
    return config, warnings


def _same_twice(models: Sequence[OpenedModel]) -> Iterator[tuple[str, str]]:
    for i, one in enumerate(models):
        yield from ((one.label, other.label) for other in models[i + 1 :] if one.key == other.key)


def _portable(recipe: MergeRecipe, models: Sequence[OpenedModel]) -> MergeRecipe:
    """Return the recipe without this machine's paths, with the commits that hub models stand at."""
    named = [MergeModel(model=each.source, revision=each.revision or None, name=each.label) for each in models]
    return recipe.model_copy(
        update={
            "models": tuple(each.model_copy(update={"name": ""}) if each.model.split("/")[-1] == each.name else each for each in named),
            "statistics": tuple(Path(each).name for each in recipe.statistics),
        }
    )
