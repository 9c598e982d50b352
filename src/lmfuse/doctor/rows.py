"""What a source really said: lost mass and bits per byte of each map, on rows that were collected before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.counts import count_pairs
from lmfuse.align.join import Join
from lmfuse.align.longer import longer_map
from lmfuse.align.next_bytes import true_nll
from lmfuse.align.pair import build_pair
from lmfuse.align.spans import align_many
from lmfuse.bytes import ByteTokenizer
from lmfuse.doctor.samples import MAPS, restricted, restricted_rows
from lmfuse.errors import InputError
from lmfuse.store import RowStore
from lmfuse.types import Alignment, Document, Encoding, Rows, Vocabulary

SAMPLE_BYTES, SAMPLE_DOCUMENTS = 1 << 17, 1024  # whose rows are looked at


@dataclass(frozen=True)
class Sample:
    """Documents that a store holds rows of, and how many were passed over because the rows do not tell their text."""

    documents: list[Document]
    rows: list[Rows]
    passed_over: int


def text_of(rows: Rows, vocabulary: Vocabulary) -> str | None:
    """Return the text that rows stand for: each token's bytes behind its dummy prefix. None where bytes lack a row, or are no text.

    >>> from lmfuse.types import TopK
    >>> spans = (np.array([0, 1]), np.array([1, 3]), np.array([1, 0]))
    >>> text_of(Rows(*spans, np.zeros(2, np.float32), TopK.unknown(2, 1, 2)), Vocabulary.from_tokens([b"bc", b" a"]))
    'abc'
    """
    if not len(rows) or rows.starts[0] != 0 or not np.array_equal(rows.starts[1:], rows.ends[:-1]):
        return None
    widths = (rows.ends - rows.starts).tolist()
    written = (vocabulary.bytes_of(token_id) for token_id in rows.next_ids.tolist())
    parts = [token[len(token) - width :] for token, width in zip(written, widths, strict=True)]
    try:
        return b"".join(parts).decode() if all(len(part) == width for part, width in zip(parts, widths, strict=True)) else None
    except UnicodeDecodeError:
        return None


def sample(store: RowStore, vocabulary: Vocabulary, num_bytes: int = SAMPLE_BYTES) -> Sample:
    """Return documents of a store up to a number of bytes, in the order of their ids, which are hashes: a draw that is always the same.

    Their text is read from the rows and checked by its hash.
    """
    documents, found, passed_over, total = [], [], 0, 0
    for name in sorted(store)[:SAMPLE_DOCUMENTS]:
        rows = store[name]
        text = text_of(rows, vocabulary)
        document = Document.plain(text) if text is not None else None
        if document is None or document.id != name:
            passed_over += 1
            continue
        documents.append(document)
        found.append(rows)
        total += len(document.trained_bytes)
        if total >= num_bytes:
            break
    return Sample(documents, found, passed_over)


def measure(folder: Path, target: ByteTokenizer, source: ByteTokenizer) -> dict[str, Any]:
    """Return what a store of the source's rows says under the byte law, and under the plain join with each map.

    The shares of longer tokens are counted on the sampled documents themselves, where a run counts its training text.

    Raises:
        InputError: the rows are over another vocabulary, or none of their documents can be read from them.
        VerificationError: the folder is no store of rows, or it is damaged.
    """
    store, vocabulary = RowStore.open(folder), source.vocabulary
    wrong = InputError(f"{folder}: these rows are not of the source's tokenizer", hint="give the model that the rows were collected from")
    if store.vocab_size != vocabulary.size:
        raise InputError(f"{wrong}: they are over {store.vocab_size:,} ids, it has {vocabulary.size:,}", wrong.hint)
    found = sample(store, vocabulary)
    if not found.documents:
        raise InputError(f"{wrong}: they spell the text of none of {found.passed_over} documents", wrong.hint)
    used = np.unique(np.concatenate([np.append(rows.topk.ids, rows.next_ids) for rows in found.rows]))
    few, rows = restricted(vocabulary, used), [restricted_rows(part, used) for part in found.rows]
    targets = target.encode_many(found.documents)
    theirs = [Encoding(part.next_ids, part.starts, part.ends) for part in rows]
    counts = count_pairs(zip(theirs, targets, strict=True), few, target.vocabulary)
    pair = replace(build_pair(few, target.vocabulary, target.first_pieces), longer=longer_map(counts, few, target.vocabulary))
    law = align_many(ByteLaw(), rows, targets, pair)
    methods = [figures("byte_law", law, law, targets)]
    for name, make in MAPS.items():
        joined = align_many(Join(map=name), rows, targets, replace(pair, tokens=make(few, target)))
        methods.append(figures(name, joined, law, targets))
    return {
        "folder": folder.name, "k": store.k, "documents": len(rows), "of": len(store), "passed_over": found.passed_over,
        "bytes": sum(part.num_bytes for part in rows), "methods": methods,
    }  # fmt: skip


def figures(name: str, said: Sequence[Alignment], law: Sequence[Alignment], targets: Sequence[Encoding]) -> dict[str, Any]:
    """Return coverage, lost mass, and the bits per byte of the true tokens: projected, and the source's own on the same bytes.

    A true token that is not among a row's candidates gets an equal share of the row's tail.
    """
    row, lost, truth = (
        np.concatenate([getattr(part, field) for part in parts])
        for field, parts in (("source_row", said), ("lost_mass", said), ("truth_nll_nats", law))
    )
    cost = np.concatenate([true_nll(part, encoding) for part, encoding in zip(said, targets, strict=True)])
    starts, ends = (np.concatenate([getattr(encoding, field) for encoding in targets]) for field in ("starts", "ends"))
    taught = row >= 0
    judged = taught & np.isfinite(truth) & np.isfinite(cost)
    num_bits = math.log(2) * max(int((ends - starts)[judged].sum()), 1)
    return {
        "name": name,
        "coverage": float(taught.sum() / max(int((starts >= 0).sum()), 1)),
        "lost_mass": float(lost[taught].mean()) if taught.any() else 0.0,
        "own_bits_per_byte": float(truth[judged].sum(dtype=np.float64) / num_bits),
        "bits_per_byte": float(cost[judged].sum(dtype=np.float64) / num_bits),
    }
