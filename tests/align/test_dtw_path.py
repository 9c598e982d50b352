"""The shortest path between two lists of strings, and the strings of FuseChat."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from lmfuse.align.dtw_path import END, decoded_strings, dtw_path, path_lengths, spell_end
from lmfuse.types import Vocabulary


def slow_path(source: list[str], target: list[str], ties: str = "source") -> list[list[int]]:
    """The textbook, one cell at a time."""
    n, m = len(source), len(target)
    cost = [[float("inf")] * (m + 1) for _ in range(n + 1)]
    cost[0][0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            step = min(cost[i - 1][j], cost[i][j - 1], cost[i - 1][j - 1])
            cost[i][j] = step + Levenshtein.distance(source[i - 1], target[j - 1])
    matches = [set() for _ in target]
    i, j = n, m
    while i > 0 and j > 0:
        matches[j - 1].add(i - 1)
        source_only, target_only = (1, 2) if ties == "source" else (2, 1)
        steps = [
            (cost[i - 1][j - 1], 0, (i - 1, j - 1)),
            (cost[i - 1][j], source_only, (i - 1, j)),
            (cost[i][j - 1], target_only, (i, j - 1)),
        ]
        i, j = min(steps)[2]
    return [sorted(found) for found in matches]


@pytest.mark.parametrize("ties", ["source", "target"])
def test_hello_world_by_hand(ties):
    """The example of the specification: hel-hello, lo-wor, world-ld, at 2 + 2 + 3 without signs for a space and 2 + 3 + 3 decoded."""
    fusellm = ["hello", "wor", "ld"], ["hel", "lo", "world"]
    assert dtw_path(*fusellm, ties) == [[0], [1], [2]]
    assert path_lengths(*fusellm)[-1, -1] == 7
    theirs = Vocabulary.from_tokens([b"hello", b" wor", b"ld"], strings=["hello", "Ġwor", "ld"])
    ours = Vocabulary.from_tokens([b" hel", b"lo", b" world"], strings=["▁hel", "lo", "▁world"])
    fusechat = decoded_strings(theirs), decoded_strings(ours)
    assert fusechat == (["hello", " wor", "ld"], ["hel", "lo", "world"])
    assert dtw_path(*fusechat, ties) == [[0], [1], [2]]
    assert path_lengths(*fusechat)[-1, -1] == 8


def test_ties_by_hand():
    # all costs 1: every path of the fewest cells costs 2, and from (2, 1) only a source step is left
    assert dtw_path(["a", "b"], ["c"]) == [[0, 1]]
    assert dtw_path(["c"], ["a", "b"]) == [[0], [0]]
    # all costs 0, three ways back that tie: the diagonal first
    assert dtw_path(["a", "a", "a"], ["a", "a"]) == [[0, 1], [2]]
    # to the last cell it is 2 diagonally, 1 from the source's or from the target's side alone
    mirrored = ["a", "b", "a"], ["b", "a", "b"]
    assert path_lengths(*mirrored)[1:, 1:].tolist() == [[1, 1, 2], [1, 2, 1], [2, 1, 2]]
    assert dtw_path(*mirrored, ties="source") == [[0], [0], [1, 2]]
    assert dtw_path(*mirrored, ties="target") == [[0, 1], [2], [2]]


@settings(max_examples=200, deadline=None)
@given(*[st.lists(st.text(alphabet="abé", max_size=3), max_size=8)] * 2, st.sampled_from(["source", "target"]))
def test_path_equals_the_textbook(source, target, ties):
    assert dtw_path(source, target, ties) == (slow_path(source, target, ties) if source else [[] for _ in target])


@settings(max_examples=100, deadline=None)
@given(*[st.lists(st.text(alphabet="ab", max_size=3), min_size=1, max_size=8)] * 2)
def test_with_the_sides_swapped_the_other_step_goes_first(source, target):
    pairs = {(i, j) for j, places in enumerate(dtw_path(source, target, "source")) for i in places}
    assert pairs == {(j, i) for j, places in enumerate(dtw_path(target, source, "target")) for i in places}


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=3), max_size=12))
def test_the_same_tokens_meet_themselves(strings):
    distinct = [f"{n}{string}" for n, string in enumerate(strings)]
    assert dtw_path(distinct, distinct) == [[n] for n in range(len(strings))]


def test_decoded_strings_by_hand():
    llama = Vocabulary.from_tokens(
        [b" the", b" ", b"  ", b"\n", b"\xe6", b"", "é".encode()], strings=["▁the", "▁", "▁▁", "<0x0A>", "<0xE6>", "<s>", "é"]
    )
    assert decoded_strings(llama) == ["the", "", " ", "\n", "\ufffd", "", "é"]
    gpt = Vocabulary.from_tokens([b" the", b"\xe6\x9d", b"\n"], strings=["Ġthe", "æĿ", "Ċ"])
    assert decoded_strings(gpt) == [" the", "\ufffd", "\n"]


def test_ends_of_turns_are_spelled_alike_and_like_no_text():
    theirs = Vocabulary.from_tokens([b"a", b"\xff", b"\xe6"], strings=["a", "</s>", "æ"], control={"end_of_turn": 1})
    ours = Vocabulary.from_tokens([b"\xff", b"a"], strings=["<|im_end|>", "a"], control={"end_of_turn": 0})
    assert (decoded_strings(theirs), decoded_strings(ours)) == (["a", END, "\ufffd"], [END, "a"])
    assert spell_end(["a", "</s>", "æ"], theirs) == ["a", END, "æ"]
    assert dtw_path(["a", END, "b"], ["a", END, "b"]) == [[0], [1], [2]]


def test_something_else_than_strings_is_refused():
    with pytest.raises(Exception, match="ties"):
        dtw_path(["a"], ["b"], "neither")
