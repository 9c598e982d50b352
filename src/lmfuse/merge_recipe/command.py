"""``lmfuse merge``: a recipe of ours or of mergekit's, or a method and its models, checked, shown, and made into one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from lmfuse.artefacts import MANIFEST, write_atomic
from lmfuse.console import Console
from lmfuse.errors import InputError, RecipeError
from lmfuse.merge_recipe import MergeRecipe, parse_merge_recipe
from lmfuse.merge_recipe.plan import located, make_merge_plan
from lmfuse.mergekit_yaml.read import is_mergekit, labels, read_mergekit
from lmfuse.mergekit_yaml.write import write_mergekit
from lmfuse.weights.card import sentence
from lmfuse.weights.engine import Merged, execute
from lmfuse.weights.layout import lay_out, num_bytes
from lmfuse.weights.place import refuse_too_little_room, resolved
from lmfuse.weights.plan import MergePlan, UnitedVocabulary
from lmfuse.weights.publish import refuse_taken
from lmfuse.weights.read import in_file_order
from lmfuse.yaml_strict import load_yaml, read_yaml

MB, GB = 10**6, 10**9


@dataclass(frozen=True)
class Short:
    """A merge without a file: models, and settings as ``name=value`` in YAML, those of the method and those of the recipe."""

    models: tuple[str, ...] = ()
    base: str | None = None
    settings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.models or self.base or self.settings)


def load_merge(recipe: str, short: Short) -> tuple[MergeRecipe, Path, tuple[str, ...]]:
    """Return a recipe, the folder that its paths are relative to, and notes on how it was read.

    Args:
        recipe: path of a YAML file, in our form or in mergekit's; with ``short`` the name of a method.
        short: models and settings of a merge without a file.

    Raises:
        RecipeError: it cannot be read, or is no merge.
    """
    if short:
        return parse_merge_recipe(_written_out(recipe, short), f"merge {recipe}"), Path(), ()
    path = Path(recipe)
    values = read_yaml(path, missing="give the path of a YAML file, or the name of a method and --model")
    if is_mergekit(values):
        found, notes = read_mergekit(values, str(path))
        return found, path.parent, notes
    return parse_merge_recipe(values, str(path)), path.parent, ()


def _written_out(method: str, short: Short) -> dict[str, Any]:
    """Return the recipe that a command line stands for."""
    given = [_spelt(each) for each in (*short.models, *((short.base,) if short.base else ()))]
    for model in short.models:
        if given[: len(short.models)].count(_spelt(model)) > 1:
            raise RecipeError(f"--model {model}: stands twice", "name each model once")
    names = labels([(each, None) for each in dict.fromkeys(given)])
    models = [{"model": model, "name": name if "/" in name else ""} for (model, _), name in names.items()]
    values: dict[str, Any] = {"models": models, "method": {"name": method}}
    if short.base:
        values["base"] = names[given[-1], None]
    for setting in short.settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise RecipeError(f"--set {setting}: expected name=value", hint="for example --set density=0.5, --set dtype=bfloat16")
        place = values if name in ("dtype", "tokenizer", "chat_template", "max_shard_gb") else values["method"]
        place[name] = load_yaml(text, f"--set {name}")
    return values


def _spelt(model: str) -> str:
    """Return a model as it is compared with others: a folder by its full path, so that no two spellings of it are two models."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model


def merge(
    recipe: str, out: Path | None, short: Short, *, cache: Path, threads: int | None, to_mergekit: Path | None, plan_only: bool
) -> Merged | None:
    """Do what the command line asks for; return what was made, if anything was.

    Raises:
        InputError, BusyError, ResourceError, VerificationError: whatever stands in the way; see ``make_merge_plan`` and ``execute``.
    """
    if out is None and to_mergekit is None and not plan_only:
        raise InputError("merge: no folder for the result", "name one behind the recipe, or add --plan to check only")
    place = None if out is None else resolved(out)
    loaded, beside, notes = load_merge(recipe, short)
    text = None if to_mergekit is None else _for_mergekit(loaded, beside, to_mergekit)
    console = Console()
    plan = make_merge_plan(loaded, beside, cache, notes) if out is not None or plan_only else None
    if plan is not None:
        show(console, plan)
        if place is not None:
            _refuse_place(plan, place)
    if text is not None and to_mergekit is not None:
        to_mergekit.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(to_mergekit, text.encode())
        console.say(f"mergekit: {to_mergekit}")
    if plan is None or place is None or plan_only:
        if plan is not None:
            console.say("nothing stands in the way", style="green")
        return None
    merged = _with_progress(console, plan, place, threads)
    tell(console, plan, merged)
    return merged


def _refuse_place(plan: MergePlan, place: Path) -> None:
    """Refuse a place that is taken or too small, unless this merge was made or begun there."""
    refuse_taken(place, plan.key, lay_out(in_file_order(plan), plan.max_shard_bytes))
    if not place.with_name(f"{place.name}.partial").exists() and not (place / MANIFEST).exists():
        refuse_too_little_room(place, sum(map(num_bytes, plan.tensors)))


def _for_mergekit(recipe: MergeRecipe, beside: Path, path: Path) -> str:
    """Return a recipe for mergekit, which takes relative folders from wherever it is started: so folders are written in full.

    Raises:
        InputError: mergekit cannot say it, or the file holds something else.
    """
    full = [str(Path(spec.model).resolve()) if Path(spec.model).is_dir() else spec.model for spec in located(recipe, beside)]
    models = tuple(each.model_copy(update={"model": model}) for each, model in zip(recipe.models, full, strict=True))
    text = write_mergekit(recipe.model_copy(update={"models": models}))
    if path.exists() and (not path.is_file() or path.read_bytes() != text.encode()):
        raise InputError(f"{path} exists and holds something else", "name another file, or remove it")
    return text


def show(console: Console, plan: MergePlan) -> None:
    """Print what will be merged, and what a reader should know before it is."""
    table = Table("model", "from", "weights", "type", "licence", "", padding=(0, 1, 0, 0))
    for index, model in enumerate(plan.models):
        entries = [entry for _, entry in model.tensors.values()]
        kinds = ", ".join(sorted({entry.dtype for entry in entries}))
        row = (model.label, model.source, f"{sum(entry.size for entry in entries) / 1e6:,.1f} M", kinds, model.licence or "?")
        table.add_row(*map(escape, row), "base" if index == plan.base else "")
    console.table(table)
    united = plan.tokenizer_from
    for line in (*plan.notes, *(united.report if isinstance(united, UnitedVocabulary) else ())):
        console.say(line, style="dim")
    _warn(console, plan.warnings)


def tell(console: Console, plan: MergePlan, merged: Merged) -> None:
    """Print what was noticed on the way, how long it took, and where the result is."""
    _warn(console, [line for line in merged.warnings if line not in plan.warnings])
    for label, distance in merged.distances.items():
        console.say(f"{label}: its difference from the base is {distance:.3g} of the base's size", style="dim")
    for name, count in sorted(merged.counters.items()):
        console.warn(sentence(name, count))
    if merged.reused:
        console.say(f"there already, made by the same merge: {merged.path}")
        return
    speed = (merged.bytes_read + merged.bytes_written) / MB / max(merged.seconds, 1e-9)
    console.say(
        f"{len(plan.tensors):,} tensors: {_size(merged.bytes_read)} read, {_size(merged.bytes_written)} written "
        f"in {merged.seconds:.1f} s ({speed:,.0f} MB/s)"
    )
    console.say(f"model: {merged.path}")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GB:.2f} GB" if num_bytes >= GB else f"{num_bytes / MB:.1f} MB"


def _warn(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.say(f"warning: {line}", style="yellow")


def _with_progress(console: Console, plan: MergePlan, out: Path, threads: int | None) -> Merged:
    columns = (TextColumn("merge"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console.rich, transient=True, disable=not console.rich.is_terminal) as progress:
        bar = progress.add_task("merge", total=None)
        return execute(plan, out, threads=threads, progress=lambda done, total: progress.update(bar, completed=done, total=total))
