"""What a loss wants to know of tokenizers (``Loss.wants``), as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import InputError
from lmfuse.losses.aids import Aids, Projection, boundary_ids
from lmfuse.losses.family import Loss
from lmfuse.pairs import load_map

PROJECTION_MAP = "pieces"


def load_aids(loss: Loss, target: ByteTokenizer, sources: Sequence[ByteTokenizer], cache: Path) -> Aids:
    """Return what a loss wants, maps from ``cache/maps`` where they have been built before.

    Raises:
        InputError: the loss wants a map to the source's vocabulary, and there is more than one source, or none.
    """
    return Aids(
        boundary_ids=torch.from_numpy(boundary_ids(target.vocabulary)) if "boundary_ids" in loss.wants else None,
        projection=_projection(target, sources, cache) if "projection" in loss.wants else None,
    )


def _projection(target: ByteTokenizer, sources: Sequence[ByteTokenizer], cache: Path) -> Projection:
    if len(sources) != 1:
        raise InputError(
            f"projected_kl: rows of {len(sources)} sources; a map leads to one source's vocabulary", hint="teach from one source"
        )
    return Projection.from_map(load_map(target, sources[0], cache, PROJECTION_MAP))
