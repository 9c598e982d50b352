"""One model reading token by token: what it has read stays in a cache that can be cut, and several continuations are read at once.

Several continuations of one text are laid side by side behind it in the cache, and a mask keeps them apart (a tree): the text before them is
neither read again nor copied. A model that cannot be asked like that reads them one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from lmfuse.errors import ModelError
from lmfuse.model_head import TOLERANCE
from lmfuse.models import LanguageModel

FIRST_ROOM = 256  # tokens
MOST_TREE_TOKENS = 2048  # a larger tree's mask and logits cost more than they save
_reads_trees: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_asking = threading.Lock()


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A layer's keys and values in tensors with room to grow: adding costs what is added, cutting nothing."""

    room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values of new tokens; return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        length = before + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < length:
            self.room = tuple(self._grown(states, old, length) for states, old in ((key_states, self.keys), (value_states, self.values)))  # type: ignore[assignment]
        assert self.room is not None
        for place, states in zip(self.room, (key_states, value_states), strict=True):
            place[..., before:length, :] = states
        self.cut(length)
        return self.keys, self.values

    @staticmethod
    def _grown(states: Tensor, old: Tensor, length: int) -> Tensor:
        room = states.new_empty((*states.shape[:-2], max(FIRST_ROOM, 2 * length), states.shape[-1]))
        if old.numel():
            room[..., : old.shape[-2], :] = old
        return room

    def cut(self, length: int) -> None:
        """Forget everything behind the first ``length`` tokens; a length that was there before brings back what stood there."""
        if self.room is not None:
            self.keys, self.values = (place[..., :length, :] for place in self.room)

    def move(self, first: int, last: int, onto: int) -> None:
        """Copy the tokens ``first:last`` to where token ``onto`` stands, and forget everything behind them."""
        assert self.room is not None
        for place in self.room:
            place[..., onto : onto + last - first, :] = place[..., first:last, :].clone()
        self.cut(onto + last - first)


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


class Reader:
    """A model, its cache, and how many tokens it has read so far; all methods want ``torch.inference_mode``."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.cache = Cache(layer_class_to_replicate=GrowingLayer)
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
        key_positions = torch.cat([torch.arange(before), positions])
        reads, at = [], 0
        for branch in branches:
            rows = slice(at, at + len(branch.ids))
            sees[rows, : branch.keep] = True
            sees[rows, before + at : before + rows.stop] = torch.ones(len(branch.ids), len(branch.ids), dtype=torch.bool).tril()
            at = rows.stop
        log_probs = self._forward(ids, positions[None], self._masks(sees, positions[:, None] - key_positions))
        at = 0
        for branch in branches:
            reads.append(Read(branch, log_probs[at : at + len(branch.ids)], before + at))
            at += len(branch.ids)
        return reads

    def _masks(self, sees: Tensor, distance: Tensor) -> Tensor | dict[str, Tensor]:
        """Return what a query adds to its scores, in the form that the model wants: for each kind of layer, or one for all."""
        config = self.model.module.config.get_text_config(decoder=True)
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or (["sliding_attention"] if window else ["full_attention"]))
        masks = {}
        for kind in kinds:
            seen = sees & (distance < window) if kind == "sliding_attention" and window else sees
            mask = torch.zeros(seen.shape, dtype=self.model.dtype).masked_fill_(~seen, torch.finfo(self.model.dtype).min)
            masks[kind] = mask[None, None].to(self.model.device)
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _forward(
        self,
        ids: Sequence[int],
        positions: Tensor | None = None,
        mask: Tensor | dict[str, Tensor] | None = None,
        *,
        last_only: bool = False,
    ) -> Float[Tensor, "T V"]:
        self.tokens_read += len(ids)
        device = self.model.device
        places = None if positions is None else positions.to(device)
        input_ids = torch.tensor([list(ids)], device=device)
        found = self.model.body(
            input_ids=input_ids, attention_mask=mask, position_ids=places, past_key_values=self.cache, use_cache=True
        ).last_hidden_state[0]
        return torch.log_softmax(self.model.head.logits(found[-1:] if last_only else found), -1)


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
    kinds = set(getattr(model.module.config.get_text_config(decoder=True), "layer_types", None) or ())
    if not kinds <= {"full_attention", "sliding_attention"}:
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
