"""Where a source token goes that the target cannot write as one token: to all the target tokens that write it, the first one most.

X-Token, arXiv:2605.21699, section 3.2: a token without an equal is written again by the other tokenizer, the first four pieces share its
probability, each a tenth of the one before, and every row is scaled to sum to one. There the student's tokens are projected onto the
teacher's; here the source's onto the target's, by the same rule. Not reproduced: entries added from the opposite direction, and
control tokens that are matched by the likeness of their names: here they go to their own class only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lmfuse.align.exact import exact_ids, map_control_tokens, token_bytes, turn_end
from lmfuse.types import Vocabulary, VocabularyMap

EncodePieces = Callable[[Sequence[bytes]], list[list[int]]]
"""All ids that the target's tokenizer writes for each byte string as a continuation of text; an empty list for nothing."""


def pieces_map(
    source: Vocabulary, target: Vocabulary, encode_pieces: EncodePieces, max_pieces: int = 4, decay: float = 0.1
) -> VocabularyMap:
    """Map each source token to the target token of its bytes, else spread it over the first target pieces of it.

    Piece ``i`` gets a share proportional to ``decay ** i``; what meets on one target id adds up. Control tokens and
    the end of a turn go to their own class.

    Args:
        source: where probability comes from.
        target: where it goes.
        encode_pieces: the target's tokenizer; it also decides which of several tokens with the same bytes is written.
        max_pieces: pieces that get a share, at least 1, which is the first-piece map.
        decay: the share of a piece over that of the one before, in (0, 1]; 1 is an even spread.

    Raises:
        ValueError: ``max_pieces`` or ``decay`` out of range, or another number of answers than questions.

    >>> digits = Vocabulary.from_tokens([b"0", b"1", b"2"])
    >>> onto = pieces_map(Vocabulary.from_tokens([b"201", b"1"]), digits, lambda strings: [[s - 48 for s in string] for string in strings])
    >>> onto.indptr.tolist(), onto.target_ids.tolist(), (111 * onto.weights).round().tolist()
    ([0, 3, 4], [2, 0, 1, 1], [100.0, 10.0, 1.0, 111.0])
    """
    if max_pieces < 1 or not 0 < decay <= 1:
        raise ValueError(f"pieces_map: max_pieces {max_pieces} and decay {decay}, expected at least 1 and a decay in (0, 1]")
    if source.key == target.key:
        return VocabularyMap.from_single(np.arange(source.size), target.size, "pieces")
    strings, written = token_bytes(source), token_bytes(target)
    exact = exact_ids(strings, target)
    pieces: list[list[int]] = [[] for _ in strings]
    asked = [n for n, string in enumerate(strings) if string]
    for n, ids in zip(asked, encode_pieces([strings[n] for n in asked]), strict=True):
        one_token = len(ids) == 1 and written[ids[0]] == strings[n]
        pieces[n] = [int(exact[n])] if exact[n] >= 0 and not one_token else [token_id for token_id in ids if written[token_id]]
    control = map_control_tokens(np.full(source.size, -1), source, target)
    for n in np.flatnonzero(control >= 0).tolist():
        pieces[n] = [int(control[n])]
    ours, theirs = turn_end(target), turn_end(source)
    pieces = [[token_id for token_id in ids if token_id != ours] for ids in pieces] if ours >= 0 else pieces
    if theirs >= 0:
        pieces[theirs] = [ours] if ours >= 0 else []
    return _spread([ids[:max_pieces] for ids in pieces], decay, target.size)


def _spread(pieces: list[list[int]], decay: float, target_size: int) -> VocabularyMap:
    """Return the map that gives the pieces of each token their shares, the heaviest first."""
    lengths = np.array([len(ids) for ids in pieces])
    token = np.repeat(np.arange(len(pieces)), lengths)
    place = np.arange(len(token)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    target = np.array([token_id for ids in pieces for token_id in ids], np.int64)
    share = decay**place
    share /= np.bincount(token, share, minlength=len(pieces))[token]
    codes, first, inverse = np.unique(token * target_size + target, return_index=True, return_inverse=True)
    weights = np.bincount(inverse, share, minlength=len(codes))
    order = np.lexsort((first, -weights, codes // target_size))
    rows, onto = np.divmod(codes[order], target_size)
    indptr = np.append(0, np.cumsum(np.bincount(rows, minlength=len(pieces))))
    return VocabularyMap(indptr, onto, weights[order].astype(np.float32), target_size, "pieces")
