"""What a run will need and what would stop it, found out before any weight is read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lmfuse.corpus import Corpus
from lmfuse.doctor.fit import fit, spread
from lmfuse.doctor.tokenizers import shared_vocabulary
from lmfuse.errors import LmfuseError, RecipeError, ResourceError
from lmfuse.evaluate.paired import domains_by_window
from lmfuse.hub import hub_cache
from lmfuse.inputs import Inputs
from lmfuse.limits import Fit, refuse_misfit
from lmfuse.memory import available_memory
from lmfuse.model_facts import UNLIMITED_CONTEXT
from lmfuse.models import checked_device
from lmfuse.plan_answers import answer_checks, answer_disk, answer_memory
from lmfuse.recipe import Recipe

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TRAINING_BYTES_PER_WEIGHT = 16  # float32 weight, gradient and two moments
ACTIVATION_FLOATS = 40  # kept per token, layer and hidden unit by a transformer without checkpointing; a rough upper bound
GIB = 2**30


@dataclass(frozen=True)
class ModelNeeds:
    """One model: what it is, what its tokenizer does to the text, and the memory it needs to be read."""

    label: str
    architecture: str
    parameters: int
    context: int
    vocab_size: int
    licence: str
    tokenizer: str
    shared_vocabulary: float
    train_tokens: int
    memory_bytes: int
    fetch_bytes: int
    tokens_left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that could be found out, what would stop the run, and what a reader should know."""

    models: tuple[ModelNeeds, ...]
    documents: dict[str, int]
    disk_needed_bytes: int
    disk_free_bytes: int
    memory_needed_bytes: int
    memory_free_bytes: int
    fits: tuple[Fit, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[LmfuseError, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return plain values for plan.json; memory and disk of this machine are left out, a plan is about the recipe."""
        values = asdict(self) | {"problems": [str(problem) for problem in self.problems]}
        return {name: value for name, value in values.items() if not name.endswith("_free_bytes")}


def free_memory() -> int:
    """Return the bytes of memory that a new process can have; where the system does not say, the physical memory."""
    return available_memory() or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_disk(folder: Path) -> int:
    """Return the free bytes where a folder is or will be."""
    return shutil.disk_usage(_nearest(folder)).free


def _nearest(folder: Path) -> Path:
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def _same_disk(*folders: Path) -> bool:
    return len({_nearest(folder).stat().st_dev for folder in folders}) == 1


class _Problems(list[LmfuseError]):
    """Collects our errors instead of stopping at the first one."""

    def attempt(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except LmfuseError as error:
            self.append(error)
            return None


def make_plan(inputs: Inputs) -> Plan:
    """Check a recipe's models, tokenizers and text, and add up what a run of it needs."""
    problems = _Problems()
    for label in inputs.specs:
        problems.attempt(partial(inputs.tokenizer, label))  # and its facts before that
    if not problems:
        problems.attempt(lambda: inputs.corpus)
    if problems:
        return Plan((), {}, 0, free_disk(inputs.cache), 0, free_memory(), problems=tuple(problems))
    return _judge(inputs, tuple(_model_needs(label, inputs) for label in inputs.specs))


def _model_needs(label: str, inputs: Inputs) -> ModelNeeds:
    facts, tokenizer = inputs.facts(label), inputs.tokenizer(label)
    return ModelNeeds(
        label, facts.architecture, facts.parameters, facts.context, tokenizer.vocabulary.size, facts.licence, tokenizer.lossy or "exact",
        shared_vocabulary(inputs.tokenizer("target").vocabulary, tokenizer.vocabulary),
        sum(len(encoding.ids) for encoding in tokenizer.encode_many(inputs.corpus.splits["train"])),
        facts.parameters * BYTES[inputs.specs[label].dtype], facts.bytes_to_fetch, facts.tokens_left_out,
    )  # fmt: skip


def _judge(inputs: Inputs, needs: tuple[ModelNeeds, ...]) -> Plan:
    recipe, corpus, problems = inputs.recipe, inputs.corpus, _Problems()
    disk, memory = _disk_needed(inputs, needs), _memory_needed(inputs, needs)
    fetch = sum(model.fetch_bytes for model in needs)
    if fetch and _same_disk(inputs.cache, hub_cache()):
        disk, fetch = disk + fetch, 0
    free, room = free_disk(inputs.cache), free_memory()
    if disk > free:
        problems.append(
            ResourceError(
                f"the run needs about {disk / GIB:.1f} GiB of disk in {inputs.cache}, {free / GIB:.1f} GiB are free",
                hint="lower rows.k, use fewer arms or seeds, or name another --cache",
            )
        )
    if fetch and fetch > (hub_room := free_disk(hub_cache())):
        problems.append(
            ResourceError(
                f"{fetch / GIB:.1f} GiB of weights have to be fetched into {hub_cache()}, {hub_room / GIB:.1f} GiB are free",
                hint="free some, or move HF_HOME",
            )
        )
    if memory > room and recipe.device in ("auto", "cpu"):
        problems.append(
            ResourceError(
                f"the run needs about {memory / GIB:.1f} GiB of memory, {room / GIB:.1f} GiB are free",
                hint="lower train.batch_documents or rows.batch_tokens, or set train.gradient_checkpointing",
            )
        )
    checks: list[Callable[[], Any]] = [
        partial(_refuse_wide_rows, recipe, needs),
        partial(_refuse_same_sources, inputs),
        partial(_refuse_device, recipe),
    ]
    for check in (*checks, *answer_checks(inputs)):
        problems.attempt(check)
    fits = judged_fits(inputs)
    for found in fits:
        problems.attempt(partial(refuse_misfit, found, recipe.align, recipe.limits))
    documents = {split: len(windows) for split, windows in corpus.splits.items()}
    return Plan(needs, documents, disk, free, memory, room, fits, tuple(_notes(needs, corpus)), tuple(problems))


def judged_fits(inputs: Inputs) -> tuple[Fit, ...]:
    """Return how the tokens of each source that ``limits`` speak of fit the target's on some training windows."""
    sample, target, align = spread(inputs.corpus.splits["train"]), inputs.tokenizer("target"), inputs.recipe.align
    return tuple(fit(label, align, sample, target, inputs.tokenizer(label)) for label in inputs.recipe.judged_sources)


def _refuse_wide_rows(recipe: Recipe, needs: tuple[ModelNeeds, ...]) -> None:
    teachers = teachers_of(recipe)
    smallest = min((m for m in needs if m.label in teachers), key=lambda m: m.vocab_size, default=None)
    if smallest is not None and recipe.rows.k > smallest.vocab_size:
        raise RecipeError(
            f"rows.k is {recipe.rows.k}, the vocabulary of {smallest.label} has {smallest.vocab_size} ids",
            hint="choose a smaller k; 10 to 50 is usual",
        )


def _refuse_same_sources(inputs: Inputs) -> None:
    """Refuse one model under two names: it would vote twice. The target may be a source, once."""
    seen: dict[tuple[str, str, str], str] = {}
    for source in inputs.recipe.sources:
        identity = (inputs.facts(source.label).key, source.dtype, source.document_start)
        if identity in seen:
            raise RecipeError(f"sources {seen[identity]!r} and {source.label!r} are the same model", hint="name it once")
        seen[identity] = source.label


def _refuse_device(recipe: Recipe) -> None:
    if recipe.device != "auto":
        checked_device(recipe.device)


def _disk_needed(inputs: Inputs, needs: tuple[ModelNeeds, ...]) -> int:
    """Return the bytes of all rows and answers, all trained models and the two checkpoints that exist at a time."""
    recipe, target = inputs.recipe, needs[0]
    row_bytes = {model.label: recipe.rows.k * (4 if model.vocab_size <= 65536 else 6) + 10 for model in needs}
    teachers = teachers_of(recipe)
    rows = sum(model.train_tokens * row_bytes[model.label] for model in needs if model.label in teachers)
    made = len(recipe.resolved_arms) + len(recipe.resolved_merges)
    runs = (made + max(len(recipe.learning_rates) - 1, 0)) * len(recipe.seeds)
    rows += answer_disk(inputs, row_bytes, target.parameters * BYTES["float32"])
    return rows + (runs + 1) * target.memory_bytes + target.parameters * 12 * 2  # one more: the run's folder holds a copy of the result


def _memory_needed(inputs: Inputs, needs: tuple[ModelNeeds, ...]) -> int:
    """Return the bytes of the hungriest stage: training the target, or reading with the largest model."""
    settings, facts = inputs.recipe.train, inputs.facts("target")
    step_tokens = settings.batch_documents * inputs.recipe.text.window_tokens
    kept = ACTIVATION_FLOATS * facts.hidden_size * (1 if settings.gradient_checkpointing else facts.num_layers)
    training = facts.parameters * TRAINING_BYTES_PER_WEIGHT + step_tokens * kept * BYTES[settings.precision]
    reading = inputs.recipe.rows.batch_tokens * 4 * 4096
    return max(training, *(model.memory_bytes + max(reading, answer_memory(inputs, model.label)) for model in needs))


def teachers_of(recipe: Recipe) -> set[str]:
    """Return the labels of the models whose rows some arm wants."""
    sources = {source.label for source in recipe.sources}
    found: set[str] = set()
    for arm in recipe.resolved_arms:
        found |= {"none": set(), "self": {"target"}, "sources": sources, "best_single": sources}.get(arm.teacher, {arm.teacher})
        found |= {"target"} if arm.include_target else set()
    return found


def _notes(needs: tuple[ModelNeeds, ...], corpus: Corpus) -> list[str]:
    notes = [
        f"{m.label}: lossy tokenizer ({m.tokenizer}); what it cannot represent is masked and counted"
        for m in needs
        if m.tokenizer != "exact"
    ]
    notes += [f"{m.label}: {m.fetch_bytes / GIB:.2f} GiB of weights will be fetched" for m in needs if m.fetch_bytes]
    notes += [
        f"{m.label}: {len(m.tokens_left_out)} control tokens without a row in the model are left out, first {m.tokens_left_out[0][:40]!r}"
        for m in needs
        if m.tokens_left_out
    ]
    notes += [f"{m.label}: no licence found; check that you may use it" for m in needs if not m.licence]
    windows = [(window.domain, corpus.evaluation_units[window.id]) for window in corpus.splits["evaluation"]]
    for domain in corpus.domains("evaluation"):
        units = [unit for each, unit in windows if each == domain]
        if domain in domains_by_window(windows):
            notes.append(
                f"domain {domain}: {len(set(units))} evaluation documents are too few to draw; intervals draw its {len(units)} windows"
            )
        if len(units) < 30:
            notes.append(f"domain {domain}: only {len(units)} evaluation windows; intervals will be wide")
    return notes


def _context(model: ModelNeeds) -> str:
    return f"{model.context:,}" if model.context < UNLIMITED_CONTEXT else "any"


def show(plan: Plan) -> None:
    """Print a plan; stop with its first problem.

    Raises:
        LmfuseError: whatever would have stopped the run.
    """
    from rich.table import Table

    from lmfuse.console import Console

    console = Console()
    table = Table("model", "weights", "context", "ids", "shared", "tokens", "tokenizer", "licence", padding=(0, 1, 0, 0))
    for m in plan.models:
        table.add_row(m.label, f"{m.parameters / 1e6:,.0f} M", _context(m), f"{m.vocab_size:,}",
                      f"{m.shared_vocabulary:.0%}", f"{m.train_tokens:,}", "exact" if m.tokenizer == "exact" else "lossy", m.licence or "?")  # fmt: skip
    if plan.models:
        console.table(table)
        console.say("windows: " + ", ".join(f"{split} {count:,}" for split, count in plan.documents.items()))
        console.say(f"disk: about {plan.disk_needed_bytes / GIB:.2f} GiB of {plan.disk_free_bytes / GIB:.1f} free; "
                    f"memory: about {plan.memory_needed_bytes / GIB:.2f} GiB of {plan.memory_free_bytes / GIB:.1f} free")  # fmt: skip
    for found in plan.fits:
        console.say(found.sentence)
    for note in plan.notes:
        console.warn(note)
    for problem in plan.problems[1:]:
        console.say(f"error: {problem}", style="red")
    if plan.problems:
        raise plan.problems[0]
    console.say("nothing stands in the way", style="green")
