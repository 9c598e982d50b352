"""Teacher rows as tensors: what a training step needs of a ``Fused``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lmfuse.types import TopK


class Targets(NamedTuple):
    """Teacher rows as the losses use them: probabilities that sum to 1, and no slot that needs a special case.

    Attributes:
        ids: an empty slot repeats a kept id of its row.
        probs: 0 in an empty slot and in a row that is not taught.
        tail: probability of everything outside ``ids``.
        owns: True in exactly one slot of each distinct id.
        entropy_nats: of the row; 0 where not taught.
        taught: rows that teach; a row without any candidate does not.
    """

    ids: Int[Tensor, "N K"]
    probs: Float[Tensor, "N K"]
    tail: Float[Tensor, "N"]
    owns: Bool[Tensor, "N K"]
    entropy_nats: Float[Tensor, "N"]
    taught: Bool[Tensor, "N"]


@dataclass(frozen=True, eq=False)
class TeacherRows:
    """One teacher row per position: what it says there, and what it says of the true tokens in a row.

    >>> rows = TeacherRows.from_numpy(TopK.certain(np.array([7, 2]), k=2, vocab_size=9), np.array([True, False]))
    >>> rows[:1].ids.tolist(), TeacherRows.cat([rows, rows[1:]]).taught.tolist()
    ([[7, 0]], [True, False, False])

    Attributes:
        ids, log_probs: kept ids and their log-probabilities; ``-inf`` in an empty slot.
        tail: log of the rest.
        taught: whether the row teaches.
        truth_nll_nats: the teacher's negative log-likelihood of the true token's own bytes; ``nan`` where unknown.
        boundary: whether the true token ends with a token of the teacher.
        joined: whether the true token begins where the one at the position before ends, in the same document.
    """

    ids: Int[Tensor, "N K"]
    log_probs: Float[Tensor, "N K"]
    tail: Float[Tensor, "N"]
    taught: Bool[Tensor, "N"]
    truth_nll_nats: Float[Tensor, "N"]
    boundary: Bool[Tensor, "N"]
    joined: Bool[Tensor, "N"]

    def __len__(self) -> int:
        return len(self.taught)

    def __getitem__(self, index: Any) -> TeacherRows:
        return self._each(lambda tensor: tensor[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> TeacherRows:
        return TeacherRows(*(change(getattr(self, each.name)) for each in fields(self)))

    @classmethod
    def of(
        cls, ids: Int[Tensor, "N K"], log_probs: Float[Tensor, "N K"], tail: Float[Tensor, "N"], taught: Bool[Tensor, "N"]
    ) -> TeacherRows:
        """Return rows that know nothing of the true tokens."""
        return cls(ids, log_probs, tail, taught, torch.full_like(tail, torch.nan), torch.zeros_like(taught), torch.zeros_like(taught))

    @classmethod
    def from_numpy(
        cls,
        topk: TopK,
        taught: Bool[np.ndarray, "N"],
        truth_nll_nats: Float[np.ndarray, "N"] | None = None,
        boundary: Bool[np.ndarray, "N"] | None = None,
        joined: Bool[np.ndarray, "N"] | None = None,
    ) -> TeacherRows:
        """Copy rows of a ``Fused`` into tensors on the CPU (int64, float32).

        Raises:
            ValueError: a taught row has an id outside the vocabulary, the same id twice, or a log-probability that is not a number.
        """
        kept = (topk.log_probs > -np.inf) & taught[:, None]
        if np.isnan(topk.log_probs[taught]).any() or np.isnan(topk.tail[taught]).any():
            raise ValueError("teacher rows: a taught row holds a log-probability that is not a number")
        if kept.any() and not (topk.ids[kept].min() >= 0 and topk.ids[kept].max() < topk.vocab_size):
            raise ValueError(f"teacher rows: ids {topk.ids[kept].min()} to {topk.ids[kept].max()}, expected 0 to {topk.vocab_size - 1}")
        slots = np.sort(np.where(kept, topk.ids, -1 - np.arange(topk.k)), axis=1)  # empty slots: distinct and negative
        if (slots[:, 1:] == slots[:, :-1]).any():
            row = int((slots[:, 1:] == slots[:, :-1]).any(1).argmax())
            raise ValueError(f"teacher rows: row {row} holds the same id twice; add their probabilities first")
        said = (topk.ids.astype(np.int64), topk.log_probs.astype(np.float32), topk.tail.astype(np.float32), taught.copy())
        rows = cls.of(*(torch.from_numpy(array) for array in said))
        truth = {
            "truth_nll_nats": None if truth_nll_nats is None else truth_nll_nats.astype(np.float32),
            "boundary": boundary,
            "joined": joined,
        }
        return replace(rows, **{name: torch.from_numpy(array.copy()) for name, array in truth.items() if array is not None})

    @classmethod
    def nothing(cls, num_rows: int, device: torch.device | str = "cpu") -> TeacherRows:
        """Return rows that teach nothing."""
        empty = torch.full((num_rows, 1), -torch.inf, device=device)
        ids, untaught = torch.zeros_like(empty, dtype=torch.int64), torch.zeros_like(empty[:, 0], dtype=torch.bool)
        return cls.of(ids, empty, torch.zeros_like(empty[:, 0]), untaught)

    @classmethod
    def cat(cls, parts: Sequence[TeacherRows]) -> TeacherRows:
        """Join rows along the first axis; narrower ones get empty slots."""
        k = max(part.ids.shape[1] for part in parts)
        wide = [
            replace(
                part,
                ids=torch.nn.functional.pad(part.ids, (0, k - part.ids.shape[1])),
                log_probs=torch.nn.functional.pad(part.log_probs, (0, k - part.ids.shape[1]), value=-torch.inf),
            )
            for part in parts
        ]
        return cls(*(torch.cat([getattr(part, each.name) for part in wide]) for each in fields(cls)))

    def to(self, device: torch.device | str) -> TeacherRows:
        """Return the same rows on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def targets(self, tail: Literal["bucket", "renormalise"]) -> Targets:
        """Return the rows normalised to 1: candidates and tail together, or as published the candidates alone."""
        kept = self.log_probs > -torch.inf
        taught = self.taught & kept.any(1)
        bucket = self.tail if tail == "bucket" else torch.full_like(self.tail, -torch.inf)
        log_probs = torch.cat([self.log_probs, bucket[:, None].to(self.log_probs.dtype)], 1)
        log_probs = torch.where(taught[:, None], log_probs, 0.0).log_softmax(1)
        probs = log_probs.exp() * taught[:, None]
        entropy = -(probs * torch.where(probs > 0, log_probs, 0.0)).sum(1)
        first = kept.to(torch.int8).argmax(1, keepdim=True)
        slots = torch.arange(kept.shape[1], device=kept.device)
        return Targets(
            torch.where(kept, self.ids, self.ids.gather(1, first)), probs[:, :-1], probs[:, -1], kept | (slots == first), entropy, taught
        )
