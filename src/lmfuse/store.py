"""Rows on disk: shards that hold whole documents in the narrowest types, and random access to one document.

A shard is a safetensors file. Per token: ``k`` ids (two bytes each, a third only where the vocabulary needs it), ``k``
log-probabilities, tail and nll in the chosen precision, the token that followed, and its length in bytes, from which starts and ends
are summed up. Bytes without a row between two rows (masked spans) are listed apart: they are rare. Per document: its id and its
number of rows.
"""

from __future__ import annotations

import json
import mmap
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Integer

from lmfuse.artefacts import Manifest, verify
from lmfuse.errors import InputError, VerificationError
from lmfuse.safetensors_header import SafetensorsHeader, TensorEntry, read_header
from lmfuse.types import Rows, TopK

SHARD_NAME = "rows-{:06d}.safetensors"
SHARD_VERSION = 1
OPEN_SHARDS = 64  # memory maps held at once; pages of a map are the system's to keep or drop
NUMPY_TYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "F16": np.float16, "F32": np.float32}
ID_BYTES = 16

Precision = Literal["float16", "float32"]


def pack_shard(
    document_ids: Sequence[str],
    row_counts: Integer[np.ndarray, "D"],
    rows: Rows,
    precision: Precision,
    counters: Mapping[str, int] | None = None,
) -> bytes:
    """Return the bytes of a shard.

    Args:
        document_ids: 32 hex digits each, in order.
        row_counts: how many of the rows belong to each document.
        rows: the rows of all documents one after the other; ``starts`` begin anew with each document.
        precision: how log-probabilities are rounded. Finite values stay finite.
        counters: kept in the shard, so that an interrupted collection can sum them up.

    Raises:
        InputError: a log-probability is nan, or rows do not stand in the order of the bytes.
    """
    from safetensors.numpy import save

    counts = np.asarray(row_counts, np.int64)
    offsets = np.cumsum(counts) - counts
    gaps, lengths = rows.starts.astype(np.int64), rows.ends - rows.starts
    gaps[1:] -= rows.ends[:-1]
    first = offsets[counts > 0]  # documents begin at byte 0
    gaps[first] = rows.starts[first]
    if len(rows) and min(gaps.min(), lengths.min()) < 0:
        raise InputError("rows overlap or run backwards", "this is a defect of the tokenizer's encoding; report it")
    gap_rows = np.flatnonzero(gaps)
    arrays = {
        "document_ids": np.frombuffer(bytes.fromhex("".join(document_ids)), np.uint8).reshape(-1, ID_BYTES),
        "row_counts": counts.astype(np.uint32),
        "lengths": lengths.astype(np.min_scalar_type(int(lengths.max(initial=0)))),
        "gap_rows": gap_rows.astype(np.uint32),
        "gap_bytes": gaps[gap_rows].astype(np.uint32),
        **_split_ids("next_ids", rows.next_ids, rows.topk.vocab_size),
        **_split_ids("topk_ids", rows.topk.ids, rows.topk.vocab_size),
        "log_probs": _rounded(rows.topk.log_probs, precision),
        "tail": _rounded(rows.topk.tail, precision),
        "nll": -_rounded(-rows.nll_nats, precision),
    }
    about = {"version": SHARD_VERSION, "k": rows.topk.k, "vocab_size": rows.topk.vocab_size, "precision": precision}
    return bytes(save(arrays, metadata={"rows": json.dumps(about | {"counters": dict(counters or {})}, sort_keys=True)}))


def _split_ids(name: str, ids: Integer[np.ndarray, "*N"], vocab_size: int) -> dict[str, np.ndarray]:
    """Return the low two bytes of ids, and the third where the vocabulary has more ids than two bytes can tell apart."""
    if vocab_size > 1 << 24:
        raise InputError(f"vocabularies of more than {1 << 24} ids are not supported, this one has {vocab_size}")
    low = {name: ids.astype(np.uint16)}  # wraps around: the low bytes
    return low if vocab_size <= 1 << 16 else low | {f"{name}_high": (ids >> 16).astype(np.uint8)}


def _rounded(log_probs: Float[np.ndarray, "*N"], precision: Precision) -> Float[np.ndarray, "*N"]:
    """Return log-probabilities in a precision. What rounding took above 0 is 0, and what would overflow the largest that fits; ``-inf`` stays."""
    import torch  # rounds to half precision twenty times as fast as numpy

    kind = np.dtype(precision)
    lowest, highest, limit = log_probs.min(initial=0), log_probs.max(initial=-1), np.finfo(kind).max
    if np.isnan(lowest):
        raise InputError("a log-probability is nan", "the source's weights or its dtype are at fault: try float32")
    if highest > 0 or lowest < -limit:
        log_probs = np.where(np.isneginf(log_probs), log_probs, np.clip(log_probs, -limit, 0))
    found: np.ndarray = torch.from_numpy(np.ascontiguousarray(log_probs)).to(getattr(torch, precision)).numpy()
    return found


class _Shard:
    """One shard, mapped into memory: views of its arrays, nothing read before it is asked for."""

    def __init__(self, path: Path, header: SafetensorsHeader) -> None:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.arrays = {name: _view(data, entry) for name, entry in header.tensors.items()}
        self.offsets = np.concatenate([[0], np.cumsum(self.arrays["row_counts"], dtype=np.int64)])

    def rows(self, index: int, vocab_size: int) -> Rows:
        """Return the rows of the document that stands at an index of the shard."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        lengths = self.arrays["lengths"][part]
        ends = lengths.cumsum(dtype=np.int64)
        gap_rows = self.arrays["gap_rows"]
        if len(gap_rows):
            low, high = np.searchsorted(gap_rows, [part.start, part.stop])
            for row, gap in zip(gap_rows[low:high], self.arrays["gap_bytes"][low:high], strict=True):
                ends[int(row) - part.start :] += int(gap)
        topk = TopK(self._ids("topk_ids", part), self._floats("log_probs", part), self._floats("tail", part), vocab_size)
        return Rows(ends - lengths, ends, self._ids("next_ids", part), self._floats("nll", part), topk)

    def _floats(self, name: str, part: slice) -> Float[np.ndarray, "*N"]:
        return self.arrays[name][part].astype(np.float32)

    def _ids(self, name: str, part: slice) -> Int[np.ndarray, "*N"]:
        ids = self.arrays[name][part].astype(np.int64)
        high = self.arrays.get(f"{name}_high")
        if high is not None:
            ids |= high[part].astype(np.int64) << 16
        return ids


def _view(data: mmap.mmap, entry: TensorEntry) -> np.ndarray:
    return np.frombuffer(data, NUMPY_TYPES[entry.dtype], entry.size, entry.start).reshape(entry.shape)


def read_about(path: Path, header: SafetensorsHeader) -> dict[str, Any]:
    """Return what a shard says of itself (k, vocabulary size, precision, counters), once its arrays are those of a shard.

    Raises:
        VerificationError: it is no shard of rows, or of another version, or its arrays do not fit together.
    """
    try:
        about = json.loads(header.metadata["rows"])
        version, k, vocab_size, width = about["version"], int(about["k"]), int(about["vocab_size"]), _FLOATS[about["precision"]]
    except (KeyError, ValueError, TypeError) as reason:
        raise VerificationError(f"{path} is no shard of rows", _AGAIN) from reason
    if version != SHARD_VERSION:
        raise VerificationError(f"{path} has shard version {version}, expected {SHARD_VERSION}", _AGAIN)
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    documents, rows = shapes.get("row_counts", ()), shapes.get("next_ids", ())
    ids = dict.fromkeys(("next_ids", "next_ids_high") if vocab_size > 1 << 16 else ("next_ids",), rows)
    expected = {
        "row_counts": documents,
        "document_ids": (*documents, ID_BYTES),
        "gap_bytes": shapes.get("gap_rows"),
        "gap_rows": shapes.get("gap_bytes"),
    }
    expected |= (
        dict.fromkeys(("lengths", "tail", "nll"), rows)
        | ids
        | {n.replace("next", "topk"): (*rows, k) for n in ids}
        | {"log_probs": (*rows, k)}
    )
    types = {name: entry.dtype for name, entry in header.tensors.items()}
    if shapes != expected or len(documents) != 1 or len(rows) != 1 or {types["log_probs"], types["tail"], types["nll"]} != {width}:
        raise VerificationError(f"{path}: its arrays do not make up rows of k {k}", _AGAIN)
    if not set(types.values()) <= set(NUMPY_TYPES):
        raise VerificationError(f"{path}: holds types that no shard has: {sorted(set(types.values()) - set(NUMPY_TYPES))}", _AGAIN)
    return dict(about)


_FLOATS = {"float16": "F16", "float32": "F32"}
_AGAIN = "remove the folder and collect again"


class RowStore:
    """The rows of one source for many documents, read one document at a time: ``store[document.id]``.

    Memory is 24 bytes a document, and the pages of at most ``OPEN_SHARDS`` shards, which the system may drop.

    Attributes:
        folder: where it lies.
        manifest: what it was made from, and its counters.
        k, vocab_size, precision: of every row in it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._paths = [folder / name for name in sorted(manifest.files) if name.startswith("rows-")]
        if not self._paths:
            raise VerificationError(f"{folder} holds no rows", _AGAIN)
        self._headers = [read_header(path, VerificationError) for path in self._paths]
        abouts = [read_about(path, header) for path, header in zip(self._paths, self._headers, strict=True)]
        shared = [{name: about[name] for name in ("k", "vocab_size", "precision")} for about in abouts]
        if any(other != shared[0] for other in shared):
            raise VerificationError(f"{folder}: its shards differ in k, vocabulary or precision", _AGAIN)
        self.k, self.vocab_size, self.precision = int(shared[0]["k"]), int(shared[0]["vocab_size"]), str(shared[0]["precision"])
        self._shards: OrderedDict[int, _Shard] = OrderedDict()
        self._index()

    @classmethod
    def open(cls, folder: Path, *, deep: bool = False) -> RowStore:
        """Open a published store after comparing file sizes with its manifest, or with ``deep`` every file's SHA-256.

        Raises:
            VerificationError: it is incomplete, damaged or no store of rows.
        """
        return cls(folder, verify(folder, quick=not deep))

    def _index(self) -> None:
        """Sort the documents of all shards by the first half of their ids."""
        names, places = [], []
        for number, (path, header) in enumerate(zip(self._paths, self._headers, strict=True)):
            shard = _Shard(path, header)
            if shard.offsets[-1] != len(shard.arrays["next_ids"]):
                raise VerificationError(
                    f"{path}: documents have {shard.offsets[-1]} rows, {len(shard.arrays['next_ids'])} are there", _AGAIN
                )
            found = shard.arrays["document_ids"].reshape(-1).view(">u8").reshape(-1, 2).astype(np.uint64)
            names.append(found)
            places.append(np.stack([np.full(len(found), number, np.int32), np.arange(len(found), dtype=np.int32)], axis=1))
        self._names, self._places = np.concatenate(names), np.concatenate(places)
        self._order = np.argsort(self._names[:, 0], kind="stable")
        self._sorted = self._names[self._order, 0]

    def _find(self, document_id: str) -> int:
        """Return the position of a document in the order of the collection, or -1."""
        try:
            high, low = int(document_id[:16], 16), int(document_id[16:], 16)
        except ValueError:
            return -1
        if document_id != f"{high:016x}{low:016x}":
            return -1
        position = int(self._sorted.searchsorted(np.uint64(high)))
        while position < len(self._sorted) and int(self._sorted[position]) == high:
            if int(self._names[self._order[position], 1]) == low:
                return int(self._order[position])
            position += 1
        return -1

    def __contains__(self, document_id: str) -> bool:
        return self._find(document_id) >= 0

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids of all documents in the order in which they were collected."""
        return (f"{high:016x}{low:016x}" for high, low in self._names.tolist())

    def __getitem__(self, document_id: str) -> Rows:
        position = self._find(document_id)
        if position < 0:
            raise KeyError(f"{self.folder} holds no rows of document {document_id!r}")
        number, index = self._places[position].tolist()
        shard = self._shards.pop(number, None) or _Shard(self._paths[number], self._headers[number])
        self._shards[number] = shard
        if len(self._shards) > OPEN_SHARDS:
            self._shards.popitem(last=False)
        return shard.rows(index, self.vocab_size)

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return RowStore.open, (self.folder,)  # a worker process maps the files itself
