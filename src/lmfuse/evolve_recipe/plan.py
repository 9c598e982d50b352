"""A search prepared: everything that can be checked is checked before a child is made."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lmfuse.bytes import ByteTokenizer
from lmfuse.chat_template import CHOICES
from lmfuse.errors import InputError, ResourceError
from lmfuse.evolution.express import Expression
from lmfuse.evolution.fitness import BitsPerByte, ChoiceAccuracy, Fitness, UserFunction
from lmfuse.evolution.folders import FolderParents
from lmfuse.evolution.run import checked
from lmfuse.evolve_recipe import EvolveRecipe
from lmfuse.evolve_recipe.data import Data, read_questions, read_text, read_units
from lmfuse.models import ModelFacts, ModelSpec, checked_device, inspect_with_tokenizer, pick_device
from lmfuse.plan import GIB, free_disk, free_memory
from lmfuse.safetensors_header import SPELLED
from lmfuse.weights.layout import num_bytes

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PROCESS_BYTES = 600 * 2**20  # Python, torch, and buffers of the merge engine
ACTIVATION_BYTES = 4 * 4096  # for each token of a batch


@dataclass(frozen=True)
class Prepared:
    """A search that nothing stands in the way of.

    Attributes:
        recipe: with every default.
        specs: of the parents, then of the base, as they are opened.
        facts: of the same models, by label.
        parents: opened.
        expression: how genomes become weights.
        fitness: what a child is worth.
        data: its units in three parts.
        disk_bytes: of the winner and of as many children as there are at a time.
        memory_bytes: of all workers.
    """

    recipe: EvolveRecipe
    specs: tuple[ModelSpec, ...]
    facts: Mapping[str, ModelFacts]
    parents: FolderParents
    expression: Expression
    fitness: Fitness
    data: Data
    disk_bytes: int
    memory_bytes: int


def prepare(recipe: EvolveRecipe, beside: Path, cache: Path, out: Path, workers: int) -> Prepared:
    """Check a recipe's settings, models and data, and whether there is room for the search.

    Args:
        recipe: what to do.
        beside: the folder that relative paths start at.
        cache: where hashes of weights are remembered.
        out: where children are made.
        workers: how many processes judge them.

    Raises:
        InputError: settings that contradict each other, models of different architectures or tokenizers, text that cannot be used.
        ResourceError: disk or memory do not suffice.
    """
    if workers < 1:
        raise InputError(f"workers: {workers}, expected at least 1", "1 judges children in this process")
    settings = recipe.settings
    settings.check()
    settings.budget.check(1 if recipe.genes == "scalar" and recipe.express else settings.population(len(recipe.parents)))
    device = pick_device(recipe.device)
    checked_device(device)
    _find_modules(recipe, beside)
    specs = tuple(_located(spec, beside) for spec in (*recipe.parents, *([recipe.base] if recipe.base else [])))
    facts: dict[str, ModelFacts] = {}
    tokenizers: list[ByteTokenizer] = []
    for spec in specs:
        facts[spec.label], tokenizer = inspect_with_tokenizer(spec, cache)
        tokenizers.append(tokenizer)
    base = specs[-1] if recipe.base else None
    dtype = SPELLED[recipe.dtype] if recipe.dtype else None
    parents = FolderParents.open(specs[: len(recipe.parents)], base, cache=cache, dtype=dtype, resident=recipe.resident)
    _refuse_twins(parents)
    expression = checked(settings, parents)
    data = _data(recipe, beside, tokenizers[0], min(each.context for each in facts.values()))
    fitness = _fitness(recipe, specs[0], data, device)
    child = sum(num_bytes(each) for each in parents.plan(expression, expression.individual(0)).tensors)
    disk = child * (1 + (0 if recipe.resident else workers))
    memory = workers * _worker_bytes(recipe, facts[specs[0].label].parameters, parents)
    _refuse_too_little_room(recipe, out, disk, memory, device)
    return Prepared(recipe, specs, facts, parents, expression, fitness, data, disk, memory)


def _find_modules(recipe: EvolveRecipe, beside: Path) -> None:
    """Make modules beside the recipe importable, where it names one, and see that it is there; worker processes get the same paths."""
    if recipe.fitness.name == "function":
        if str(beside.resolve()) not in sys.path:
            sys.path.insert(0, str(beside.resolve()))
        UserFunction.checked(recipe.fitness.function)


def _located(spec: ModelSpec, beside: Path) -> ModelSpec:
    """Return a model as it is opened: a relative folder is one beside the recipe, where there is one; so is a chat template's file."""
    folder = beside / spec.model
    template = spec.chat_template if spec.chat_template in CHOICES else str(beside / spec.chat_template)
    return replace(spec, model=str(folder) if folder.is_dir() else spec.model, chat_template=template, name=spec.label)


def _refuse_twins(parents: FolderParents) -> None:
    """Refuse one model under two names: it would look like a population."""
    seen: dict[str, str] = {}
    for model in parents.opened[: parents.num_parents]:
        if model.key in seen:
            raise InputError(f"parents: {seen[model.key]} and {model.label} are the same model", "name it once")
        seen[model.key] = model.label


def _data(recipe: EvolveRecipe, beside: Path, tokenizer: ByteTokenizer, context: int) -> Data:
    if recipe.text is not None:
        return read_text(recipe.text, beside, tokenizer, context)
    if recipe.questions is not None:
        return read_questions(recipe.questions, beside)
    assert recipe.units is not None, "the schema wants one of the three"
    return read_units(recipe.units)


def _fitness(recipe: EvolveRecipe, spec: ModelSpec, data: Data, device: str) -> Fitness:
    batch_tokens = recipe.evaluate.batch_tokens
    if recipe.fitness.name == "bits_per_byte":
        return BitsPerByte(data.windows, spec, batch_tokens, device)
    if recipe.fitness.name == "choices":
        return ChoiceAccuracy(data.questions, spec, recipe.fitness.by, batch_tokens, device)
    return UserFunction.checked(recipe.fitness.function)


def _worker_bytes(recipe: EvolveRecipe, parameters: int, parents: FolderParents) -> int:
    """Return what one worker holds: a child as it is measured, a batch; where parents are resident these, and children in float32."""
    held = parameters * BYTES[recipe.parents[0].dtype] + recipe.evaluate.batch_tokens * ACTIVATION_BYTES + PROCESS_BYTES
    if not recipe.resident:
        return held
    stored = sum(entry.stop - entry.start for model in parents.opened for _, entry in model.tensors.values())
    return held + stored + (parents.hold + 1) * 4 * parameters


def _refuse_too_little_room(recipe: EvolveRecipe, out: Path, disk: int, memory: int, device: str) -> None:
    if disk > (free := free_disk(out)):
        raise ResourceError(
            f"the search needs about {disk / GIB:.1f} GiB of disk in {out}, {free / GIB:.1f} GiB are free",
            "use fewer workers, resident: true, or name another --out",
        )
    if device == "cpu" and memory > (room := free_memory()):
        more = "resident: false, " if recipe.resident else ""
        raise ResourceError(
            f"the search needs about {memory / GIB:.1f} GiB of memory, {room / GIB:.1f} GiB are free",
            f"use fewer workers, {more}or lower evaluate.batch_tokens",
        )
