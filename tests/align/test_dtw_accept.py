"""Which source token a target token is taken for, by the published rules."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.dtw_accept import NO_MATCH, NO_ROW, Spellings, accept_suffix, accepted
from lmfuse.align.exact import exact_map
from lmfuse.align.join import Join
from lmfuse.align.pair import build_pair
from lmfuse.align.spans import ends_together
from lmfuse.types import VocabularyMap
from tests.align.test_dtw import encoding, pair_of, rows_of, spelled


def test_the_golden_example():
    """`hello world` as the specification has it: FuseLLM keeps no source row, FuseChat one (`world` ends in `ld`), bytes two."""
    ours, theirs = spelled(["▁hel", "lo", "▁world"]), spelled(["hello", "Ġwor", "ld"])
    counted = VocabularyMap.from_single(np.arange(3), 3, "co_occurrence_released")
    ids = np.arange(3)
    for accept in ("equal", "min_ed"):
        assert accepted(ids, ids, Spellings.of(pair_of(theirs, ours), accept)).tolist() == [-1, -1, -1]
    assert accepted(ids, ids, Spellings.of(pair_of(theirs, ours, counted), "suffix")).tolist() == [-1, -1, 2]
    rows = rows_of([0, 1, 2], [5, 9, 11], [[0]] * 3, np.log([[0.5]] * 3), 3)
    target = encoding([0, 1, 2], [3, 5, 11])
    assert ends_together(rows, target).tolist() == [False, True, True]
    pair = build_pair(theirs, ours, lambda strings: np.full(len(strings), -1), exact_map(theirs, ours))
    assert Join(map="exact")(rows, target, pair).source_row.tolist() == [0, -1, 1]  # the rows that speak where both begin
    assert ByteLaw()(rows, target, pair).source_row.tolist() == [0, 0, 1]  # and inside `hello`, too


def test_suffix_by_hand():
    theirs = ["xx", "yygo", "go", "", "he", "l"]
    assert accept_suffix("xxgo", [0, 1, 2], theirs) == 2
    assert accept_suffix("go", [0, 1, 2], theirs) == 1  # the other way round, and the first of two
    assert accept_suffix("xxgo", [1], theirs) == NO_MATCH
    assert accept_suffix("xxg", [0, 1], theirs) == NO_ROW  # begins with `xx`, and `g` is left
    assert accept_suffix("xxg", [0], theirs) == NO_MATCH  # one match is not peeled
    assert accept_suffix("hexl", [4, 5], theirs) == 5
    assert accept_suffix("any", [3], theirs) == 3  # as published: everything ends in the empty string
    assert accept_suffix("any", [], theirs) == NO_MATCH


def published(ours: str, places: list[int], theirs: list[str]) -> int:
    """The rule step by step: suffix test; of several the first that passes; else peeled off from the front, in order."""
    agree = [place for place in places if ours.endswith(theirs[place]) or theirs[place].endswith(ours)]
    if agree or len(places) == 1:
        return agree[0] if agree else NO_MATCH
    rest, peeled = ours, []
    for place in places:
        if rest.startswith(theirs[place]):
            peeled.append(place)
            rest = rest[len(theirs[place]) :]
    if not peeled:
        return NO_MATCH
    return peeled[-1] if "".join(theirs[place] for place in peeled) == ours else NO_ROW


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="ab", max_size=5), st.lists(st.text(alphabet="ab", max_size=3), min_size=1, max_size=5))
def test_equals_the_published_steps(ours, theirs):
    assert accept_suffix(ours, list(range(len(theirs))), theirs) == published(ours, list(range(len(theirs))), theirs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=10))
def test_the_same_tokens_are_taken_for_themselves(ids):
    """Each token at one place only: of a repeated token warping may join neighbours, of different ones it joins equals."""
    words = spelled([f"▁w{n}" for n in range(6)])
    ids = np.array(list(dict.fromkeys(ids)))
    counted = VocabularyMap.from_single(np.arange(6), 6, "co_occurrence")
    for accept in ("equal", "min_ed", "suffix"):
        assert accepted(ids, ids, Spellings.of(pair_of(words, words, counted), accept)).tolist() == list(range(len(ids)))


def test_n_target_tokens_over_one_source_token_are_one_row():
    """Only the last of them ends as the source token does."""
    ours, theirs = spelled(["▁foot", "ba", "ll"]), spelled(["Ġfootball"])
    counted = VocabularyMap.from_single(np.array([0]), 3, "co_occurrence_released")
    assert accepted(np.array([0]), np.arange(3), Spellings.of(pair_of(theirs, ours, counted), "suffix")).tolist() == [-1, -1, 0]


def test_a_missing_map_is_refused():
    words = spelled(["▁a"])
    with pytest.raises(ValueError, match="no map of tokens, accept 'suffix' needs"):
        Spellings.of(pair_of(words, words), "suffix")
