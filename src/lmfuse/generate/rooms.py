"""Where keys and values stand: tensors with room to grow, a row for each text that is written at the same time."""

from __future__ import annotations

from itertools import count

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

FIRST_ROOM = 256  # tokens


class Room:
    """One layer's keys and values; what no text has written yet is zero, so that a mask hides it whatever is multiplied by it.

    Attributes:
        tensors: keys and values, each [rows, heads, tokens that fit, size of a head]; empty before the first are known.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.tensors = rows, tuple[Tensor, ...]()

    def grow(self, states: tuple[Float[Tensor, "B H T D"], Float[Tensor, "B H T E"]], length: int) -> None:
        """Make room for ``length`` tokens with keys and values like these."""
        if not self.tensors:
            self.tensors = tuple(self._empty(like, max(FIRST_ROOM, 2 * length)) for like in states)
        elif self.tensors[0].shape[2] < length:
            self.tensors = tuple(self._grown(old, 2 * length) for old in self.tensors)

    def _empty(self, like: Tensor, length: int) -> Tensor:
        return like.new_zeros((self.rows, like.shape[1], length, like.shape[3]))

    def _grown(self, old: Tensor, length: int) -> Tensor:
        new = self._empty(old, length)
        new[:, :, : old.shape[2]] = old
        return new


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A layer's keys and values of one text: adding costs what is added, cutting nothing."""

    def __init__(self, room: Room, row: int) -> None:
        self.room, self.row, self.length, self.is_initialized = room, row, 0, False

    @property
    def keys(self) -> Float[Tensor, "1 H T D"]:
        """Return the keys of what it holds."""
        return self.room.tensors[0][self.row : self.row + 1, :, : self.length]

    @property
    def values(self) -> Float[Tensor, "1 H T E"]:
        """Return the values of what it holds."""
        return self.room.tensors[1][self.row : self.row + 1, :, : self.length]

    def get_seq_length(self) -> int:
        """Return how many tokens it holds."""
        return self.length

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Add keys and values of new tokens; return all."""
        length = self.length + key_states.shape[2]
        self.room.grow((key_states, value_states), length)
        for place, states in zip(self.room.tensors, (key_states, value_states), strict=True):
            place[self.row : self.row + 1, :, self.length : length] = states
        self.holds(length)
        return self.keys, self.values

    def holds(self, length: int) -> None:
        """Take note that so many tokens stand in its row."""
        self.length, self.is_initialized = length, True

    def cut(self, length: int) -> None:
        """Forget everything behind the first ``length`` tokens; a length that was there before brings back what stood there."""
        if self.is_initialized:
            self.length = length

    def move(self, first: int, last: int, onto: int) -> None:
        """Copy the tokens ``first:last`` to where token ``onto`` stands, and forget everything behind them."""
        if first != onto:
            for place in self.room.tensors:
                row = place[self.row]
                row[:, onto : onto + last - first] = row[:, first:last].clone()
        self.cut(onto + last - first)


class Rooms:
    """The keys and values of one model for all texts that are written at the same time."""

    def __init__(self, rows: int) -> None:
        self.rows, self._rooms = rows, list[Room]()

    def _room(self, place: int) -> Room:
        while len(self._rooms) <= place:
            self._rooms.append(Room(self.rows))
        return self._rooms[place]

    def cache(self, row: int) -> Cache:
        """Return an empty cache that writes into a row."""
        places = count()
        return Cache(layer_class_to_replicate=lambda: GrowingLayer(self._room(next(places)), row))


class StackedCache(Cache):  # type: ignore[misc]
    """The caches of several texts in one forward pass: new keys and values go to each text's own row, padding to none."""

    def __init__(self, caches: list[Cache], rows: list[int], counts: list[int], device: torch.device) -> None:
        """Prepare for a pass.

        Args:
            caches: one for each row of the pass, of the same ``Rooms``.
            rows: where each stands in the rooms.
            counts: how many new tokens each has.
            device: of the model.
        """
        super().__init__(layer_class_to_replicate=GrowingLayer)
        self._caches, self._rows = caches, rows
        held = [int(cache.get_seq_length()) if cache.layers else 0 for cache in caches]
        self._lengths = [before + new for before, new in zip(held, counts, strict=True)]
        self.batch = torch.tensor([b for b, new in enumerate(counts) for _ in range(new)], device=device)
        self.query = torch.tensor([place for new in counts for place in range(new)], device=device)
        self._row = torch.tensor(rows, device=device)
        self._to_row = self._row[self.batch]
        self._to_place = torch.tensor(held, device=device)[self.batch] + self.query

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Add the new tokens' keys and values; return those of all texts, padded on the right."""
        layers = [_layer(cache, layer_idx) for cache in self._caches]
        room, longest = layers[0].room, max(self._lengths)
        room.grow((key_states, value_states), longest)
        for layer, length in zip(layers, self._lengths, strict=True):
            layer.holds(length)
        for place, states in zip(room.tensors, (key_states, value_states), strict=True):
            place.transpose(1, 2)[self._to_row, self._to_place] = states.transpose(1, 2)[self.batch, self.query]
        keys, values = (self._stacked(place[:, :, :longest]) for place in room.tensors)
        return keys, values

    def _stacked(self, states: Tensor) -> Tensor:
        first = self._rows[0]
        if self._rows == list(range(first, first + len(self._rows))):
            return states[first : first + len(self._rows)]
        return states.index_select(0, self._row)


def _layer(cache: Cache, place: int) -> GrowingLayer:
    while len(cache.layers) <= place:
        cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[place]
    assert isinstance(layer, GrowingLayer)
    return layer
