"""The law of the next byte at every byte of a text: what a model's rows say whatever its tokens, so that two vocabularies can be compared.

A way to reach byte ``x`` is a row that begins at or before it and a candidate of that row that writes the text up to ``x`` and goes on. Its
weight is the probability of the document's own tokens before the row times that of the candidate. Byte ``b`` has the share of the ways
that go on with it. Ways through tokens that did not follow, other than as the last one, are not counted: nobody ran the model on them.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Integer

from lmfuse.align.spans import Support
from lmfuse.types import Alignment, Encoding, Rows, Vocabulary

UNKNOWN = 256  # the outcome of what a row did not keep


def next_bytes(
    starts: Integer[np.ndarray, "U"],
    nll_nats: Float[np.ndarray, "U"],
    ids: Integer[np.ndarray, "C U"],
    mass: Float[np.ndarray, "C U"],
    tail: Float[np.ndarray, "U"],
    vocabulary: Vocabulary,
    text: bytes,
) -> Float[np.ndarray, "N 257"]:
    """Return the probability of each byte value, and last of what nobody knows, at each byte of a text.

    Args:
        starts: the bytes at which the rows' tokens begin, ascending.
        nll_nats: the cost of the token that followed.
        ids: the candidates of each row, what followed among them.
        mass: their probabilities.
        tail: the probability outside of them; candidates without bytes belong to it, too.
        vocabulary: what the ids write.
        text: the document's bytes. Positions before the first row have no law and are all zero.

    A source that expects ``hello`` (1/2) or ``help`` (1/4): before ``hel`` both begin with ``h``, after it two thirds go on with ``l``.

    >>> words = Vocabulary.from_tokens([b"hello", b"help"])
    >>> law = next_bytes(np.array([0]), np.log([2.0]), np.array([[0], [1]]), np.array([[.5], [.25]]), np.array([.25]), words, b"hello")
    >>> law[0, [ord("h"), UNKNOWN]].tolist(), law[3, [ord("l"), ord("p")]].round(3).tolist()
    ([0.75, 0.25], [0.667, 0.333])
    """
    data = np.frombuffer(text, np.uint8)
    law = np.zeros((len(text), UNKNOWN + 1))
    if not len(starts):
        return law
    before = np.append(0.0, np.cumsum(nll_nats, dtype=np.float64))[:-1]
    open_row = np.maximum(np.searchsorted(starts, np.arange(len(text)), side="right") - 1, 0)
    begins = starts < len(text)
    np.add.at(law[:, UNKNOWN], starts[begins], (tail + (mass * (vocabulary.lengths[ids] == 0)).sum(axis=0))[begins])
    slot, row = np.nonzero((mass > 0) & (vocabulary.lengths[ids] > 0))
    token, weight = ids[slot, row], mass[slot, row].astype(np.float64)
    for depth in range(int(vocabulary.lengths[token].max(initial=0))):
        place = starts[row] + depth
        there = place < len(text)
        place, row, token, weight = place[there], row[there], token[there], weight[there]
        byte = vocabulary.flat[vocabulary.offsets[token] + depth]
        np.add.at(law, (place, byte), weight * np.exp(before[open_row[place]] - before[row]))
        goes_on = (byte == data[place]) & (vocabulary.lengths[token] > depth + 1)
        row, token, weight = row[goes_on], token[goes_on], weight[goes_on]
    total = law.sum(axis=1, keepdims=True)
    return np.divide(law, total, out=law, where=total > 0)


def source_law(rows: Rows, vocabulary: Vocabulary, text: bytes) -> Float[np.ndarray, "N 257"]:
    """Return the law of a source by its own rows. A dummy prefix is taken for written: its rows' candidates begin at the text."""
    support = Support.of(rows)
    ids, mass = support.whole(np.arange(len(rows)))
    return next_bytes(rows.starts, rows.nll_nats, ids, mass, support.tail, vocabulary, text)


def projected_law(aligned: Alignment, target: Encoding, vocabulary: Vocabulary, text: bytes) -> Float[np.ndarray, "N 257"]:
    """Return the law of a source by its rows in a target's vocabulary; zero where a target token has no row."""
    token = np.flatnonzero((aligned.source_row >= 0) & (target.starts >= 0))
    topk = aligned.topk[token]
    mass = np.exp(topk.log_probs.astype(np.float64)).T
    nll = true_nll(aligned, target)[token]
    law = next_bytes(target.starts[token], nll, topk.ids.T, mass, np.exp(topk.tail.astype(np.float64)), vocabulary, text)
    known = np.zeros(len(text), bool)
    for start, end in zip(target.starts[token].tolist(), target.ends[token].tolist(), strict=True):
        known[start:end] = True
    law[~known] = 0.0
    return law


def true_nll(aligned: Alignment, target: Encoding) -> Float[np.ndarray, "T"]:
    """Return the cost in nats of each target token under its row. A token that the row did not keep has an even share of the tail."""
    topk = aligned.topk
    mass = np.exp(topk.log_probs.astype(np.float64))
    true = (mass * (topk.ids == target.ids[:, None])).sum(axis=1)
    even = np.exp(topk.tail.astype(np.float64)) / max(topk.vocab_size - topk.k, 1)
    return -np.log(np.maximum(np.where(true > 0, true, even), 1e-30))
