"""Where the tokens of two tokenizations lie on the bytes they share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.first_piece import first_piece_map
from lmfuse.align.join import Join
from lmfuse.align.pair import Pair, build_pair
from lmfuse.align.spans import Cuts, Support, align_many, concatenate, join_on_bytes, no_alignment
from lmfuse.types import Encoding, Rows, TopK, Vocabulary
from tests.align.test_pair import TEXT, encode, longest_first, random_rows, toy_vocabulary


def spans_of(*pieces: str, at: int = 0) -> tuple[np.ndarray, np.ndarray]:
    ends = at + np.cumsum([len(piece) for piece in pieces])
    return ends - [len(piece) for piece in pieces], ends


def row_of(pieces: list[str], vocabulary: Vocabulary, at: int = 0) -> Rows:
    starts, ends = spans_of(*pieces, at=at)
    ids = np.array([vocabulary.strings.index(piece) for piece in pieces])
    return Rows(starts, ends, ids, np.ones(len(ids), np.float32), TopK.unknown(len(ids), 1, vocabulary.size))


SOURCE = Vocabulary.from_tokens([b"ab", b"cde", b"f", b"abc", b"d", b" ab"])
TARGET = Vocabulary.from_tokens([b"abc", b"d", b"ef", b"a", b"bcdef", b" abc", b" "])


def test_by_hand() -> None:
    rows = row_of(["ab", "cde", "f"], SOURCE)
    target = Encoding(np.array([0, 1, 2]), *spans_of("abc", "d", "ef"))
    cuts = Cuts.of(rows, target, SOURCE, TARGET)
    assert cuts.row.tolist() == [0, 1, 1, 3]
    assert cuts.consumed.tolist() == [0, 1, 2, -1]
    assert cuts.complete.tolist() == [0, 1, 1, 3]
    assert cuts.inside.tolist() == [False, True, True, False]
    assert cuts.end.tolist() == [1, 2, 3]
    assert cuts.known.all()


def test_a_dummy_prefix_of_the_source_is_consumed_but_not_charged_to_what_comes_before() -> None:
    rows = Rows(np.array([0]), np.array([2]), np.array([5]), np.ones(1, np.float32), TopK.unknown(1, 1, SOURCE.size))
    cuts = Cuts.of(rows, Encoding(np.array([3]), np.array([0]), np.array([1])), SOURCE, TARGET)
    assert cuts.consumed.tolist() == [1, 2]
    assert cuts.in_text.tolist() == [False, True]
    assert cuts.inside.tolist() == [False, True]


def test_a_prefix_that_both_write_is_a_byte_like_any_other() -> None:
    target = Encoding(np.array([6, 3]), np.array([0, 0]), np.array([0, 1]))  # a bare space, then "a"
    rows = Rows(np.array([0]), np.array([2]), np.array([5]), np.ones(1, np.float32), TopK.unknown(1, 1, SOURCE.size))
    cuts = Cuts.of(rows, target, SOURCE, TARGET)
    assert cuts.consumed.tolist() == [0, 1, 2]
    assert cuts.inside.tolist() == [False, True, True]
    assert cuts.known.tolist() == [True, True]


def test_a_prefix_that_the_source_lacks_has_nothing_consumed() -> None:
    rows = row_of(["ab", "cde"], SOURCE)
    cuts = Cuts.of(rows, Encoding(np.array([5]), np.array([0]), np.array([3])), SOURCE, TARGET)
    assert cuts.consumed.tolist() == [-1, 1]
    assert cuts.known.tolist() == [True]
    bare = Cuts.of(rows, Encoding(np.array([6]), np.array([0]), np.array([0])), SOURCE, TARGET)
    assert bare.known.tolist() == [False]


def test_gaps_of_the_source_and_masked_target_tokens_are_unknown() -> None:
    rows = row_of(["cde", "f"], SOURCE, at=2)
    rows = replace(rows, starts=np.array([2, 6]), ends=np.array([5, 7]))  # bytes 0, 1 and 5 have no row
    target = Encoding(np.array([0, 1, 2, 3]), np.array([0, 3, -1, 6]), np.array([3, 4, -1, 7]))
    known = Cuts.of(rows, target, SOURCE, TARGET).known
    assert known.tolist() == [False, True, False, True]
    over_the_gap = Encoding(np.array([2]), np.array([4]), np.array([6]))
    assert Cuts.of(rows, over_the_gap, SOURCE, TARGET).known.tolist() == [False]


@pytest.mark.parametrize("seed", range(5))
def test_the_join_equals_a_search_for_equal_starts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = toy_vocabulary(rng), toy_vocabulary(rng)
    rows = random_rows(rng, source, encode(source, TEXT, rng))
    encoding = encode(target, TEXT, rng, start_token=True)
    place = {int(start): row for row, start in enumerate(rows.starts)}
    assert join_on_bytes(rows, encoding).tolist() == [place.get(int(start), -1) for start in encoding.starts]


def test_a_bare_prefix_joins_a_bare_prefix() -> None:
    llama = Vocabulary.from_tokens([b" ", b"ab"])
    encoding = Encoding(np.array([0, 1]), np.array([0, 0]), np.array([0, 2]))
    rows = Rows(encoding.starts, encoding.ends, encoding.ids, np.ones(2, np.float32), TopK.unknown(2, 1, 2))
    assert llama.size == 2
    assert join_on_bytes(rows, encoding).tolist() == [0, 1]


def test_support_completes_the_top_k_once() -> None:
    topk = TopK(np.array([[4, 2], [4, 0], [0, 0]]), np.log([[0.5, 0.25], [0.5, 0.25], [0.5, 1e-300]]), np.log([0.25, 0.25, 0.5]), 5)
    topk = replace(topk, log_probs=topk.log_probs.astype(np.float32), tail=topk.tail.astype(np.float32))
    topk.log_probs[2] = [np.log(0.5), -np.inf]
    rows = Rows(np.arange(3), np.arange(1, 4), np.array([2, 3, 0]), -np.log(np.array([0.25, 0.125, 0.5], np.float32)), topk)
    support = Support.of(rows)
    assert support.ids.T.tolist() == [[4, 2], [4, 0], [0, 0]]
    assert support.mass.T.round(4).tolist() == [[0.5, 0.25], [0.5, 0.25], [0.5, 0.0]]
    assert support.slot.tolist() == [1, 2, 0]
    ids, mass = support.whole(np.array([1, 0]))
    assert ids.T.tolist() == [[4, 0, 3], [4, 2, 2]]
    assert mass.T.round(4).tolist() == [[0.5, 0.25, 0.125], [0.5, 0.25, 0.0]]
    np.testing.assert_allclose(support.tail, [0.25, 0.125, 0.5], rtol=1e-6)


@pytest.mark.parametrize("tokens_at_once", [1, 50, 10**6])
def test_many_documents_at_once_equal_one_by_one(tokens_at_once: int) -> None:
    rng = np.random.default_rng(1)
    source, target = toy_vocabulary(rng), toy_vocabulary(rng)
    pair = build_pair(source, target, longest_first(target), first_piece_map(source, target, longest_first(target)))
    texts = [TEXT, b"hello", b"", TEXT[:17], b"a" * 9]
    rows = [random_rows(rng, source, encode(source, text, rng, dummy_prefix=n % 2 == 0), k=4) for n, text in enumerate(texts)]
    rows.append(rows[1])  # a row after the text that an empty document's target does not read
    targets = [encode(target, text, rng, dummy_prefix=n % 3 == 0, start_token=True) for n, text in enumerate([*texts, b""])]
    for method in (ByteLaw(), Join()):
        together = align_many(method, rows, targets, pair, tokens_at_once=tokens_at_once)
        for one, document, encoding in zip(together, rows, targets, strict=True):
            alone = method(document, encoding, pair)
            for name in ("source_row", "truth_nll_nats", "lost_mass", "one_hot"):
                np.testing.assert_allclose(getattr(one, name), getattr(alone, name), atol=1e-6)
            np.testing.assert_array_equal(one.topk.ids, alone.topk.ids)
            np.testing.assert_allclose(np.exp(one.topk.log_probs), np.exp(alone.topk.log_probs), atol=1e-6)
    assert align_many(ByteLaw(), [], [], pair) == []


def test_concatenated_documents_lie_a_byte_apart_and_masked_tokens_stay_masked() -> None:
    rows, target = row_of(["ab", "cde"], SOURCE), Encoding(np.array([0, 1, 2]), np.array([0, 3, -1]), np.array([3, 4, -1]), masked_bytes=2)
    all_rows, all_targets = concatenate([rows, rows], [target, target])
    assert all_rows.starts.tolist() == [0, 2, 6, 8]
    assert all_rows.ends.tolist() == [2, 5, 8, 11]
    assert all_targets.starts.tolist() == [0, 3, -1, 6, 9, -1]
    assert all_targets.ends.tolist() == [3, 4, -1, 9, 10, -1]
    assert (all_targets.masked_bytes, len(all_rows.topk)) == (4, 4)


def test_no_alignment_teaches_nothing() -> None:
    nothing = no_alignment(3, 2, 9)
    assert not nothing.taught.any()
    assert np.isnan(nothing.truth_nll_nats).all()


def test_ids_of_another_vocabulary_are_refused() -> None:
    rows, target = row_of(["ab", "cde", "f"], SOURCE), Encoding(np.array([0, 1, 2]), *spans_of("abc", "d", "ef"))
    pair = Pair(SOURCE, TARGET, np.zeros(len(SOURCE.flat), np.int32), np.zeros(len(SOURCE.flat), np.int32))
    with pytest.raises(ValueError, match="rows over 4 ids do not belong to a source vocabulary of 6 tokens"):
        ByteLaw()(replace(rows, topk=TopK.unknown(3, 1, 4)), target, pair)
    with pytest.raises(ValueError, match="target: token id 7 is outside its vocabulary of 7 tokens"):
        ByteLaw()(rows, replace(target, ids=np.array([0, 1, 7])), pair)
    with pytest.raises(ValueError, match="rows: token 1 covers bytes 2 to 5 but its id 2 writes 1"):
        ByteLaw()(replace(rows, next_ids=np.array([0, 2, 2])), target, pair)
    with pytest.raises(ValueError, match="rows of 1 documents for 2 encodings"):
        align_many(ByteLaw(), [rows], [target, target], pair)
