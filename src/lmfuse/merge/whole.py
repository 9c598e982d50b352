"""A merge method run over tensors in memory: the pieces and their order are those of the streaming engine, so are the bytes."""

from __future__ import annotations

import functools
import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence

from jaxtyping import Float

from lmfuse.merge.family import About, Merge
from lmfuse.merge.informed import Informed
from lmfuse.merge.piece import Piece, Tensor, cuts


def merge_tensors(
    method: Merge,
    sources: Sequence[Float[Tensor, "..."]],
    base: Float[Tensor, "..."] | None = None,
    name: str = "tensor",
    counters: Counter[str] | None = None,
) -> Float[Tensor, "..."]:
    """Merge one tensor of several models; the result has the dtype of the first.

    Args:
        name: of the tensor; random methods draw by it.
        counters: where fallbacks are counted.

    Raises:
        ValueError: the number of sources, a missing base or a shape does not fit.
    """
    models = [{name: source} for source in sources]
    return merge_models(method, models, None if base is None else {name: base}, counters)[name]


def merge_informed(
    method: Informed,
    sources: Sequence[Float[Tensor, "..."]],
    statistics: Sequence[Float[Tensor, "..."]] | None,
    name: str = "tensor",
    counters: Counter[str] | None = None,
) -> Float[Tensor, "..."]:
    """Merge one tensor of several models by a method that needs statistics, given those of each model for this tensor, or None.

    Raises:
        ValueError: the number of sources, or a shape, does not fit.
    """
    import torch

    method.check_sources(len(sources), has_base=False)
    shape, counted = tuple(sources[0].shape), Counter[str]() if counters is None else counters
    steps = method.begin(About((name,), (shape,), len(sources), sources[0].numel(), counted), lambda _: statistics)
    try:
        next(steps)
    except StopIteration as stop:
        combine = stop.value
    else:
        raise ValueError(f"{name}: the method looks at its sources, expected one that knows enough")
    rows = torch.stack([each.reshape(-1) for each in sources])
    merged = [combine(Piece(name, start, shape, rows[:, start:stop], None)) for start, stop in cuts(shape, method.needs_rows)]
    return torch.cat(merged).view(shape).to(sources[0].dtype)


def merge_models(
    method: Merge,
    sources: Sequence[Mapping[str, Float[Tensor, "..."]]],
    base: Mapping[str, Float[Tensor, "..."]] | None = None,
    counters: Counter[str] | None = None,
) -> dict[str, Float[Tensor, "..."]]:
    """Merge all tensors of several models, unit by unit.

    Raises:
        ValueError: the number of sources, a missing base, a name or a shape does not fit.
    """
    method.check(len(sources), base is not None)
    models = [*sources, *([] if base is None else [base])]
    for model in models[1:]:
        if {name: each.shape for name, each in model.items()} != {name: each.shape for name, each in models[0].items()}:
            raise ValueError("merge: tensors of different names or shapes, expected the same in all models")
    units: dict[str, list[str]] = {}
    for name in models[0]:
        units.setdefault(method.unit_of(name), []).append(name)
    merged: dict[str, Tensor] = {}
    for names in units.values():
        merged |= _merge_unit(method, names, sources, base, Counter() if counters is None else counters)
    return {name: merged[name] for name in models[0]}


def _merge_unit(
    method: Merge, names: list[str], sources: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor] | None, counters: Counter[str]
) -> dict[str, Tensor]:
    import torch

    shapes = tuple(tuple(sources[0][name].shape) for name in names)
    places = [(name, shape, *cut) for name, shape in zip(names, shapes, strict=True) for cut in cuts(shape, method.needs_rows)]

    def piece(name: str, shape: tuple[int, ...], start: int, stop: int) -> Piece:
        rows = [model[name].reshape(-1)[start:stop] for model in (*sources, *([] if base is None else [base]))]
        return Piece(name, start, shape, rows[: len(sources)], None if base is None else rows[-1])

    steps = method.start(About(tuple(names), shapes, len(sources), sum(map(math.prod, shapes)), counters))
    total = None
    while places:
        try:
            look = steps.send(total)
        except StopIteration as last:
            combine = last.value
            break
        wants = getattr(look, "wants", lambda name, start: True)
        seen = [look(piece(*place)) for place in places if wants(place[0], place[2])]
        total = functools.reduce(operator.add, seen) if seen else None
    merged = {name: torch.empty(math.prod(shape), dtype=sources[0][name].dtype) for name, shape in zip(names, shapes, strict=True)}
    for name, shape, start, stop in places:
        merged[name][start:stop] = combine(piece(name, shape, start, stop))
    return {name: merged[name].view(shape) for name, shape in zip(names, shapes, strict=True)}
