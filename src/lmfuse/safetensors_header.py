"""The first bytes of a .safetensors file: what it says it holds, checked against what it can hold, without reading a tensor.

Format: https://huggingface.co/docs/safetensors. Eight bytes little-endian length, a JSON object, then the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmfuse.errors import LmfuseError, ModelError

ITEM_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
LONGEST_HEADER = 100_000_000  # the reference implementation's own limit
SPELLED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # the types of weights as we and torch call them, and as files do


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: its type, its shape, and the bytes ``start:stop`` of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a .safetensors file holds: tensors by name, free-form strings, and the file's length in bytes."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    num_bytes: int


def read_header(path: Path, error: type[LmfuseError] = ModelError) -> SafetensorsHeader:
    """Read and check the header of a .safetensors file.

    Raises:
        error: the file is missing, is no safetensors file, or is shorter or longer than its header says.
    """
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            return parse_header(path, file.read, num_bytes, error)
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}", _HINT) from reason


def parse_header(path: Path, read: Callable[[int], bytes], num_bytes: int, error: type[LmfuseError] = ModelError) -> SafetensorsHeader:
    """Check the header of a .safetensors file of ``num_bytes`` that ``read`` reads from its beginning; ``path`` is for messages.

    Raises:
        error: it is no safetensors file, or is shorter or longer than its header says.
    """
    length = int.from_bytes(read(8), "little")
    if num_bytes < 8 or length > min(num_bytes - 8, LONGEST_HEADER):
        raise error(f"{path} is truncated or no safetensors file: its header would end at byte {8 + length}, it has {num_bytes}", _HINT)
    try:
        raw = json.loads(read(length))
        metadata = raw.pop("__metadata__", {})
        tensors = {str(name): _entry(entry, 8 + length) for name, entry in raw.items()}
        strings = {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as reason:
        raise error(f"{path} has a broken safetensors header: {reason}", _HINT) from reason
    _check_layout(path, tensors, 8 + length, num_bytes, error)
    return SafetensorsHeader(tensors, strings, num_bytes)


_HINT = "fetch or write the file again"


def _entry(entry: Any, data_start: int) -> TensorEntry:
    start, stop = (int(offset) + data_start for offset in entry["data_offsets"])
    found = TensorEntry(entry["dtype"], tuple(int(n) for n in entry["shape"]), start, stop)
    if found.dtype not in ITEM_BITS or min(found.shape, default=0) < 0:
        raise ValueError(f"unknown type {found.dtype} or shape {found.shape}")
    if (stop - start) * 8 != found.size * ITEM_BITS[found.dtype]:
        raise ValueError(f"{found.size} values of {found.dtype} do not fill {stop - start} bytes")
    return found


def _check_layout(path: Path, tensors: Mapping[str, TensorEntry], data_start: int, num_bytes: int, error: type[LmfuseError]) -> None:
    """Refuse gaps, overlaps and tensors outside the file."""
    position = data_start
    for entry in sorted(tensors.values(), key=lambda entry: (entry.start, entry.stop)):
        if entry.start != position:
            raise error(f"{path} has a broken safetensors header: a tensor starts at byte {entry.start}, expected {position}", _HINT)
        position = entry.stop
    if position > num_bytes:
        raise error(f"{path} is truncated: its header says {position} bytes, it has {num_bytes}", _HINT)
    if position < num_bytes:
        raise error(f"{path} is {num_bytes} bytes long, but its header says {position}", _HINT)
