"""One model reading token by token: what it has read stays in a cache that can be cut, and several continuations are read at once.

Several continuations of one text are laid side by side behind it in the cache, and a mask keeps them apart (a tree): the text before them is
neither read again nor copied. A model that cannot be asked like that reads them one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lmfuse.errors import ModelError
from lmfuse.generate.rooms import Rooms
from lmfuse.model_head import TOLERANCE
from lmfuse.models import LanguageModel

MOST_TREE_TOKENS = 2048  # a larger tree's mask and logits cost more than they save
WINDOWS_OF_THEIR_OWN = ("attention_types", "attention_window", "local_attention", "window_size")  # by place in the cache, whatever the mask
_reads_trees: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_asking = threading.Lock()


@dataclass(frozen=True)
class Branch:
    """One continuation: the first ``keep`` tokens of what was read stay, ``ids`` follow."""

    keep: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Read:
    """A branch that was read: the log-probabilities after each of its tokens, and where in the cache its tokens stand."""

    branch: Branch
    log_probs: Float[Tensor, "T V"]
    first: int


@dataclass(frozen=True)
class Wanted:
    """A forward pass that a reader wants: tokens behind those of its cache.

    Attributes:
        reader: who wants it.
        ids: the tokens.
        positions: of these tokens; None: one after the other behind what the cache holds.
        sees: which tokens of the cache, and of these, each of them sees; None: all before it, and itself.
        last_only: whether only what follows the last one is asked for.
    """

    reader: Reader
    ids: Sequence[int]
    positions: Int[Tensor, "T"] | None = None
    sees: Bool[Tensor, "T S"] | None = None
    last_only: bool = False


@dataclass(frozen=True)
class Seat:
    """Where a reader's keys and values stand, and who runs its forward passes."""

    rooms: Rooms
    row: int
    forward: Callable[[Wanted], Float[Tensor, "T V"]]


class Reader:
    """A model, its cache, and how many tokens it has read so far; all methods want ``torch.inference_mode``."""

    def __init__(self, model: LanguageModel, seat: Seat | None = None) -> None:
        self.model = model
        self.seat = seat or Seat(Rooms(1), 0, read_alone)
        self.cache = self.seat.rooms.cache(self.seat.row)
        self.tokens_read = 0

    @property
    def length(self) -> int:
        """Return how many tokens the cache holds."""
        return int(self.cache.get_seq_length()) if self.cache.layers else 0

    def read(self, ids: Sequence[int], *, last_only: bool = False) -> Float[Tensor, "T V"]:
        """Read tokens behind those of the cache; return the log-probabilities of what follows each of them, or the last one."""
        return self._forward(ids, last_only=last_only)

    def cut(self, length: int) -> None:
        """Forget everything behind the first ``length`` tokens."""
        for layer in self.cache.layers:
            layer.cut(length)

    def read_branches(self, branches: Sequence[Branch]) -> list[Read]:
        """Read several continuations; they stand behind what the cache holds until ``take`` or ``cut``. Each has a token at least."""
        total = sum(len(branch.ids) for branch in branches)
        if len(branches) == 1 and branches[0].keep == self.length:
            return [Read(branches[0], self.read(branches[0].ids), branches[0].keep)]
        if total <= MOST_TREE_TOKENS and reads_trees(self.model):
            return self._read_tree(branches)
        return [self._read_alone(branch) for branch in branches]

    def take(self, read: Read) -> None:
        """Make a continuation that was read the one that the cache holds."""
        for layer in self.cache.layers:
            layer.move(read.first, read.first + len(read.branch.ids), read.branch.keep)

    def _read_alone(self, branch: Branch) -> Read:
        """Read one continuation at its place, then put its keys and values behind everything, and what stood in its place back."""
        end, place = self.length, slice(branch.keep, branch.keep + len(branch.ids))
        saved = [[part[..., branch.keep :, :].clone() for part in (layer.keys, layer.values)] for layer in self.cache.layers]
        self.cut(branch.keep)
        log_probs = self.read(branch.ids)
        for layer, (keys, values) in zip(self.cache.layers, saved, strict=True):
            own = [part[..., place, :].clone() for part in (layer.keys, layer.values)]
            layer.cut(branch.keep)
            layer.update(torch.cat([keys, own[0]], -2), torch.cat([values, own[1]], -2))
        return Read(branch, log_probs, end)

    def _read_tree(self, branches: Sequence[Branch]) -> list[Read]:
        before = self.length
        ids = [token_id for branch in branches for token_id in branch.ids]
        positions = torch.cat([torch.arange(branch.keep, branch.keep + len(branch.ids)) for branch in branches])
        sees = torch.zeros(len(ids), before + len(ids), dtype=torch.bool)
        reads, at = [], 0
        for branch in branches:
            rows = slice(at, at + len(branch.ids))
            sees[rows, : branch.keep] = True
            sees[rows, before + at : before + rows.stop] = torch.ones(len(branch.ids), len(branch.ids), dtype=torch.bool).tril()
            at = rows.stop
        log_probs = self._forward(ids, positions, sees)
        at = 0
        for branch in branches:
            reads.append(Read(branch, log_probs[at : at + len(branch.ids)], before + at))
            at += len(branch.ids)
        return reads

    def _forward(
        self,
        ids: Sequence[int],
        positions: Int[Tensor, "T"] | None = None,
        sees: Bool[Tensor, "T S"] | None = None,
        *,
        last_only: bool = False,
    ) -> Float[Tensor, "T V"]:
        self.tokens_read += len(ids)
        return self.seat.forward(Wanted(self, ids, positions, sees, last_only))


def read_alone(wanted: Wanted) -> Float[Tensor, "T V"]:
    """Run one reader's forward pass; return the log-probabilities of what follows each token, or the last one."""
    reader, places, mask = wanted.reader, None, None
    model, device = reader.model, reader.model.device
    if wanted.positions is not None and wanted.sees is not None:
        key_positions = torch.cat([torch.arange(reader.length), wanted.positions])
        places = wanted.positions[None].to(device)
        mask = masks_of(model, wanted.sees[None], (wanted.positions[:, None] - key_positions)[None])
    input_ids = torch.tensor([list(wanted.ids)], device=device)
    hidden = model.body(
        input_ids=input_ids, attention_mask=mask, position_ids=places, past_key_values=reader.cache, use_cache=True
    ).last_hidden_state[0]
    return torch.log_softmax(model.head.logits(hidden[-1:] if wanted.last_only else hidden), -1)


def masks_of(model: LanguageModel, sees: Bool[Tensor, "B T S"], distance: Int[Tensor, "B T S"]) -> Tensor | dict[str, Tensor]:
    """Return what a query adds to its scores, in the form that the model wants: for each kind of layer, or one for all.

    Args:
        model: the model.
        sees: whether a query sees a key.
        distance: the query's position less the key's.
    """
    config = model.module.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or (["sliding_attention"] if window else ["full_attention"]))
    masks = {}
    for kind in kinds:
        seen = sees & (distance < window) if kind == "sliding_attention" and window else sees
        mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill_(~seen, torch.finfo(model.dtype).min)
        masks[kind] = mask[:, None].to(model.device)
    return masks if len(masks) > 1 else next(iter(masks.values()))


def reads_trees(model: LanguageModel) -> bool:
    """Return whether a model reads several continuations at once as it reads each alone; found out by asking it, once.

    Raises:
        ModelError: its cache cannot be cut, so that no other model's text can follow what it has read.
    """
    with _asking:
        if model.module not in _reads_trees:
            _reads_trees[model.module] = _ask(model)
        return _reads_trees[model.module]


@torch.inference_mode()
def _ask(model: LanguageModel) -> bool:
    size = model.tokenizer.vocabulary.size
    text, one, two = ([(7919 * place + start) % size for place in range(4)] for start in (3, 5, 11))
    whole = Reader(model).read([*text, *one])[4:], Reader(model).read([*text[:2], *two])[2:]
    reader = Reader(model)
    reader.read([*text, *two])
    close = TOLERANCE.get(model.dtype, 1e-3) * max(float(whole[0].abs().max()), 1e-6)
    try:
        reader.cut(4)
        again = reader.read(one)
    except Exception as reason:  # a layer that is none of ours: the model keeps a state of another kind
        raise _no_cutting(model) from reason
    if reader.length != 8 or float((again - whole[0]).abs().max()) > close:
        raise _no_cutting(model)
    config = model.module.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds <= {"full_attention", "sliding_attention"} or any(getattr(config, name, None) for name in WINDOWS_OF_THEIR_OWN):
        return False
    try:
        reads = reader._read_tree([Branch(4, tuple(one)), Branch(2, tuple(two))])
    except Exception:  # attention that takes no mask of ours
        return False
    return all(float((read.log_probs - wanted).abs().max()) <= close for read, wanted in zip(reads, whole, strict=True))


def _no_cutting(model: LanguageModel) -> ModelError:
    return ModelError(
        f"{type(model.module).__name__} cannot forget what it has read: it keeps more than keys and values",
        "use a model with attention in every layer",
    )
