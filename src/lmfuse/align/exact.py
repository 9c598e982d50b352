"""Which target token writes exactly the bytes of a source token: the exact-match (EM) map of FuseLLM, on bytes instead of strings.

arXiv:2401.10491, section 3.2. The released code compares strings after swapping one space marker, so that newlines, tabs and text beyond
ASCII never match across families; bytes need no such rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Int

from lmfuse.types import END_OF_TURN, Vocabulary, VocabularyMap

CONTROL_CLASSES = ("start", "pad", "unk", "bos", "eos", "end_of_turn")  # later ones win where one id plays several parts


def token_bytes(vocabulary: Vocabulary) -> list[bytes]:
    """Return the bytes of every token, ``b""`` for control tokens."""
    data, bounds = vocabulary.flat.tobytes(), vocabulary.offsets.tolist()
    return [data[start:end] for start, end in pairwise(bounds)]


def exact_ids(strings: Sequence[bytes], target: Vocabulary) -> Int[np.ndarray, "N"]:
    """Return for each byte string the lowest target id that writes exactly it, or -1.

    >>> exact_ids([b"b", b"x", b""], Vocabulary.from_tokens([b"", b"a", b"b", b"b"])).tolist()
    [2, -1, -1]
    """
    id_of = {written: token_id for token_id, written in reversed(list(enumerate(token_bytes(target)))) if written}
    return np.fromiter((id_of.get(string, -1) for string in strings), np.int64, len(strings))


def map_control_tokens(target_of: Int[np.ndarray, "W"], source: Vocabulary, target: Vocabulary) -> Int[np.ndarray, "W"]:
    """Return ``target_of`` with each control token of the source sent to the target's token of the same class, if it has one.

    A named token that writes text ("!" with a second job as padding) is text and stays what it is, on either side.

    >>> ours, theirs = (Vocabulary.from_tokens([b"!", b""], control=control) for control in ({"pad": 0, "eos": 1}, {"pad": 1, "eos": 1}))
    >>> map_control_tokens(np.array([0, -1]), theirs, ours).tolist(), map_control_tokens(np.array([0, -1]), ours, theirs).tolist()
    ([0, 1], [0, 1])
    """
    target_of = target_of.copy()
    for name in CONTROL_CLASSES:
        if name in source.control and name in target.control:
            ours, theirs = target.control[name], source.control[name]
            if target.lengths[ours] == source.lengths[theirs] == 0:
                target_of[theirs] = ours
    return target_of


def turn_end(vocabulary: Vocabulary) -> int:
    r"""Return the id that writes ``END_OF_TURN``, or -1 where no conversations are read or no single token ends a turn.

    >>> turn_end(Vocabulary.from_tokens([b"a", b"\xff"], control={"end_of_turn": 1})), turn_end(Vocabulary.from_tokens([b"\xff"]))
    (1, -1)
    """
    token_id = vocabulary.control.get("end_of_turn", -1)
    return token_id if token_id >= 0 and vocabulary.bytes_of(token_id) == END_OF_TURN else -1


def map_turn_end(target_of: Int[np.ndarray, "W"], source: Vocabulary, target: Vocabulary) -> Int[np.ndarray, "W"]:
    r"""Return ``target_of`` in which the end of a turn goes to the target's, and nothing else does; the same where there is none.

    >>> ours, theirs = (Vocabulary.from_tokens(tokens, control={"end_of_turn": 1}) for tokens in ([b"", b"\xff"], [b"a", b"\xff"]))
    >>> map_turn_end(np.array([1, 0]), theirs, ours).tolist()
    [-1, 1]
    """
    ours, theirs = turn_end(target), turn_end(source)
    target_of = np.where((target_of == ours) & (ours >= 0), -1, target_of)
    if theirs >= 0:
        target_of[theirs] = ours
    return target_of


def exact_map(source: Vocabulary, target: Vocabulary) -> VocabularyMap:
    """Map each source token to the target token of the same bytes; control tokens and the end of a turn only to their own class.

    Of several target tokens that write the same bytes (``<0x0A>`` and a literal newline) the one that is also spelled the same is
    taken, else the lowest id.

    >>> toy = Vocabulary.from_tokens([b"", b"a", b"bc"], control={"eos": 0})
    >>> exact_map(toy, Vocabulary.from_tokens([b"bc", b"b", b""], control={"eos": 2})).single().tolist()
    [2, -1, 0]
    """
    target_of = exact_ids(token_bytes(source), target)
    spelled = {string: token_id for token_id, string in enumerate(target.strings)}
    for source_id, string in enumerate(source.strings):
        same = spelled.get(string, -1)
        if same >= 0 and target_of[source_id] >= 0 and target.bytes_of(same) == target.bytes_of(int(target_of[source_id])):
            target_of[source_id] = same
    target_of = map_turn_end(map_control_tokens(target_of, source, target), source, target)
    return VocabularyMap.from_single(target_of, target.size, "exact")
