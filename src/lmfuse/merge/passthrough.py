"""Passthrough: one model as it is."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.merge.affine import combination
from lmfuse.merge.family import About, Combine, Finite, Look, Merge


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Passthrough(Merge):
    """The only source, ``scale * theta``: for models whose layers come from several, with ``slices``.

    - ``scale``: 1 leaves the numbers as they are; 0 for the output of a block makes it the identity.

    >>> import torch
    >>> from lmfuse.merge.whole import merge_tensors
    >>> merge_tensors(Passthrough(scale=0.5), [torch.tensor([8.0])]).tolist()
    [4.0]
    """

    max_sources: ClassVar[int | None] = 1
    name: Literal["passthrough"] = "passthrough"
    scale: Finite = 1.0

    def start(self, about: About) -> Generator[Look, Any, Combine]:
        """Begin to merge one unit; nothing has to be looked at."""
        self.check(about.num_sources, has_base=False)
        return combination([self.scale])
        yield
