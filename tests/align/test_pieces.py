"""The map that spreads a token over its pieces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from lmfuse.align.exact import exact_map, token_bytes
from lmfuse.align.first_piece import first_piece_map
from lmfuse.align.join import Join
from lmfuse.align.pair import build_pair
from lmfuse.align.pieces import EncodePieces, pieces_map
from lmfuse.bytes import ByteTokenizer
from lmfuse.types import Encoding, Rows, TopK, Vocabulary
from tests.align.test_pair import longest_first, toy_vocabulary
from tests.fakes import byte_bpe, metaspace_bpe, unigram


def greedy(vocabulary: Vocabulary) -> EncodePieces:
    """A tokenizer's pieces: the longest token that the rest begins with, again and again."""
    first, written = longest_first(vocabulary), token_bytes(vocabulary)

    def pieces(string: bytes) -> list[int]:
        found = int(first([string])[0]) if string else -1
        return [] if found < 0 else [found, *pieces(string[len(written[found]) :])]

    return lambda strings: [pieces(string) for string in strings]


def row(onto, n: int) -> dict[int, float]:
    entries = slice(onto.indptr[n], onto.indptr[n + 1])
    return dict(zip(onto.target_ids[entries].tolist(), onto.weights[entries].tolist(), strict=True))


def test_by_hand() -> None:
    source = Vocabulary.from_tokens([b"abcde", b"ab", b"", b"aab", b"xyz", b""], control={"eos": 2, "pad": 5})
    target = Vocabulary.from_tokens([b"", b"a", b"b", b"c", b"d", b"e", b"ab"], control={"eos": 0})
    letters = lambda strings: [[1 + b"abcde".index(byte) for byte in string if byte in b"abcde"] for string in strings]  # noqa: E731
    onto = pieces_map(source, target, letters)
    assert row(onto, 0) == pytest.approx({n: 10.0 ** (4 - n) / 1111 for n in (1, 2, 3, 4)}, rel=1e-6)  # four pieces: `e` gets nothing
    assert row(onto, 1) == {6: 1.0}  # a token of these bytes exists, whatever the tokenizer says
    assert row(onto, 2) == {0: 1.0}
    assert row(onto, 3) == pytest.approx({1: 110 / 111, 2: 1 / 111}, rel=1e-6)  # `a` twice: its shares add up
    assert row(onto, 4) == {}
    assert row(onto, 5) == {}  # no padding token there
    assert (onto.method, onto.coverage) == ("pieces", 4 / 6)
    halves = pieces_map(source, target, letters, max_pieces=2, decay=0.5)
    assert row(halves, 0) == pytest.approx({1: 2 / 3, 2: 1 / 3}, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), max_pieces=st.integers(1, 5), decay=st.floats(0.01, 1.0))
def test_rows_are_stochastic_and_equal_a_slow_loop(seed: int, max_pieces: int, decay: float) -> None:
    rng = np.random.default_rng(seed)
    source, target = toy_vocabulary(rng, size=12), toy_vocabulary(rng, size=12)
    pieces = greedy(target)
    onto = pieces_map(source, target, pieces, max_pieces, decay)
    exact = exact_map(source, target).single()
    for n, string in enumerate(token_bytes(source)):
        if string and exact[n] < 0:
            expected: dict[int, float] = {}
            found = pieces([string])[0][:max_pieces]
            for place, target_id in enumerate(found):
                expected[target_id] = expected.get(target_id, 0.0) + decay**place / sum(decay**i for i in range(len(found)))
            assert row(onto, n) == pytest.approx(expected, rel=1e-5)
        else:
            assert row(onto, n) == ({int(exact[n]): 1.0} if exact[n] >= 0 else {})
    mapped = np.flatnonzero(np.diff(onto.indptr))
    assert_allclose(np.add.reduceat(onto.weights, onto.indptr[mapped]), 1.0, rtol=1e-5)


def test_one_piece_is_the_first_piece_map() -> None:
    kinds = [ByteTokenizer.from_tokenizer(kind()) for kind in (byte_bpe, metaspace_bpe, unigram)]
    for ours in kinds:
        for theirs in kinds:
            first = first_piece_map(theirs.vocabulary, ours.vocabulary, ours.first_pieces)
            one = pieces_map(theirs.vocabulary, ours.vocabulary, ours.pieces, max_pieces=1)
            assert one.single().tolist() == first.single().tolist()
            four = pieces_map(theirs.vocabulary, ours.vocabulary, ours.pieces)
            assert (four.single() >= 0).tolist() == (first.single() >= 0).tolist()


def test_the_same_vocabulary_is_the_identity() -> None:
    vocabulary = toy_vocabulary(np.random.default_rng(0))
    assert pieces_map(vocabulary, vocabulary, greedy(vocabulary)).single().tolist() == list(range(vocabulary.size))


def test_of_two_tokens_with_the_same_bytes_the_tokenizer_decides() -> None:
    twins = Vocabulary.from_tokens([b"\n", b"a", b"\n"], strings=["<0x0A>", "a", "\n"])
    assert pieces_map(Vocabulary.from_tokens([b"\n"]), twins, lambda strings: [[2]]).single().tolist() == [2]


def test_the_join_gives_each_piece_its_share() -> None:
    source, target = Vocabulary.from_tokens([b"12", b"3"]), Vocabulary.from_tokens([b"1", b"2", b"3"])
    pair = build_pair(source, target, longest_first(target), pieces_map(source, target, greedy(target)))
    topk = TopK(np.array([[0, 1]]), np.log(np.array([[0.66, 0.25]], np.float32)), np.log(np.array([0.09], np.float32)), 2)
    rows = Rows(np.array([0]), np.array([1]), np.array([1]), -np.log(np.array([0.25], np.float32)), topk)
    aligned = Join(map="pieces", k=3)(rows, Encoding(np.array([2]), np.array([0]), np.array([1])), pair)
    found = dict(zip(aligned.topk.ids[0].tolist(), np.exp(aligned.topk.log_probs[0]).tolist(), strict=True))
    assert found == pytest.approx({0: 0.6, 1: 0.06, 2: 0.25}, rel=1e-5)
    assert aligned.lost_mass.tolist() == [0.0]


def test_wrong_input_is_refused() -> None:
    source, target = Vocabulary.from_tokens([b"ab"]), Vocabulary.from_tokens([b"a", b"b"])
    for arguments in ({"max_pieces": 0}, {"decay": 0.0}, {"decay": 1.5}):
        with pytest.raises(ValueError, match="expected at least 1 and a decay in"):
            pieces_map(source, target, lambda strings: [[0, 1]], **arguments)
    with pytest.raises(ValueError, match="zip"):
        pieces_map(source, target, lambda strings: [])
