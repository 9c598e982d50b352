"""The law of the next byte at every byte of a text: what a model's rows say whatever its tokens, so that two vocabularies can be compared.

A way to reach byte ``x`` is a row that begins at or before it and a candidate of that row that writes the text up to ``x`` and goes on. Its
weight is the probability of the document's own tokens before the row times that of the candidate. Byte ``b`` has the share of the ways
that go on with it. Ways through tokens that did not follow, other than as the last one, are not counted: nobody ran the model on them.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from lmfuse.align.spans import Support, surplus
from lmfuse.types import Alignment, Encoding, Rows, Vocabulary

UNKNOWN = 256  # the outcome of what a row did not keep


def next_bytes(rows: Rows, vocabulary: Vocabulary, text: bytes) -> Float[np.ndarray, "N 257"]:
    """Return the probability of each byte value, and last of what nobody knows, at each byte of a text.

    A dummy prefix counts as written: of such a row the candidates that begin with it go on, the others belong to no text that is
    asked about, and the tail is believed to share it. Candidates without bytes belong to the unknown. Positions that no row reaches
    have no law and are all zero.

    Args:
        rows: of any model over the document, ascending.
        vocabulary: what its ids write.
        text: the document's bytes.

    A source that expects ``hello`` (1/2) or ``help`` (1/4): before ``hel`` both begin with ``h``, after it two thirds go on with ``l``.

    >>> from lmfuse.types import TopK
    >>> topk = TopK(np.array([[0, 1]]), np.log(np.array([[.5, .25]], np.float32)), np.log(np.array([.25], np.float32)), 2)
    >>> rows = Rows(np.array([0]), np.array([5]), np.array([0]), np.log(np.array([2.], np.float32)), topk)
    >>> law = next_bytes(rows, Vocabulary.from_tokens([b"hello", b"help"]), b"hello")
    >>> law[0, [ord("h"), UNKNOWN]].round(3).tolist(), law[3, [ord("l"), ord("p")]].round(3).tolist()
    ([0.75, 0.25], [0.667, 0.333])
    """
    law = np.zeros((len(text), UNKNOWN + 1))
    if not len(rows):
        return law
    data, support = np.frombuffer(text, np.uint8), Support.of(rows)
    ids, mass = support.whole(np.arange(len(rows)))
    prefix = surplus(rows.next_ids, rows.starts, rows.ends, vocabulary, "rows")
    before = np.append(0.0, np.cumsum(rows.nll_nats, dtype=np.float64))[:-1]
    open_row = np.maximum(np.searchsorted(rows.starts, np.arange(len(text)), side="right") - 1, 0)
    begins = rows.starts < len(text)
    np.add.at(law[:, UNKNOWN], rows.starts[begins], (support.tail + (mass * (vocabulary.lengths[ids] == 0)).sum(axis=0))[begins])
    slot, row = np.nonzero((mass > 0) & (vocabulary.lengths[ids] > 0))
    token, weight = ids[slot, row].astype(np.int64), mass[slot, row].astype(np.float64)
    for depth in range(int(vocabulary.lengths[token].max(initial=0))):
        byte = vocabulary.flat[vocabulary.offsets[token] + depth]
        place, at_prefix = rows.starts[row] + depth - prefix[row], depth < prefix[row]
        true_byte = np.where(at_prefix, _byte_of(rows.next_ids[row], depth, vocabulary), data[np.clip(place, 0, len(text) - 1)])
        here = np.flatnonzero(~at_prefix & (place < len(text)))
        longer_than_own = np.minimum(before[open_row[place[here]]] - before[row[here]], 600.0)
        np.add.at(law, (place[here], byte[here]), weight[here] * np.exp(longer_than_own))
        goes_on = (byte == true_byte) & (vocabulary.lengths[token] > depth + 1) & (place < len(text))
        row, token, weight = row[goes_on], token[goes_on], weight[goes_on]
    total = law.sum(axis=1, keepdims=True)
    return np.divide(law, total, out=law, where=total > 0)


def _byte_of(ids: Int[np.ndarray, "N"], depth: int, vocabulary: Vocabulary) -> Int[np.ndarray, "N"]:
    """Return the byte at a depth of each token; of shorter ones whatever follows them."""
    return vocabulary.flat[np.minimum(vocabulary.offsets[ids] + depth, len(vocabulary.flat) - 1)].astype(np.int64)


def projected_law(aligned: Alignment, target: Encoding, vocabulary: Vocabulary, text: bytes) -> Float[np.ndarray, "N 257"]:
    """Return the law of a source by its rows in a target's vocabulary; zero where a target token has no row."""
    token = np.flatnonzero((aligned.source_row >= 0) & (target.starts >= 0))
    starts, ends = target.starts[token], target.ends[token]
    nll = np.minimum(true_nll(aligned, target)[token], 60.0).astype(np.float32)  # finite: the text went on, whatever the row said
    law = next_bytes(Rows(starts, ends, target.ids[token], nll, aligned.topk[token]), vocabulary, text)
    known = np.zeros(len(text) + 1, np.int64)
    np.add.at(known, starts, 1)
    np.add.at(known, ends, -1)
    law[np.cumsum(known)[:-1] == 0] = 0.0
    return law


def true_nll(aligned: Alignment, target: Encoding) -> Float[np.ndarray, "T"]:
    """Return the cost in nats of each target token under its row; infinite where the row leaves nothing for it.

    A token that the row did not keep has an even share of the tail.
    """
    topk = aligned.topk
    mass = np.exp(topk.log_probs.astype(np.float64))
    true = (mass * (topk.ids == target.ids[:, None])).sum(axis=1)
    even = np.exp(topk.tail.astype(np.float64)) / max(topk.vocab_size - topk.k, 1)
    with np.errstate(divide="ignore"):
        return -np.log(np.where(true > 0, true, even))
