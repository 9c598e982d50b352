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

from lmfuse.align.exact import map_control_tokens, token_bytes
from lmfuse.align.first_piece import FirstPieces, first_piece_ids
from lmfuse.align.memo import Memo
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
        longer: for source tokens whose bytes are the beginning of longer target tokens: the target tokens that a corpus has where the
            source writes them, with their shares; without it such candidates are taken for the short target token.
        first_pieces: what the target writes first of a string; without it what comes after a source token that ends inside a target
            token is not spelled out, but left in the tail.

    Raises:
        ValueError: a table or the map has another size than the vocabularies ask for.
    """

    source: Vocabulary
    target: Vocabulary
    suffix_target: Integer[np.ndarray, "N"]
    prefix_node: Integer[np.ndarray, "N"]
    tokens: VocabularyMap | None = None
    prefixed_target: Integer[np.ndarray, "W"] | None = None
    longer: VocabularyMap | None = None
    first_pieces: FirstPieces | None = None

    def __post_init__(self) -> None:
        num_bytes = len(self.source.flat)
        if not len(self.suffix_target) == len(self.prefix_node) == num_bytes:
            found = f"{len(self.suffix_target)} suffix targets and {len(self.prefix_node)} prefix nodes"
            raise ValueError(f"pair: {found} for a source vocabulary of {num_bytes} bytes")
        if self.prefixed_target is not None and len(self.prefixed_target) != self.source.size:
            raise ValueError(f"pair: {len(self.prefixed_target)} prefixed targets for {self.source.size} source tokens")
        for onto in (self.tokens, self.longer):
            if onto is not None and (onto.source_size, onto.target_size) != (self.source.size, self.target.size):
                found = f"a map {onto.source_size} -> {onto.target_size}"
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
        """Return the target id of each whole source token; control tokens go to their own class, -1 where the target has none."""
        if self.source.key == self.target.key:
            return np.arange(self.source.size, dtype=np.int32)
        first, _, rest = self._cuts
        return map_control_tokens(rest.take(first).astype(np.int64), self.source, self.target).astype(np.int32)

    @cached_property
    def single_target(self) -> Int[np.ndarray, "W"] | None:
        """Return ``tokens`` as one target id (or -1) per source id, None where it is not that simple."""
        onto = self.tokens
        if onto is None or np.diff(onto.indptr).max(initial=0) > 1 or (onto.weights != 1).any():
            return None
        return onto.single().astype(np.int32)

    @cached_property
    def is_short(self) -> Bool[np.ndarray, "W"]:
        """Return which source tokens ``longer`` speaks of."""
        return np.zeros(self.source.size, bool) if self.longer is None else np.diff(self.longer.indptr) > 0

    @cached_property
    def _stops(self) -> Bool[np.ndarray, "M"]:
        """Return, over all cuts of all tokens, where the target's own pieces of the token end.

        The pieces are read off ``suffix_target``: the first piece of the token, the first piece of what is left, and so on. So they are
        those of the token alone: what the target makes of it behind other text may differ.
        """
        first, _, rest = self._cuts
        stops = np.zeros(len(rest), bool)
        at = first[self.source.lengths > 0].astype(np.int64)
        while len(at):
            piece = rest[at]
            width = np.where(piece >= 0, self.target.lengths.take(piece, mode="clip"), 0)
            at = (at + width)[width > 0]
            stops[at] = True
        return stops

    @cached_property
    def _beginnings(self) -> Int[np.ndarray, "2 W"]:
        """Return for each source token the shorter ones that end with its first and with its second piece in the target, or -1."""
        first, node, _ = self._cuts
        written = np.flatnonzero(self.source.lengths)
        token_of = np.full(int(node.max(initial=-1)) + 1, -1)
        token_of[self.prefix_node[self.source.offsets[written + 1] - 1][::-1]] = written[::-1]  # of equals the lowest id
        beginnings = np.full((2, self.source.size), -1)
        stop, at = np.flatnonzero(self._stops), np.zeros(self.source.size, np.int64)
        owner = np.searchsorted(first, stop, side="right") - 1
        rank = np.arange(len(stop)) - np.searchsorted(owner, owner)
        for nth in range(2):
            here = (rank == nth) & (node[stop] >= 0)  # nothing comes after the last cut
            at = stop[here] - 1
            beginnings[nth, owner[here]] = token_of[node[at]]
        return beginnings.astype(np.int32)

    def longer_candidates(
        self, ids: Integer[np.ndarray, "C U"], next_ids: Integer[np.ndarray, "U"]
    ) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
        """Return which candidates go on behind the token that followed where the target would cut them: columns and rows.

        Only the first two cuts of a candidate are looked at; a token of more pieces is seldom a candidate.
        """
        first, second = (beginning.take(ids) == next_ids for beginning in self._beginnings)
        found = np.flatnonzero(first | second)
        column = found // max(len(next_ids), 1)
        return column, found - column * len(next_ids)

    @cached_property
    def _joined(self) -> tuple[Memo, Int[np.ndarray, "M"]]:
        """Return the answers of ``first_of_both`` so far, and the names of all prefixes of the target's tokens."""
        return Memo(), prefix_nodes(self.target)

    def first_of_both(
        self, written_ids: Integer[np.ndarray, "N"], num_bytes: Integer[np.ndarray, "N"], ids: Integer[np.ndarray, "N"]
    ) -> Int[np.ndarray, "N"]:
        """Return the target token that gets the first ``num_bytes`` bytes of a target token with a source token behind them, or -1.

        The tokenizer is asked once for each two strings. Not for several threads at once.
        """
        if self.first_pieces is None or not len(ids):
            return np.full(len(ids), -1)
        memo, nodes = self._joined
        last = self.target.offsets[written_ids] + num_bytes - 1
        head = np.where(num_bytes > 0, 1 + nodes.take(last, mode="clip").astype(np.int64), 0)  # times the source's size it needs 64 bits
        return memo(head * self.source.size + ids, lambda places: self._ask(written_ids[places], num_bytes[places], ids[places]))

    def _ask(
        self, written_ids: Integer[np.ndarray, "N"], num_bytes: Integer[np.ndarray, "N"], ids: Integer[np.ndarray, "N"]
    ) -> Int[np.ndarray, "N"]:
        assert self.first_pieces is not None
        spans = zip(self.target.offsets[written_ids].tolist(), num_bytes.tolist(), ids.tolist(), strict=True)
        return self.first_pieces([self._target_data[at : at + n] + self.source.bytes_of(token) for at, n, token in spans])

    @cached_property
    def _target_data(self) -> bytes:
        return self.target.flat.tobytes()

    def begins_alike(
        self, ids: Integer[np.ndarray, "C N"], with_ids: Integer[np.ndarray, "N"], num_bytes: Int[np.ndarray, "N"]
    ) -> Bool[np.ndarray, "C N"]:
        """Return which candidates begin with the first ``num_bytes`` (one or more) bytes of another token of the source."""
        first, node, _ = self._cuts
        last = (num_bytes - 1).astype(np.int32)
        # an entry beyond a token's end belongs to a later token, nearer to its beginning: no node there is as deep as the one sought
        return node.take(first.take(ids) + last, mode="clip") == node[first[with_ids] + last]

    def stops_after(self, ids: Integer[np.ndarray, "N"], num_bytes: Int[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
        """Return which source tokens the target would cut after their first ``num_bytes`` bytes; those that are shorter may say anything."""
        return self._stops.take(self._cuts[0].take(ids) + num_bytes, mode="clip")

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
        cls,
        source: Vocabulary,
        target: Vocabulary,
        arrays: Mapping[str, Shaped[np.ndarray, "..."]],
        tokens: VocabularyMap | None = None,
        longer: VocabularyMap | None = None,
        first_pieces: FirstPieces | None = None,
    ) -> Pair:
        """Build a pair from what :meth:`to_arrays` gave."""
        tables = arrays["suffix_target"], arrays["prefix_node"], tokens, arrays.get("prefixed_target")
        return cls(source, target, *tables, longer, first_pieces)


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
    """Compute all tables of a pair; seconds for the largest vocabularies, see ``benchmarks/align.py``."""
    prefixed = [DUMMY_PREFIX + written if written else b"" for written in token_bytes(source)]
    return Pair(
        source,
        target,
        suffix_targets(source, target, first_pieces),
        prefix_nodes(source),
        tokens,
        map_control_tokens(first_piece_ids(prefixed, target, first_pieces), source, target).astype(np.int32),
        first_pieces=first_pieces,
    )
