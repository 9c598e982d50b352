"""The map that is counted over a corpus."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lmfuse.align.choices import RULES, Choice
from lmfuse.align.co_occurrence import MapReport, co_occurrence_map
from lmfuse.align.counts import Counts, count_pairs
from lmfuse.align.first_piece import first_piece_map
from lmfuse.types import Vocabulary, VocabularyMap
from tests.align.test_pair import TEXT, encode, longest_first, toy_vocabulary

SOURCE = Vocabulary.from_tokens([b"", b"ab", b"abc", b"c", b"xyz", b"q", b""], control={"eos": 0, "end_of_turn": 6})
TARGET = Vocabulary.from_tokens([b"a", b"ab", b"c", b"x", b"", b""], control={"eos": 4, "unk": 5})
COUNTS = Counts.nothing(7, 6).plus(np.array([1, 1, 1, 2, 0]), np.array([0, 0, 1, 1, 4]))


def row(onto: VocabularyMap, n: int) -> dict[int, float]:
    entries = slice(onto.indptr[n], onto.indptr[n + 1])
    return dict(zip(onto.target_ids[entries].tolist(), onto.weights[entries].tolist(), strict=True))


def test_by_hand() -> None:
    onto, report = co_occurrence_map(COUNTS, SOURCE, TARGET, longest_first(TARGET))
    # ab stood at `a` most often, although the target has it; c and xyz were not counted: same bytes, first piece; q has no piece
    assert onto.single().tolist() == [4, 0, 1, 2, 3, -1, -1]
    assert report == MapReport(counted=2, exact=1, first_piece=1, control=1, unknown=0, unmapped=2)
    assert onto.method == "co_occurrence"


def test_shares_by_hand() -> None:
    onto, report = co_occurrence_map(COUNTS, SOURCE, TARGET, longest_first(TARGET), "share")
    assert row(onto, 1) == pytest.approx({0: 2 / 3, 1: 1 / 3})
    assert row(onto, 2) == {1: 1.0}
    assert onto.method == "co_occurrence_share"
    assert row(co_occurrence_map(COUNTS, SOURCE, TARGET, longest_first(TARGET), "share", min_share=0.4)[0], 1) == {0: 1.0}
    assert report.counted == 2


def test_released_by_hand() -> None:
    onto, report = co_occurrence_map(COUNTS, SOURCE, TARGET, longest_first(TARGET), "released")
    # ab: the equal string costs nothing; c, xyz, q: unknown, as released; the control tokens keep to their classes
    assert onto.single().tolist() == [4, 1, 1, 5, 5, 5, -1]
    assert report == MapReport(counted=2, unknown=3, control=1, unmapped=1)
    without = Vocabulary.from_tokens([b"a", b"ab", b"c", b"x", b"", b""], control={"eos": 4})
    assert co_occurrence_map(COUNTS, SOURCE, without, longest_first(without), "released")[0].single().tolist() == [4, 1, 1, 4, 4, 4, -1]


@pytest.mark.parametrize("choose", RULES)
def test_the_end_of_a_turn_is_not_counted(choose: Choice) -> None:
    """Warping can match it with anything, and where it ends texts too the released fallback would send text to it."""
    source = Vocabulary.from_tokens([b"a", b"\xff", b"b"], control={"end_of_turn": 1})
    target = Vocabulary.from_tokens([b"\xff", b"a", b"b"], control={"end_of_turn": 0, "eos": 0})
    counts = Counts.nothing(3, 3).plus(np.array([0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 0]))
    onto, report = co_occurrence_map(counts, source, target, longest_first(target), choose)
    released = choose == "released"
    assert onto.single().tolist() == ([-1, 0, -1] if released else [1, 0, 2])
    assert report == (MapReport(control=1, unmapped=2) if released else MapReport(exact=2, control=1))


@pytest.mark.parametrize("choose", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_stochastic_and_the_report_adds_up(seed: int, choose: Choice) -> None:
    rng = np.random.default_rng(seed)
    source, target = toy_vocabulary(rng), toy_vocabulary(rng)
    documents = [(encode(source, TEXT, rng), encode(target, TEXT, rng, start_token=True)) for _ in range(3)]
    onto, report = co_occurrence_map(count_pairs(documents, source, target), source, target, longest_first(target), choose)
    mapped = np.flatnonzero(np.diff(onto.indptr))
    assert_allclose(np.add.reduceat(onto.weights, onto.indptr[mapped]), 1.0, rtol=1e-5)
    assert sum(astuple(report)) == source.size
    assert report.unmapped == source.size - len(mapped)
    assert report.counted <= len({int(n) for theirs, _ in documents for n in theirs.ids})
    onto_control = np.isin(onto.target_ids, np.flatnonzero(target.lengths == 0))
    from_text = source.lengths[np.repeat(np.arange(source.size), np.diff(onto.indptr))] > 0
    assert not (onto_control & from_text).any() or (choose == "released" and report.unknown)
    if choose != "released":
        missing = np.setdiff1d(np.arange(source.size), np.concatenate([theirs.ids for theirs, _ in documents]))
        assert (onto.single()[missing] == first_piece_map(source, target, longest_first(target)).single()[missing]).all()


def test_without_a_corpus_it_is_the_first_piece_map() -> None:
    rng = np.random.default_rng(0)
    source, target = toy_vocabulary(rng), toy_vocabulary(rng)
    onto, report = co_occurrence_map(Counts.nothing(source.size, target.size), source, target, longest_first(target))
    assert onto.single().tolist() == first_piece_map(source, target, longest_first(target)).single().tolist()
    assert report.counted == 0


def test_the_same_tokens_in_another_order_find_themselves() -> None:
    rng = np.random.default_rng(3)
    source = toy_vocabulary(rng)
    order = rng.permutation(source.size)
    target = Vocabulary.from_tokens(
        [source.bytes_of(int(n)) for n in order], control={k: int(np.argsort(order)[n]) for k, n in source.control.items()}
    )
    theirs = [encode(source, TEXT, rng) for _ in range(4)]
    ours = [type(e)(np.argsort(order)[e.ids], e.starts, e.ends) for e in theirs]
    counts = count_pairs(zip(theirs, ours, strict=True), source, target)
    for choose in ("most_frequent", "share"):
        onto, _ = co_occurrence_map(counts, source, target, longest_first(target), choose)
        assert onto.single().tolist() == np.argsort(order).tolist()
        assert (onto.weights == 1).all()


@pytest.mark.parametrize("choose", RULES)
def test_the_same_vocabulary_is_the_identity(choose: Choice) -> None:
    vocabulary = toy_vocabulary(np.random.default_rng(0))
    onto, report = co_occurrence_map(
        Counts.nothing(vocabulary.size, vocabulary.size), vocabulary, vocabulary, longest_first(vocabulary), choose
    )
    assert onto.single().tolist() == list(range(vocabulary.size))
    assert report == MapReport(exact=vocabulary.size)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="counts between 7 and 7 ids, expected 7 and 6"):
        co_occurrence_map(Counts.nothing(7, 7), SOURCE, TARGET, longest_first(TARGET))
    with pytest.raises(ValueError, match=r"min_share 1\.5, expected a share from 0 to 1"):
        co_occurrence_map(COUNTS, SOURCE, TARGET, longest_first(TARGET), "share", 1.5)
