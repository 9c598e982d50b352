"""Several checkpoints become one: streamed through any merge method by many threads in bounded memory, all or nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmfuse.errors import ModelError
from lmfuse.weights.card import licence_report, merge_card
from lmfuse.weights.check import check_plan
from lmfuse.weights.deltas import delta_warnings, relative_sizes
from lmfuse.weights.files import template_warnings
from lmfuse.weights.layout import index_file, lay_out, num_bytes
from lmfuse.weights.place import resolved
from lmfuse.weights.plan import MergePlan, OutputTensor
from lmfuse.weights.publish import Working, arithmetic, working_folder
from lmfuse.weights.read import DTYPES, OpenFiles, in_file_order
from lmfuse.weights.threads import Crew, usable_cores
from lmfuse.weights.units import Unit
from lmfuse.weights.write import Output

READ_AHEAD_BYTES = 2**29
Progress = Callable[[int, int], None]  # bytes of the result that are written, and all of them


@dataclass(frozen=True)
class Merged:
    """What a merge has ended in.

    Attributes:
        path: the model's folder.
        warnings: what may be wrong with it, the plan's own among them.
        counters: how often which fallback was taken.
        distances: for each model with a base, by label, the size of its difference over that of the base.
        bytes_read: of weights.
        bytes_written: of weights.
        seconds: from the checked plan to the finished folder.
        reused: the folder was there already, made by the same plan.
    """

    path: Path
    warnings: tuple[str, ...]
    counters: Mapping[str, int]
    distances: Mapping[str, float]
    bytes_read: int
    bytes_written: int
    seconds: float
    reused: bool = False


def execute(plan: MergePlan, out: Path, *, threads: int | None = None, progress: Progress | None = None) -> Merged:
    """Merge models into the folder ``out``.

    On one kind of processor the bytes depend on the plan alone: not on threads, and not on how often the merge was interrupted. The
    working folder beside ``out`` cannot be loaded; the same call goes on after the last tensor that was finished there.

    Args:
        plan: what to merge.
        out: a folder that is not there, or empty, or the result of the same plan, which is then compared with its hashes.
        threads: how many; by default as many as there are cores.
        progress: is told of what is written, a few times a second.

    Raises:
        BusyError: another process writes the same folder.
        InputError: the plan contradicts itself, ``out`` is taken, or a merged value is too large for its type.
        ModelError: a tensor is missing, misshapen or not finite, or integers differ between models.
        ResourceError: the disk is full.
        VerificationError: ``out`` is the result of the same plan, but damaged.
    """
    begin = time.monotonic()
    check_plan(plan)
    files = dict(plan.files)
    tensors = in_file_order(plan)
    shards = lay_out(tensors, plan.max_shard_bytes)
    out = resolved(out)
    with working_folder(out, plan.key, shards) as working:
        reused = working.manifest is not None
        if not reused:
            weights = _Merge(plan, tensors, working, threads or usable_cores(), progress).run()
            if index := index_file(shards):
                files[index[0]] = index[1]
            _seal(plan, working, weights, files)
    manifest = working.manifest
    assert manifest is not None
    found = manifest.provenance
    read = sum(num_bytes_read(plan, tensor) for tensor in tensors)
    written = sum(num_bytes(tensor) for tensor in tensors)
    counters = {name: int(count) for name, count in manifest.counters.items()}
    return Merged(out, (*found["warnings"], *working.told), counters, found["distances"], read, written, time.monotonic() - begin, reused)


def num_bytes_read(plan: MergePlan, tensor: OutputTensor) -> int:
    """Return how many bytes of weights a tensor of the result is made of."""
    entries = [plan.models[ref.model].entry(ref.name) for ref in tensor.refs]
    return sum(entry.stop - entry.start for entry in entries)


def _seal(plan: MergePlan, working: Working, weights: Mapping[str, Any], files: dict[str, bytes]) -> None:
    records = {record["tensor"]: record for record in working.records}
    by_unit = {record["unit"]: record["counters"] for record in working.records}
    counters: Counter[str] = Counter()
    for name in sorted(by_unit):
        counters.update(by_unit[name])
    base = next((tensor.base.model for tensor in plan.tensors if tensor.base is not None), -1)
    with_base = [tensor for tensor in plan.tensors if tensor.base is not None]
    sizes = relative_sizes([([ref.model for ref in each.sources], records[each.name]["deltas"]) for each in with_base])
    sizes.pop(base, None)  # a base that is among its own sources
    warnings = [
        *plan.warnings,
        *template_warnings(plan),
        *delta_warnings(sizes, [model.label for model in plan.models], plan.models[base].label),
    ]
    distances = {model: size.value for model, size in sizes.items()}
    card = merge_card(plan, working.out.name, warnings=warnings, counters=counters, distances=distances)
    files["README.md"] = card.encode()
    warnings += licence_report({model.label: model.licence for model in plan.models})[1]
    models = [
        {"label": each.label, "source": each.source, "revision": each.revision, "licence": each.licence, "key": each.key}
        for each in plan.models
    ]
    by_label = {plan.models[model].label: float(f"{value:.6g}") for model, value in distances.items()}
    provenance = {
        "plan": plan.key,
        "arithmetic": arithmetic(),
        "models": models,
        "warnings": warnings,
        "notes": list(plan.notes),
        "distances": by_label,
    }
    working.seal(weights, files, provenance, counters)


class _Merge:
    """The tensors of a plan, on their way into a working folder."""

    def __init__(self, plan: MergePlan, tensors: Sequence[OutputTensor], working: Working, threads: int, progress: Progress | None) -> None:
        self._plan, self._working, self._threads, self._progress = plan, working, threads, progress
        self._finished = {record["tensor"] for record in working.records}
        self._files = OpenFiles(plan.models)
        self._tensors = tensors
        self._groups = [group for group in _units(tensors) if not self._finished.issuperset(each.name for each in group)]
        self._ahead: Iterator[OutputTensor] = (each for group in self._groups for each in group)
        self._lock = threading.Lock()
        self._seen_bytes = self._asked_bytes = self._written_bytes = 0
        self._total_bytes = sum(num_bytes(tensor) for tensor in tensors)

    def run(self) -> Mapping[str, Any]:
        """Merge what is not finished; return size and hash of each weight file."""
        for tensor in self._tensors:
            if tensor.dtype not in DTYPES:
                self._refuse_unequal(tensor)
        self._written_bytes = sum(num_bytes(tensor) for tensor in self._tensors if tensor.name in self._finished)
        with Output(self._working.path, self._working.shards, self._working.records, self._working.journal) as output:

            def done(unit: Unit, index: int) -> None:
                tensor = unit.tensors[index].output
                with self._lock:
                    self._written_bytes += num_bytes(tensor)
                output.finish({"tensor": tensor.name, "unit": unit.name, "counters": unit.counters, "deltas": unit.deltas[index].record()})

            def tick() -> None:
                output.refuse_trouble()
                self._ask_ahead()
                if self._progress is not None:
                    self._progress(self._written_bytes, self._total_bytes)

            self._copy(output)
            Crew(self._opened(), output.write, done, self._threads).run(tick)
            entries = output.complete()
        self._files.refuse_changed()
        return entries

    def _opened(self) -> Iterator[Unit]:
        for group in self._groups:
            yield Unit(group[0].name, [self._files.tensor(each) for each in group], self._finished, self._saw)

    def _saw(self, num_bytes: int) -> None:
        with self._lock:
            self._seen_bytes += num_bytes

    def _ask_ahead(self) -> None:
        """Have the system read what comes next, so that no thread waits for the disk."""
        while self._asked_bytes < self._seen_bytes + READ_AHEAD_BYTES:
            tensor = next(self._ahead, None)
            if tensor is None:
                return
            self._asked_bytes += num_bytes_read(self._plan, tensor)
            self._files.read_ahead(tensor)

    def _refuse_unequal(self, tensor: OutputTensor) -> None:
        first, *others = [(ref, self._files.data(ref.model, ref.name)) for ref in tensor.refs]
        for ref, data in others:
            if not torch.equal(data, first[1]):
                one, other = self._plan.models[ref.model].label, self._plan.models[first[0].model].label
                raise ModelError(
                    f"{one}: tensor {ref.name} ({tensor.dtype}) is not that of {other}: integers cannot be merged",
                    "merge models of one make",
                )

    def _copy(self, output: Output) -> None:
        """Write what no method is asked about: integers, which are equal everywhere, and tensors without elements."""
        for tensor in self._tensors:
            if tensor.name in self._finished or (tensor.dtype in DTYPES and num_bytes(tensor)):
                continue
            if num_bytes(tensor):
                ref = tensor.sources[0]
                output.write_bytes(tensor.name, 0, memoryview(self._files.data(ref.model, ref.name).numpy()))  # type: ignore[arg-type]
            nothing = {"base": 0.0, "differences": [0.0] * len(tensor.sources), "equal": [True] * len(tensor.sources)}
            output.finish({"tensor": tensor.name, "unit": tensor.name, "counters": {}, "deltas": nothing})


def _units(tensors: Sequence[OutputTensor]) -> list[list[OutputTensor]]:
    """Return the tensors that a method is asked about, in the groups that its methods look at together, as they come first."""
    groups: dict[tuple[object, ...], list[OutputTensor]] = {}
    for tensor in tensors:
        if tensor.dtype in DTYPES and num_bytes(tensor):
            models = tuple(ref.model for ref in tensor.sources)
            base = tensor.base.model if tensor.base else None
            groups.setdefault((tensor.method.unit_of(tensor.name), repr(tensor.method), models, base), []).append(tensor)
    return list(groups.values())
