"""Which tensor of the result lies in which file at which byte, decided before anything is written.

Format: https://huggingface.co/docs/safetensors, the file names and the index as transformers writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmfuse.model_files import INDEX, SINGLE
from lmfuse.safetensors_header import ITEM_BITS
from lmfuse.weights.plan import OutputTensor


@dataclass(frozen=True)
class Span:
    """Bytes ``start:stop`` of a file."""

    start: int
    stop: int


@dataclass(frozen=True)
class Shard:
    """One weight file of the result: its name, the bytes before the first tensor, and where each tensor lies, in order."""

    name: str
    header: bytes
    spans: Mapping[str, Span]

    @property
    def num_bytes(self) -> int:
        """Return the file's size."""
        return max((span.stop for span in self.spans.values()), default=len(self.header))

    @property
    def part(self) -> str:
        """Return what the file is called until everything is written: nothing loads a file of this name."""
        return f"{self.name.removesuffix('.safetensors')}.part"


def num_bytes(tensor: OutputTensor) -> int:
    """Return how many bytes a tensor of the result has."""
    total = ITEM_BITS[tensor.dtype] // 8
    for size in tensor.shape:
        total *= size
    return total


def lay_out(tensors: Sequence[OutputTensor], max_shard_bytes: int) -> tuple[Shard, ...]:
    """Return the weight files of the result: tensors in their order, as many to a file as it may hold, a larger one alone.

    Within a file types of more bytes come first, so that every tensor begins at a multiple of its type's size.
    """
    groups: list[list[OutputTensor]] = [[]]
    room = max_shard_bytes
    for tensor in tensors:
        size = num_bytes(tensor)
        if groups[-1] and size > room:
            groups.append([])
            room = max_shard_bytes
        groups[-1].append(tensor)
        room -= size
    names = [SINGLE] if len(groups) == 1 else [f"model-{n + 1:05d}-of-{len(groups):05d}.safetensors" for n in range(len(groups))]
    return tuple(_shard(name, group) for name, group in zip(names, groups, strict=True))


def _shard(name: str, tensors: Sequence[OutputTensor]) -> Shard:
    ordered = sorted(tensors, key=lambda tensor: -ITEM_BITS[tensor.dtype])
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    sizes, position = {}, 0
    for tensor in ordered:
        sizes[tensor.name] = Span(position, position + num_bytes(tensor))
        table[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, position + num_bytes(tensor)]
        }  # fmt: skip
        position += num_bytes(tensor)
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return Shard(name, header, {key: Span(len(header) + span.start, len(header) + span.stop) for key, span in sizes.items()})


def index_file(shards: Sequence[Shard]) -> tuple[str, bytes] | None:
    """Return name and content of the index over several weight files, None where one file needs none."""
    if len(shards) == 1:
        return None
    total = sum(span.stop - span.start for shard in shards for span in shard.spans.values())
    weight_map = {name: shard.name for shard in shards for name in shard.spans}
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return INDEX, (json.dumps(content, indent=2) + "\n").encode()
