"""Where the tokens of a source and of a target lie on the bytes they share.

A tokenizer with a dummy prefix (Llama-2's space before a document) writes a byte that the text does not have. So each byte position ``p``
has two *points*: ``2 * p`` before such a prefix and ``2 * p + 1`` after it. A token with a prefix begins before it, any other after it, and a
token that is nothing but the prefix reaches from one point to the other. On points both tokenizations are plain intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from lmfuse.align.pair import Pair
from lmfuse.types import Alignment, Encoding, Rows, TopK, Vocabulary


def surplus(
    ids: Integer[np.ndarray, "T"], starts: Integer[np.ndarray, "T"], ends: Integer[np.ndarray, "T"], vocabulary: Vocabulary, who: str
) -> Int[np.ndarray, "T"]:
    """Return for each token how many bytes of its vocabulary stand before its start: its dummy prefix; 0 for tokens without text.

    Raises:
        ValueError: an id is outside the vocabulary, or a token covers more bytes than it writes: another tokenizer's ids.
    """
    if len(ids) and int(ids.max()) >= vocabulary.size:
        raise ValueError(f"{who}: token id {int(ids.max())} is outside its vocabulary of {vocabulary.size} tokens")
    extra = np.where(starts >= 0, vocabulary.lengths[ids] - (ends - starts), 0)
    if len(extra) and extra.min() < 0:
        at = int(extra.argmin())
        span, written = f"bytes {starts[at]} to {ends[at]}", int(vocabulary.lengths[ids[at]])
        raise ValueError(f"{who}: token {at} covers {span} but its id {ids[at]} writes {written}: ids of another vocabulary")
    return extra


def check_vocabularies(rows: Rows, source: Vocabulary) -> None:
    """Raise ValueError unless the rows' candidates are over the source's vocabulary."""
    if rows.topk.vocab_size != source.size:
        raise ValueError(f"rows over {rows.topk.vocab_size} ids do not belong to a source vocabulary of {source.size} tokens")


def no_alignment(num_tokens: int, k: int, vocab_size: int) -> Alignment:
    """Return the alignment of a source that says nothing."""
    unknown = TopK.unknown(num_tokens, k, vocab_size)
    nan, zero = np.full(num_tokens, np.nan, np.float32), np.zeros(num_tokens, np.float32)
    return Alignment(np.full(num_tokens, -1), unknown, nan, zero, np.zeros(num_tokens, bool), np.zeros(num_tokens, bool))


@dataclass(frozen=True)
class Support:
    """Each row's kept candidates and the token that followed: the source's distribution as far as it was kept.

    Candidates come first on the axes: what is done to them is then done to whole arrays of rows.

    Attributes:
        ids: the kept candidates.
        mass: their probabilities; the token that followed has ``exp(-nll)`` where it is one of them.
        slot: the column of the token that followed, K where it is none of the kept candidates.
        next_ids: the token that followed.
        next_mass: its probability ``exp(-nll)``.
        tail: the probability outside of all of these.
    """

    ids: Integer[np.ndarray, "K U"]
    mass: Float[np.ndarray, "K U"]
    slot: Int[np.ndarray, "U"]
    next_ids: Integer[np.ndarray, "U"]
    next_mass: Float[np.ndarray, "U"]
    tail: Float[np.ndarray, "U"]

    @classmethod
    def of(cls, rows: Rows) -> Support:
        """Complete the rows' top k by the token that followed; what it adds leaves the tail."""
        num_rows, k = rows.topk.ids.shape
        ids = np.ascontiguousarray(rows.topk.ids.T)
        mass = np.ascontiguousarray(np.exp(rows.topk.log_probs, dtype=np.float32).T)
        next_mass = np.exp(-rows.nll_nats.astype(np.float32, copy=False))
        tail = np.exp(rows.topk.tail.astype(np.float32, copy=False))
        slot = np.full(num_rows, k)
        hit = np.flatnonzero((ids == rows.next_ids) & (mass > 0))[::-1]  # an empty slot may carry any id
        column = hit // max(num_rows, 1)
        row = hit - column * num_rows
        slot[row] = column
        mass[column, row] = next_mass[row]
        outside = np.flatnonzero(slot == k)
        tail[outside] = np.maximum(tail[outside] - next_mass[outside], 0.0)
        return cls(ids, mass, slot, rows.next_ids, next_mass, tail)

    def whole(self, row: Int[np.ndarray, "N"]) -> tuple[Integer[np.ndarray, "C N"], Float[np.ndarray, "C N"]]:
        """Return copies of ids and mass of some rows with one more column: the token that followed, where it has no slot."""
        outside = np.where(self.slot[row] == len(self.ids), self.next_mass[row], 0.0).astype(self.mass.dtype, copy=False)
        ids = np.concatenate([self.ids.take(row, axis=1), self.next_ids[None, row].astype(self.ids.dtype, copy=False)])
        return ids, np.concatenate([self.mass.take(row, axis=1), outside[None]])


@dataclass(frozen=True)
class Cuts:
    """Where the boundaries of the target's tokens cut the source's tokens.

    The first ``T`` cuts are the starts of the target's tokens, the others the ends after which no token starts.

    Attributes:
        row: the source row whose token is open at the cut or begins there; the number of rows where none is left.
        consumed: how many bytes of that token lie before the cut; -1 where none is open: a gap of the source, or a dummy prefix that
            the target writes and the source does not.
        in_text: True where some of the consumed bytes are bytes of the text, not of a dummy prefix alone.
        complete: how many rows have ended at the cut. The cost of a dummy prefix belongs to the target's first token after it, so
            neither a row that is nothing but a prefix nor (``inside``) the prefix of the open token counts, unless the target wrote it too.
        inside: True where the open token has counted bytes before the cut.
        end: for each of the ``T`` tokens the cut at which it ends.
        known: for each of the ``T`` tokens whether source rows cover all of its bytes.
        joined: for each of the ``U`` rows whether a target token starts where its token does.
    """

    row: Int[np.ndarray, "X"]
    consumed: Int[np.ndarray, "X"]
    in_text: Bool[np.ndarray, "X"]
    complete: Int[np.ndarray, "X"]
    inside: Bool[np.ndarray, "X"]
    end: Int[np.ndarray, "T"]
    known: Bool[np.ndarray, "T"]
    joined: Bool[np.ndarray, "U"]

    @classmethod
    def of(cls, rows: Rows, target: Encoding, source_vocabulary: Vocabulary, target_vocabulary: Vocabulary) -> Cuts:
        """Cut a source's tokens at a target's boundaries: two sorted lists, one search.

        Raises:
            ValueError: token ids that do not fit their vocabulary.
        """
        prefix = np.append(surplus(rows.next_ids, rows.starts, rows.ends, source_vocabulary, "rows"), 0)
        starts = np.append(rows.starts.astype(np.int64), np.iinfo(np.int64).max // 4)
        begin = 2 * starts + (prefix == 0)
        finish = 2 * rows.ends.astype(np.int64) + (rows.ends == rows.starts)
        covered = np.append(0, np.cumsum(rows.ends - rows.starts))

        point, counted, end = _target_points(target, surplus(target.ids, target.starts, target.ends, target_vocabulary, "target"))
        row, text = _finished(finish, point), point >> 1
        complete = row - (np.append(-1, finish)[row] > counted)
        into_text = text - starts[row]
        consumed = np.where(begin[row] > point, -1, into_text + np.where(point > 2 * starts[row], prefix[row], 0))
        bytes_before = covered[row] + np.maximum(into_text, 0)

        num_tokens = len(target.ids)
        width = target.ends - target.starts
        whole = bytes_before[end] - bytes_before[:num_tokens] == width
        known = whole & (target.starts >= 0) & ((width > 0) | (consumed[:num_tokens] >= 0))
        joined = np.zeros(len(rows) + 1, bool)  # one more, for cuts behind the last row
        joined[row[:num_tokens][consumed[:num_tokens] == 0]] = True
        return cls(row, consumed, into_text > 0, complete, begin[row] < counted, end, known, joined[:-1])


def _finished(finish: Int[np.ndarray, "U"], point: Int[np.ndarray, "X"]) -> Int[np.ndarray, "X"]:
    """Return how many tokens have finished at each point: ``searchsorted`` on the right, as one look into a running count."""
    beyond = 1 + max(int(finish.max(initial=0)), int(point.max(initial=0)))
    row: Int[np.ndarray, "X"] = np.cumsum(np.bincount(finish, minlength=beyond)).take(np.maximum(point, 0))
    row[point < 0] = 0
    return row


def _target_points(
    target: Encoding, prefix: Int[np.ndarray, "T"]
) -> tuple[Int[np.ndarray, "X"], Int[np.ndarray, "X"], Int[np.ndarray, "T"]]:
    """Return the points of all cuts, the points up to which their cost is counted, and for each token the cut at which it ends."""
    starts, ends = target.starts.astype(np.int64), target.ends.astype(np.int64)
    finish = 2 * ends + (ends == starts)
    joined = np.append(starts[1:] == ends[:-1], np.zeros(min(len(starts), 1), bool))  # another token starts where this one ends
    counted = 2 * starts
    counted[1:][joined[:-1]] = finish[:-1][joined[:-1]]
    last = np.flatnonzero(~joined)
    end = np.arange(1, len(starts) + 1)
    end[last] = len(starts) + np.arange(len(last))
    return np.append(2 * starts + (prefix == 0), finish[last]), np.append(counted, finish[last]), end


def join_on_bytes(rows: Rows, target: Encoding) -> Int[np.ndarray, "T"]:
    """Return for each target token the source row whose token starts at the same byte, or -1.

    >>> topk = TopK.unknown(2, k=1, vocab_size=9)
    >>> rows = Rows(np.array([0, 5]), np.array([5, 9]), np.array([1, 2]), np.zeros(2, np.float32), topk)
    >>> join_on_bytes(rows, Encoding(np.array([0, 4, 4, 4]), np.array([-1, 0, 3, 5]), np.array([-1, 3, 5, 9]))).tolist()
    [-1, 0, -1, 1]
    """
    if not len(rows):
        return np.full(len(target.ids), -1)
    row_at = np.full(2 + max(int(rows.starts[-1]), int(target.starts.max(initial=0))), -1)  # its last entry answers for tokens without text
    row_at[rows.starts] = np.arange(len(rows))
    found = row_at.take(target.starts)
    bare = np.flatnonzero((target.starts == target.ends) & (found >= 0))  # a dummy prefix alone shares its byte with the next token: the
    found[bare] = np.searchsorted(rows.starts, target.starts[bare], side="left")  # first of two rows
    return found


def ends_together(rows: Rows, target: Encoding) -> Bool[np.ndarray, "T"]:
    """Return for each target token whether a token of the source ends at the same byte.

    >>> rows = Rows(np.array([0, 5]), np.array([5, 9]), np.array([1, 2]), np.zeros(2, np.float32), TopK.unknown(2, k=1, vocab_size=9))
    >>> ends_together(rows, Encoding(np.array([0, 4, 4, 4]), np.array([-1, 0, 3, 5]), np.array([-1, 3, 5, 9]))).tolist()
    [False, False, True, True]
    """
    if not len(rows):
        return np.zeros(len(target.ids), bool)
    ends_at = np.zeros(2 + max(int(rows.ends[-1]), int(target.ends.max(initial=0))), bool)  # its last entry answers for tokens without text
    ends_at[rows.ends] = True
    return ends_at.take(target.ends)


def align_many(
    method: Callable[[Rows, Encoding, Pair], Alignment],
    rows: Sequence[Rows],
    targets: Sequence[Encoding],
    pair: Pair,
    *,
    tokens_at_once: int = 16384,
) -> list[Alignment]:
    """Align many documents of one source as if they were one text, which spares short documents their overhead.

    For methods that look at byte positions only (``ByteLaw``, ``Join``). ``tokens_at_once`` keeps the arrays inside the processor's cache.

    Raises:
        ValueError: the numbers of documents differ.
    """
    if len(rows) != len(targets):
        raise ValueError(f"align_many: rows of {len(rows)} documents for {len(targets)} encodings")
    alignments: list[Alignment] = []
    bounds = np.append(0, np.cumsum([len(target.ids) for target in targets])) // tokens_at_once
    for chunk in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(bounds[:-1])) + 1) if len(rows) else ():
        some = slice(chunk[0], chunk[-1] + 1)
        alignments += _separate(method(*concatenate(rows[some], targets[some]), pair), rows[some], targets[some])
    return alignments


def concatenate(rows: Sequence[Rows], targets: Sequence[Encoding]) -> tuple[Rows, Encoding]:
    """Put the documents (one or more) of one source and one target behind each other, with an unused byte between any two."""
    base = _places([part.ends for part in rows], [part.ends for part in targets])
    by_row = np.repeat(base, [len(part) for part in rows])
    by_token = np.repeat(base, [len(part.ids) for part in targets])

    def moved(parts: list[Integer[np.ndarray, "_"]], by: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
        together = np.concatenate(parts)
        return np.where(together >= 0, together + by, -1)

    all_rows = Rows(
        moved([part.starts for part in rows], by_row),
        moved([part.ends for part in rows], by_row),
        np.concatenate([part.next_ids for part in rows]),
        np.concatenate([part.nll_nats for part in rows]),
        TopK.concatenate([part.topk for part in rows]),
    )
    ids = np.concatenate([part.ids for part in targets])
    starts, ends = moved([part.starts for part in targets], by_token), moved([part.ends for part in targets], by_token)
    return all_rows, Encoding(ids, starts, ends, sum(part.masked_bytes for part in targets))


def _places(row_ends: list[Integer[np.ndarray, "_"]], target_ends: list[Integer[np.ndarray, "_"]]) -> Int[np.ndarray, "B"]:
    """Return the byte at which each document is put."""
    size = np.ones(len(row_ends), np.int64)
    for ends in (row_ends, target_ends):
        counts = np.array([len(part) for part in ends])
        filled = np.flatnonzero(counts)
        if len(filled):
            first = (np.cumsum(counts) - counts)[filled]
            size[filled] = np.maximum(size[filled], np.maximum.reduceat(np.concatenate(ends), first) + 1)
    return np.cumsum(size) - size


def _separate(whole: Alignment, rows: Sequence[Rows], targets: Sequence[Encoding]) -> list[Alignment]:
    """Cut the alignment of concatenated documents apart."""
    num_rows, num_tokens = [len(part) for part in rows], [len(part.ids) for part in targets]
    first_row = np.repeat(np.cumsum(num_rows) - num_rows, num_tokens)
    source_row = np.where(whole.source_row >= 0, whole.source_row - first_row, -1)
    bounds = np.append(0, np.cumsum(num_tokens)).tolist()
    cut = [slice(first, last) for first, last in pairwise(bounds)]
    others = (whole.truth_nll_nats, whole.lost_mass, whole.one_hot, whole.boundary)
    return [Alignment(source_row[c], whole.topk[c], *(each[c] for each in others)) for c in cut]
