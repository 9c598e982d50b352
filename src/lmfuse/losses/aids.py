"""What some losses know of vocabularies, as tensors: which tokens begin a word, and where target ids go in a source's vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lmfuse.types import Vocabulary, VocabularyMap

WORD_BREAKS = b" \t\n\r"


@dataclass(frozen=True, eq=False)
class Projection:
    """A row-stochastic map from the target's ids to a source's, in layers: layer ``p`` holds the p-th share of every target id.

    Attributes:
        source_ids: where the share goes; 0 where there is none.
        shares: what part of the target id's probability it is; 0 where there is none.
        source_size: number of source ids.
    """

    source_ids: Int[Tensor, "P V"]
    shares: Float[Tensor, "P V"]
    source_size: int

    @classmethod
    def from_map(cls, onto: VocabularyMap) -> Projection:
        """Copy a map from target ids (its rows) to source ids into tensors on the CPU.

        >>> Projection.from_map(VocabularyMap(np.array([0, 2, 2]), np.array([1, 0]), np.array([.75, .25]), 2, "toy")).shares.tolist()
        [[0.75, 0.0], [0.25, 0.0]]
        """
        count = np.diff(onto.indptr)
        size = (max(int(count.max(initial=0)), 1), onto.source_size)
        ids, shares = np.zeros(size, np.int64), np.zeros(size, np.float32)
        row = np.repeat(np.arange(onto.source_size), count)
        layer = np.arange(len(row)) - np.repeat(onto.indptr[:-1], count)
        ids[layer, row], shares[layer, row] = onto.target_ids, onto.weights
        return cls(torch.from_numpy(ids), torch.from_numpy(shares), onto.target_size)

    @cached_property
    def reached(self) -> Bool[Tensor, "W"]:
        """Return which source ids get anything at all."""
        total = torch.zeros(self.source_size, dtype=self.shares.dtype, device=self.shares.device)
        return total.index_add(0, self.source_ids.flatten(), self.shares.flatten()) > 0

    def __call__(self, probs: Float[Tensor, "N V"]) -> tuple[Float[Tensor, "N W"], Float[Tensor, "N"]]:
        """Return distributions over the target's ids as distributions over the source's, and the probability that goes nowhere."""
        shares = self.shares.to(probs.dtype)
        projected = probs.new_zeros(len(probs), self.source_size)
        for ids, share in zip(self.source_ids, shares, strict=True):
            projected = projected.index_add(1, ids, probs * share)
        return projected, (probs * (1 - shares.sum(0)).clamp(min=0)).sum(1)


@dataclass(frozen=True, eq=False)
class Aids:
    """What a loss may want beside hidden states and teacher rows; ``Loss.wants`` names what it cannot do without.

    Attributes:
        boundary_ids: the target's tokens that are taken for a sign that the token before them has ended (see ``boundary_ids``).
        projection: the target's ids in the vocabulary of the teacher's rows.
    """

    boundary_ids: Bool[Tensor, "V"] | None = None
    projection: Projection | None = None

    @cached_property
    def boundary_list(self) -> Int[Tensor, "N"]:
        """Return ``boundary_ids`` as a list of ids."""
        assert self.boundary_ids is not None
        return self.boundary_ids.nonzero()[:, 0]

    def to(self, device: torch.device) -> Aids:
        """Return the same on a device."""
        onto = self.projection
        moved = None if onto is None else Projection(onto.source_ids.to(device), onto.shares.to(device), onto.source_size)
        return Aids(None if self.boundary_ids is None else self.boundary_ids.to(device), moved)


def boundary_ids(vocabulary: Vocabulary) -> Bool[np.ndarray, "V"]:
    """Return which tokens begin with white space (blank, tab, line break) or are control tokens: taken, as in ALM, for those that begin where a
    word has ended. Vocabularies whose tokens hold a blank inside (``\\n`` with indentation) make this an approximation.

    >>> boundary_ids(Vocabulary.from_tokens([b"", b" the", b"the", b"a b"])).tolist()
    [True, True, False, False]
    """
    control = vocabulary.lengths == 0
    first = np.append(vocabulary.flat, np.uint8(0))[vocabulary.offsets[:-1]]
    breaks: Bool[np.ndarray, "V"] = np.isin(first, np.frombuffer(WORD_BREAKS, np.uint8)) | control
    return breaks
