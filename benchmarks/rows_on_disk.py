"""Rows on disk against Arrow ``list<list>``, the way the peers keep them: bytes per token, writing, and reading documents at random.

    python -m benchmarks.rows_on_disk [--documents 1000] [--tokens 300] [--k 10] [--rounds 5]

The Arrow table has the columns of the published pipelines (ids int64 and log-probabilities float32 as ``list<list>``, nll as ``list``) in an IPC file,
memory-mapped. Both sides start from arrays. Arrow is written by way of Python lists and read as Python lists, as ``datasets`` does by default; and,
at its best, from and into flat arrays (``*_arrays``). Our writing includes publication: flushing, hashing, manifest. Reading is one document at a
time, in random order, files in the page cache. Times are processor seconds, medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks._timing import timed
from lmfuse.artefacts import publish
from lmfuse.store import SHARD_NAME, RowStore, pack_shard
from lmfuse.types import Document, Rows, TopK


def synthetic_rows(num_documents: int, num_tokens: int, k: int, vocab_size: int) -> tuple[Rows, np.ndarray]:
    """Return rows of documents of about ``num_tokens`` tokens each, all documents end to end, and how many rows each has."""
    random = np.random.default_rng(0)
    counts = random.integers(num_tokens // 2, num_tokens * 3 // 2, num_documents)
    total = int(counts.sum())
    logits = random.standard_normal((total, k), np.float32) * 3
    log_probs = -np.sort(-(logits - np.log(np.exp(logits).sum(1, keepdims=True))), axis=1) - 0.1
    tail = np.log1p(-np.exp(log_probs).sum(1)).astype(np.float32)
    lengths = random.integers(1, 9, total)
    ends = np.concatenate([np.cumsum(part) for part in np.split(lengths, np.cumsum(counts)[:-1])])
    topk = TopK(random.integers(0, vocab_size, (total, k)).astype(np.int32), log_probs, tail, vocab_size)
    nll = random.exponential(2, total).astype(np.float32)
    return Rows(ends - lengths, ends, random.integers(0, vocab_size, total), nll, topk), counts


def write_store(folder: Path, names: Sequence[str], counts: np.ndarray, rows: Rows, shard_documents: int = 256) -> None:
    """Write and publish a store."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    with publish(folder, kind="rows") as publication:
        for number, first in enumerate(range(0, len(names), shard_documents)):
            last = min(first + shard_documents, len(names))
            part = slice(int(offsets[first]), int(offsets[last]))
            columns = [column[part] for column in (rows.starts, rows.ends, rows.next_ids, rows.nll_nats)]
            data = pack_shard(names[first:last], counts[first:last], Rows(*columns, rows.topk[part]), "float16")
            (publication.path / SHARD_NAME.format(number)).write_bytes(data)


def arrow_from_lists(rows: Rows, counts: np.ndarray) -> pa.Table:
    """Return the table as peers make it: arrays become Python lists, lists become Arrow."""
    kinds = (pa.list_(pa.list_(pa.int64())), pa.list_(pa.list_(pa.float32())), pa.list_(pa.float32()))
    cuts = np.cumsum(counts)[:-1]
    columns = [[part.tolist() for part in np.split(column, cuts)] for column in (rows.topk.ids, rows.topk.log_probs, rows.nll_nats)]
    return pa.table([pa.array(v, t) for v, t in zip(columns, kinds, strict=True)], names=["ids", "log_probs", "nll"])


def arrow_from_arrays(rows: Rows, counts: np.ndarray) -> pa.Table:
    """Return the same table without a Python object per number."""
    outer = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    inner = pa.array((np.arange(len(rows) + 1) * rows.topk.k).astype(np.int32))
    flat = (rows.topk.ids.astype(np.int64).ravel(), rows.topk.log_probs.ravel())
    nested = [pa.ListArray.from_arrays(outer, pa.ListArray.from_arrays(inner, pa.array(values))) for values in flat]
    return pa.table([*nested, pa.ListArray.from_arrays(outer, pa.array(rows.nll_nats))], names=["ids", "log_probs", "nll"])


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write an IPC file in batches of 1000 documents, as ``datasets`` does, and flush it as a store is flushed."""
    with path.open("wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
        os.fsync(file.fileno())


def read_as_lists(table: pa.Table, index: int) -> object:
    """Read one document as ``datasets`` does."""
    return table.slice(index, 1).to_pydict()


def read_as_arrays(table: pa.Table, index: int, k: int) -> object:
    """Read one document into arrays, at Arrow's best."""
    row = table.slice(index, 1)
    flat = [row[name].chunk(0).flatten() for name in ("ids", "log_probs", "nll")]
    return flat[0].flatten().to_numpy().reshape(-1, k), flat[1].flatten().to_numpy().reshape(-1, k), flat[2].to_numpy()


def measure(place: Path, vocab_size: int, given: argparse.Namespace) -> dict[str, float]:
    rows, counts = synthetic_rows(given.documents, given.tokens, given.k, vocab_size)
    names = [Document.plain(str(i)).id for i in range(given.documents)]
    turn = iter(range(1_000_000))
    write = {
        "store": lambda: write_store(place / f"store{next(turn)}", names, counts, rows),
        "arrow_lists": lambda: write_arrow(place / "lists.arrow", arrow_from_lists(rows, counts)),
        "arrow_arrays": lambda: write_arrow(place / "arrays.arrow", arrow_from_arrays(rows, counts)),
    }
    written = timed(write, given.rounds, warm_up=True)
    store = RowStore.open(place / "store0")
    table = pa.ipc.open_file(pa.memory_map(str(place / "lists.arrow"))).read_all()
    order = np.random.default_rng(1).permutation(given.documents)[: given.reads].tolist()
    read = {
        "store": lambda: [store[names[i]] for i in order],
        "arrow_lists": lambda: [read_as_lists(table, i) for i in order],
        "arrow_arrays": lambda: [read_as_arrays(table, i, given.k) for i in order],
    }
    seen = timed(read, given.rounds, warm_up=True)
    tokens, read_tokens = len(rows), int(counts[order].sum())
    size = {"store": sum(p.stat().st_size for p in (place / "store0").iterdir()), "arrow": (place / "lists.arrow").stat().st_size}
    return {
        "store_bytes_per_token": round(size["store"] / tokens, 2),
        "arrow_bytes_per_token": round(size["arrow"] / tokens, 2),
        "bytes_of_arrow": round(size["store"] / size["arrow"], 4),
        "read_tokens_per_s": round(read_tokens / seen["store"]),
        "read_speedup": round(seen["arrow_lists"] / seen["store"], 1),
        "read_speedup_arrow_arrays": round(seen["arrow_arrays"] / seen["store"], 2),
        "write_tokens_per_s": round(tokens / written["store"]),
        "write_speedup": round(written["arrow_lists"] / written["store"], 1),
        "write_speedup_arrow_arrays": round(written["arrow_arrays"] / written["store"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--reads", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    figures = {}
    for name, vocab_size, goal in (("vocabulary_32k", 32000, 0.36), ("vocabulary_152k", 152000, 0.50)):
        with tempfile.TemporaryDirectory() as place:
            figures[name] = measure(Path(place), vocab_size, given) | {
                "goal_bytes_of_arrow": goal,
                "goal_read_speedup": 40,
                "goal_write_speedup": 10,
            }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
    }
    print(
        json.dumps(
            {
                "benchmark": "rows_on_disk",
                "figures": figures,
                "k": given.k,
                "machine": machine,
                "commit": commit,
                "command": " ".join(["python -m benchmarks.rows_on_disk", *sys.argv[1:]]),
            }
        )
    )


if __name__ == "__main__":
    main()
