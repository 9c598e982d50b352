"""Everything that alignment needs to know about two vocabularies, computed once and cached as arrays.

A source token ``w`` owns the slots ``source.offsets[w] ... source.offsets[w + 1] - 1``, one per byte. Slot ``offsets[w] + c`` is about
the token cut after its first ``c`` (or ``c + 1``) bytes, so that cutting a candidate anywhere is one table look-up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, Integer, Shaped

from lmfuse.align.exact import token_bytes
from lmfuse.align.first_piece import FirstPieces, first_piece_ids
from lmfuse.types import Vocabulary, VocabularyMap

DUMMY_PREFIX = b" "


@dataclass(frozen=True)
class Pair:
    """What a source's vocabulary means to a target's.

    Attributes:
        suffix_target: slot ``offsets[w] + c``: the target id that gets ``bytes(w)[c:]``: the token of exactly these bytes, else their first
            target piece, else -1.
        prefix_node: slot ``offsets[w] + c``: a number that names ``bytes(w)[:c + 1]``, equal for equal strings, so that "begins with
            the bytes already consumed" is one comparison.
        tokens: the map of whole tokens that the plain join projects with; the byte law does not need it.
        prefixed_target: for each source token the target id that gets a space and then the token, which is what a target with a
            dummy prefix writes first; without it such candidates go to the tail.

    Raises:
        ValueError: a table or the map has another size than the vocabularies ask for.
    """

    source: Vocabulary
    target: Vocabulary
    suffix_target: Integer[np.ndarray, "N"]
    prefix_node: Integer[np.ndarray, "N"]
    tokens: VocabularyMap | None = None
    prefixed_target: Integer[np.ndarray, "W"] | None = None

    def __post_init__(self) -> None:
        num_bytes = len(self.source.flat)
        if not len(self.suffix_target) == len(self.prefix_node) == num_bytes:
            found = f"{len(self.suffix_target)} suffix targets and {len(self.prefix_node)} prefix nodes"
            raise ValueError(f"pair: {found} for a source vocabulary of {num_bytes} bytes")
        if self.prefixed_target is not None and len(self.prefixed_target) != self.source.size:
            raise ValueError(f"pair: {len(self.prefixed_target)} prefixed targets for {self.source.size} source tokens")
        if self.tokens is not None and (self.tokens.source_size, self.tokens.target_size) != (self.source.size, self.target.size):
            found = f"a map {self.tokens.source_size} -> {self.tokens.target_size}"
            raise ValueError(f"pair: {found} between vocabularies of {self.source.size} and {self.target.size} tokens")

    @cached_property
    def _cuts(self) -> tuple[Int[np.ndarray, "W"], Int[np.ndarray, "M"], Int[np.ndarray, "M"]]:
        """Return where each token's entries begin in two tables over all cuts of all tokens, and the tables.

        A token of n bytes has n + 1 cuts, after 0 to n bytes. The node of a cut names the bytes before the byte after it; nothing comes
        after the last cut, and both tables say -1 there.
        """
        first = self.source.offsets[:-1] + np.arange(self.source.size)
        node, rest = (np.insert(table, self.source.offsets[1:], -1) for table in (self.prefix_node, self.suffix_target))
        return first.astype(np.int32), node.astype(np.int32), rest.astype(np.int32)

    @cached_property
    def whole_target(self) -> Int[np.ndarray, "W"]:
        """Return the target id of each whole source token, -1 for those without bytes."""
        first, _, rest = self._cuts
        return rest.take(first)

    @cached_property
    def single_target(self) -> Int[np.ndarray, "W"] | None:
        """Return ``tokens`` as one target id (or -1) per source id, None where it is not that simple."""
        onto = self.tokens
        if onto is None or np.diff(onto.indptr).max(initial=0) > 1 or (onto.weights != 1).any():
            return None
        return onto.single().astype(np.int32)

    def begins_alike(
        self, ids: Integer[np.ndarray, "C N"], with_ids: Integer[np.ndarray, "N"], num_bytes: Int[np.ndarray, "N"]
    ) -> Bool[np.ndarray, "C N"]:
        """Return which candidates begin with the first ``num_bytes`` (one or more) bytes of another token of the source."""
        first, node, _ = self._cuts
        last = (num_bytes - 1).astype(np.int32)
        # an entry beyond a token's end belongs to a later token, nearer to its beginning: no node there is as deep as the one sought
        return node.take(first.take(ids) + last, mode="clip") == node[first[with_ids] + last]

    def target_of_rest(self, ids: Integer[np.ndarray, "N"], num_bytes: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
        """Return the target id that gets each source token, of ``num_bytes`` bytes or more, after them; -1 where nothing is left."""
        first, _, rest = self._cuts
        return rest.take(first.take(ids) + num_bytes)

    def to_arrays(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Return all tables by name, for the cache; the vocabularies are not among them."""
        tables = {"suffix_target": self.suffix_target, "prefix_node": self.prefix_node}
        if self.prefixed_target is not None:
            tables["prefixed_target"] = self.prefixed_target
        return tables

    @classmethod
    def from_arrays(
        cls, source: Vocabulary, target: Vocabulary, arrays: Mapping[str, Shaped[np.ndarray, "..."]], tokens: VocabularyMap | None = None
    ) -> Pair:
        """Build a pair from what :meth:`to_arrays` gave."""
        return cls(source, target, arrays["suffix_target"], arrays["prefix_node"], tokens, arrays.get("prefixed_target"))


def prefix_nodes(vocabulary: Vocabulary) -> Int[np.ndarray, "N"]:
    """Name every prefix of every token: slot ``offsets[w] + c`` gets a number that stands for ``bytes(w)[:c + 1]``.

    Level by level down the trie of all tokens: a node is its parent and one byte. No hashing, so no collision.

    >>> prefix_nodes(Vocabulary.from_tokens([b"ab", b"ac", b"", b"abd"])).tolist()
    [0, 1, 0, 2, 0, 1, 3]
    """
    nodes = np.zeros(len(vocabulary.flat), np.int32)
    alive, depth, num_nodes = np.flatnonzero(vocabulary.lengths), 0, 0
    parent = np.zeros(len(alive), np.int64)
    while len(alive):
        slots = vocabulary.offsets[alive] + depth
        edges, node = np.unique(parent * 256 + vocabulary.flat[slots], return_inverse=True)
        nodes[slots] = node + num_nodes
        num_nodes += len(edges)
        depth += 1
        longer = vocabulary.lengths[alive] > depth
        alive, parent = alive[longer], node[longer].astype(np.int64)
    return nodes


def _reversed(vocabulary: Vocabulary) -> tuple[Vocabulary, Int[np.ndarray, "N"]]:
    """Return the vocabulary with each token backwards, and for each slot the slot of the mirrored byte."""
    lengths = vocabulary.lengths
    mirror = np.repeat(vocabulary.offsets[:-1] + vocabulary.offsets[1:] - 1, lengths) - np.arange(len(vocabulary.flat))
    return Vocabulary(vocabulary.flat[mirror], vocabulary.offsets, vocabulary.strings, vocabulary.control, vocabulary.key), mirror


def suffix_targets(source: Vocabulary, target: Vocabulary, first_pieces: FirstPieces) -> Int[np.ndarray, "N"]:
    """Find the target id for every suffix of every source token; equal suffixes are asked about once.

    Between equal vocabularies a whole token is itself, also where another id writes the same bytes.

    >>> ab = Vocabulary.from_tokens([b"abc", b"bc", b"c"])
    >>> suffix_targets(ab, Vocabulary.from_tokens([b"c", b"a", b"b"]), lambda strings: np.array([b"cab".index(s[0]) for s in strings])).tolist()
    [1, 2, 0, 2, 0, 0]
    """
    backwards, mirror = _reversed(source)
    _, slot_of, suffix_of_mirrored = np.unique(prefix_nodes(backwards), return_index=True, return_inverse=True)
    token_end = np.repeat(source.offsets[1:], source.lengths)
    data, starts = source.flat.tobytes(), mirror[slot_of]
    suffixes = [data[start:end] for start, end in zip(starts.tolist(), token_end[starts].tolist(), strict=True)]
    targets = first_piece_ids(suffixes, target, first_pieces)[suffix_of_mirrored][mirror]
    if source.key == target.key:
        written = np.flatnonzero(source.lengths)
        targets[source.offsets[written]] = written
    return targets.astype(np.int32)


def build_pair(source: Vocabulary, target: Vocabulary, first_pieces: FirstPieces, tokens: VocabularyMap | None = None) -> Pair:
    """Compute all tables of a pair; seconds for the largest vocabularies, see ``benchmarks/alignment.py``."""
    prefixed = [DUMMY_PREFIX + written if written else b"" for written in token_bytes(source)]
    return Pair(
        source,
        target,
        suffix_targets(source, target, first_pieces),
        prefix_nodes(source),
        tokens,
        first_piece_ids(prefixed, target, first_pieces).astype(np.int32),
    )
