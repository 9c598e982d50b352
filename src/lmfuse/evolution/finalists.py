"""Who is scored on the second split: the best different models, where two recipes for the same weights are one model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from lmfuse.evolution.models import Model
from lmfuse.evolve.family import Member
from lmfuse.evolve.genome import Genome


def finalists(pool: Sequence[Member], parents: Sequence[Member], count: int, mark: Callable[[Genome], str]) -> list[Member]:
    """Return the best parent and the best different individuals: of equals, the parent.

    An individual with the weights of a parent is that parent, with the parent's score. So is every member of the first population
    whose genes are coefficients that say "this parent alone", and any recipe that happens to lead back to one.

    Args:
        pool: of the search.
        parents: as they are, best first; those that could be scored.
        count: how many of pool and best parent together; the best parent comes on top where it is not among them.
        mark: what two genomes have in common if their weights are the same.
    """
    own: dict[str, Member] = {}
    for parent in parents:
        own.setdefault(mark(parent.genome), parent)
    by_key: dict[str, Member] = {}
    for member in [*parents[:1], *pool]:
        by_key.setdefault(member.genome.key, member)
    chosen: dict[str, Member] = {}
    for member in sorted(by_key.values(), key=lambda member: -member.score):
        if len(chosen) == count:
            break
        found = mark(member.genome)
        chosen.setdefault(found, own.get(found, member))
    best = sorted(chosen.values(), key=lambda member: -member.score)  # a parent's own score may differ in the last digits
    return [*parents[:1], *(member for member in best if not parents or member.genome != parents[0].genome)]


def fingerprint(model: Model) -> str:
    """Return a hash of a model's weights: names, types, shapes and numbers; of zeros the sign says nothing.

    >>> one, other = {"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([-0.0, 1.0])}
    >>> fingerprint(one) == fingerprint(other) != fingerprint({"w": torch.tensor([0.0, 2.0])})
    True
    """
    digest = hashlib.sha256()
    for name, tensor in _tensors(model):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        plain = torch.where(tensor == 0, torch.zeros_like(tensor), tensor)
        digest.update(plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Give tensors by name, one at a time."""
    if not isinstance(model, Path):
        yield from sorted(model.items())
        return
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)
