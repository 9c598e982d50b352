"""Alignment by dynamic time warping: FuseLLM's is equal to the released code row for row, in our convention of rows."""

import json
from functools import cache

import numpy as np
import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer

from lmfuse.align.dtw import Dtw
from lmfuse.align.dtw_accept import Spellings, accepted
from lmfuse.align.dtw_path import dtw_path
from lmfuse.align.min_ed import min_ed_map
from lmfuse.align.pair import Pair, build_pair
from lmfuse.types import Encoding, Rows, TopK, Vocabulary, VocabularyMap
from tests.fakes import shared

SIGNS = str.maketrans("▁Ġ", "  ")


def spelled(strings: list[str]) -> Vocabulary:
    return Vocabulary.from_tokens([string.translate(SIGNS).encode() for string in strings], strings=strings)


def pair_of(source: Vocabulary, target: Vocabulary, tokens=None) -> Pair:
    """A pair without the tables of the byte law, which DTW does not read."""
    nothing = np.full(len(source.flat), -1)
    return Pair(source, target, nothing, nothing, tokens)


def encoding(ids, ends) -> Encoding:
    ends = np.asarray(ends)
    return Encoding(np.asarray(ids), np.append(0, ends[:-1])[: len(ends)], ends)


def rows_of(next_ids, ends, ids, log_probs, vocab_size) -> Rows:
    log_probs = np.asarray(log_probs, np.float32)
    with np.errstate(divide="ignore"):
        tail = np.log(np.maximum(1 - np.exp(log_probs).sum(1), 0))
    ends, nll = np.asarray(ends), np.arange(len(ends), dtype=np.float32)
    return Rows(np.append(0, ends[:-1])[: len(ends)], ends, np.asarray(next_ids), nll, TopK(np.asarray(ids), log_probs, tail, vocab_size))


def kept(alignment, q) -> dict[int, float]:
    """What the row of one target token teaches: probability by id."""
    row = alignment.topk[q]
    return {int(n): round(float(np.exp(p)), 6) for n, p in zip(row.ids, row.log_probs, strict=True) if p > -np.inf}


# -- rows, by hand ----------------------------------------------------------------------------------------------------------------

# text "a b c" -----------------------------------------------------
OURS = spelled(["▁a", "▁b", "▁c", "▁cat", "▁d"])
THEIRS = spelled(["a", "Ġb", "Ġc", "Ġcats", "Ġd", "Ġbe"])
TEXT_OURS = encoding([0, 1, 2], [1, 3, 5])
TEXT_THEIRS = rows_of([0, 1, 2], [1, 3, 5], [[4, 5], [1, 5], [2, 3]], np.log([[0.5, 0.25], [0.6, 0.2], [0.5, 0.1]]), 6)


def test_rows_move_by_one_and_are_renormalised():
    alignment = Dtw()(TEXT_THEIRS, TEXT_OURS, pair_of(THEIRS, OURS))
    # the first token has no row; the pairs a-▁a (dummy prefix) and Ġb-▁b teach the tokens that follow them, with the source's rows 1 and 2
    assert alignment.source_row.tolist() == [-1, 1, 2]
    assert not alignment.one_hot.any()
    assert kept(alignment, 0) == {}
    assert kept(alignment, 1) == {1: 1.0}  # Ġb -> ▁b; Ġbe -> ▁b by edit distance: it came second and is cut
    assert kept(alignment, 2) == {2: round(5 / 6, 6), 3: round(1 / 6, 6)}  # Ġcats -> ▁cat; .5 and .1 over .6
    np.testing.assert_allclose(alignment.lost_mass, [0, 0.2, 0], atol=1e-6)
    assert np.isneginf(alignment.topk.tail[1:]).all()
    np.testing.assert_array_equal(alignment.truth_nll_nats, [np.nan, 1, 2])


def test_sum_and_tail_instead_of_the_published_cuts():
    alignment = Dtw(collision="sum", renormalise=False)(TEXT_THEIRS, TEXT_OURS, pair_of(THEIRS, OURS))
    assert kept(alignment, 1) == {1: 0.8}
    np.testing.assert_allclose(np.exp(alignment.topk.tail[1:]), [0.2, 0.4], atol=1e-6)
    np.testing.assert_allclose(alignment.lost_mass, 0, atol=1e-6)


def test_exact_match_drops_what_it_cannot_map():
    alignment = Dtw(accept="equal")(TEXT_THEIRS, TEXT_OURS, pair_of(THEIRS, OURS))
    assert kept(alignment, 2) == {2: 1.0}
    np.testing.assert_allclose(alignment.lost_mass, [0, 0.2, 0.1], atol=1e-6)


def test_exact_match_without_a_candidate_teaches_nothing():
    rows = rows_of([0, 1, 2], [1, 3, 5], [[4, 5], [5, 3], [2, 3]], np.log([[0.5, 0.25], [0.6, 0.2], [0.5, 0.1]]), 6)
    alignment = Dtw(accept="equal")(rows, TEXT_OURS, pair_of(THEIRS, OURS))
    assert alignment.source_row.tolist() == [-1, -1, 2]
    assert alignment.taught.tolist() == [False, False, True]
    assert kept(alignment, 1) == {}
    assert alignment.topk.tail[1] == 0.0


@pytest.mark.parametrize(
    ("one_hot", "expected"), [("current", [{}, {0: 1.0}, {1: 1.0}]), ("next", [{}, {1: 1.0}, {2: 1.0}]), ("none", [{}, {}, {}])]
)
def test_hello_world_falls_back_everywhere(one_hot, expected):
    """No pair of the specification's example agrees: one-hots on the token before (FuseLLM's off-by-one), on the token itself, or nothing."""
    ours, theirs = spelled(["▁hel", "lo", "▁world", "▁"]), spelled(["hello", "Ġwor", "ld"])
    rows = rows_of([0, 1, 2], [5, 9, 11], [[0], [1], [2]], np.log([[0.5]] * 3), 3)
    alignment = Dtw(accept="equal", one_hot=one_hot)(rows, encoding([0, 1, 2], [3, 5, 11]), pair_of(theirs, ours))
    assert alignment.source_row.tolist() == [-1, -1, -1]
    assert [kept(alignment, q) for q in range(3)] == expected
    assert alignment.one_hot.tolist() == [bool(row) for row in expected]


def test_start_tokens_and_gaps_are_not_crossed():
    """Tokens without text have no row, and neither has the first token after them."""
    target = Encoding(np.array([4, 0, 1, 4, 2, 0]), np.array([-1, 0, 1, -1, 5, 7]), np.array([-1, 1, 3, -1, 7, 9]))
    starts, ends = np.array([0, 1, 5, 7]), np.array([1, 3, 7, 9])
    topk = TopK(np.array([[1], [1], [1], [1]]), np.log(np.full((4, 1), 0.5, np.float32)), np.log(np.full(4, 0.5, np.float32)), 5)
    rows = Rows(starts, ends, np.array([0, 1, 2, 0]), np.zeros(4, np.float32), topk)
    alignment = Dtw(accept="equal")(rows, target, pair_of(OURS, OURS))
    assert alignment.source_row.tolist() == [-1, -1, 1, -1, -1, 3]
    assert not alignment.one_hot.any()


def test_a_gap_of_the_source_alone_leaves_the_token_out():
    starts, ends = np.array([0, 3, 4]), np.array([1, 4, 5])
    rows = Rows(starts, ends, np.array([0, 1, 2]), np.zeros(3, np.float32), TopK.certain(np.array([0, 1, 2]), 1, 5))
    alignment = Dtw(accept="equal")(rows, TEXT_OURS, pair_of(OURS, OURS))
    assert alignment.source_row.tolist() == [-1, -1, 2]
    assert alignment.taught.tolist() == [False, False, True]


def test_no_row_stands_behind_the_last_source_token():
    """Both target tokens are taken for the only source token, and nothing says what it should be followed by."""
    rows = rows_of([0], [4], [[0]], np.log([[0.5]]), 5)
    alignment = Dtw(accept="equal")(rows, encoding([0, 0], [2, 4]), pair_of(OURS, OURS))
    assert not alignment.taught.any()


def conversation_of(end: str, strings: list[str]) -> Vocabulary:
    tokens = [b"\xff" if string == end else string.translate(SIGNS).encode() for string in strings]
    return Vocabulary.from_tokens(tokens, strings=strings, control={"end_of_turn": strings.index(end)})


def test_the_first_token_of_an_answer_is_taught_by_the_row_that_begins_there():
    """`a END | b c END`: the template stands before `a` and before `b`; ends are spelled differently and still meet."""
    ours = conversation_of("<|im_end|>", ["a", "b", "c", "<|im_end|>", "<s>"])
    theirs = conversation_of("</s>", ["</s>", "a", "b", "c"])
    target = Encoding(np.array([4, 0, 3, 4, 1, 2, 3]), np.array([-1, 0, 1, -1, 2, 3, 4]), np.array([-1, 1, 2, -1, 3, 4, 5]))
    rows = rows_of([1, 0, 2, 3, 0], [1, 2, 3, 4, 5], [[1], [0], [2], [3], [0]], np.log([[0.5], [0.6], [0.7], [0.8], [0.9]]), 4)
    alignment = Dtw(accept="min_ed", renormalise=False)(rows, target, pair_of(theirs, ours))
    assert alignment.source_row.tolist() == [-1, 0, 1, -1, 2, 3, 4]
    assert [kept(alignment, q) for q in (1, 2, 4, 6)] == [{0: 0.5}, {3: 0.6}, {1: 0.7}, {3: 0.9}]
    assert not alignment.one_hot.any()
    np.testing.assert_array_equal(alignment.truth_nll_nats[[1, 2, 4, 5, 6]], [0, 1, 2, 3, 4])
    later = Rows(rows.starts[1:], rows.ends[1:], rows.next_ids[1:], rows.nll_nats[1:], rows.topk[1:])  # nothing says what the first is
    assert Dtw()(later, target, pair_of(theirs, ours)).source_row.tolist()[:5] == [-1, -1, -1, -1, 1]


def test_a_dummy_prefix_alone_begins_no_answer_of_a_source_without_one():
    ours = conversation_of("</s>", ["▁", "a", "</s>"])
    theirs = conversation_of("<e>", ["a", "<e>"])
    target = Encoding(np.array([0, 1, 2]), np.array([0, 0, 1]), np.array([0, 1, 2]))
    rows = rows_of([0, 1], [1, 2], [[0], [1]], np.log([[0.5], [0.5]]), 2)
    assert Dtw(one_hot="none")(rows, target, pair_of(theirs, ours)).source_row[0] == -1


def test_same_tokenizer_changes_nothing():
    rng = np.random.default_rng(0)
    words = spelled([f"▁w{n}" for n in range(30)])
    ids = rng.permutation(30)[:20]
    weight = -np.sort(-rng.dirichlet(np.ones(6), size=20), axis=1)[:, :4]
    candidates = np.stack([rng.permutation(30)[:4] for _ in range(20)])
    rows = rows_of(ids, np.arange(1, 21), candidates, np.log(weight), 30)
    for accept in ("equal", "min_ed"):
        alignment = Dtw(accept=accept, renormalise=False)(rows, encoding(ids, np.arange(1, 21)), pair_of(words, words))
        assert alignment.source_row.tolist() == [-1, *range(1, 20)]
        np.testing.assert_array_equal(alignment.topk.ids[1:], candidates[1:])
        np.testing.assert_allclose(alignment.topk.log_probs[1:], rows.topk.log_probs[1:], atol=1e-6)
        np.testing.assert_allclose(alignment.topk.tail[1:], rows.topk.tail[1:], atol=1e-5)
        assert not alignment.one_hot.any()
        np.testing.assert_allclose(alignment.lost_mass, 0, atol=1e-6)


def test_empty_documents():
    empty = np.zeros(0, np.int64)
    nothing, no_rows = encoding(empty, empty), rows_of(empty, empty, np.zeros((0, 2), int), np.zeros((0, 2)), 6)
    pair = pair_of(THEIRS, OURS)
    assert len(Dtw()(TEXT_THEIRS, nothing, pair).source_row) == 0
    assert len(Dtw()(no_rows, nothing, pair).source_row) == 0
    silent = Dtw()(no_rows, TEXT_OURS, pair)
    assert silent.source_row.tolist() == [-1, -1, -1]
    assert silent.one_hot.tolist() == [False, True, True]  # nothing matched, so the fallback speaks


def test_wrong_input_is_refused():
    pair = pair_of(THEIRS, OURS)
    with pytest.raises(ValueError, match="rows over 6 ids"):
        Dtw()(TEXT_THEIRS, TEXT_OURS, pair_of(OURS, OURS))
    with pytest.raises(ValueError, match="token id 9 is outside"):
        Dtw()(TEXT_THEIRS, encoding([0, 9], [1, 3]), pair)
    with pytest.raises(ValidationError):
        Dtw(accept="prefix")
    with pytest.raises(ValidationError):
        Dtw(temperature=1.0)


# -- FuseChat's rules -------------------------------------------------------------------------------------------------------------


def statistics(source: Vocabulary, target: Vocabulary, single, method: str = "co_occurrence_released") -> Pair:
    return pair_of(source, target, VocabularyMap.from_single(np.asarray(single), target.size, method))


def test_fusechat_teaches_the_token_after_a_suffix():
    """The specification's example and one more token: `world` ends in `ld`, so what follows is taught; the others are one-hot on themselves."""
    ours, theirs = spelled(["▁hel", "lo", "▁world", "▁now", "?"]), spelled(["hello", "Ġwor", "ld", "Ġnow", "Ġthen", "!"])
    rows = rows_of([0, 1, 2, 3], [5, 9, 11, 15], [[0, 1], [1, 2], [2, 1], [4, 3]], np.log([[0.5, 0.25]] * 4), 6)
    target = encoding([0, 1, 2, 3], [3, 5, 11, 15])
    alignment = Dtw(accept="suffix", one_hot="next")(rows, target, statistics(theirs, ours, [0, 1, 2, 4, 2, -1]))
    assert alignment.source_row.tolist() == [-1, -1, -1, 3]
    assert alignment.one_hot.tolist() == [False, True, True, False]
    assert [kept(alignment, q) for q in range(3)] == [{}, {1: 1.0}, {2: 1.0}]
    # Ġthen is no string of the target and goes where it was counted; Ġnow has an equal, whatever was counted
    assert kept(alignment, 3) == {2: round(2 / 3, 6), 3: round(1 / 3, 6)}


def test_an_empty_row_teaches_nothing():
    """`foots` begins with `foot` but ends in none of its matches: neither a row nor the fallback for the token after it."""
    ours, theirs = spelled(["foots", "now"]), spelled(["foot", "fotx", "now"])
    rows = rows_of([0, 1, 2], [4, 5, 8], [[0], [1], [2]], np.log([[0.5]] * 3), 3)
    alignment = Dtw(accept="suffix", one_hot="next")(rows, encoding([0, 1], [5, 8]), statistics(theirs, ours, [0, 0, 1]))
    assert not alignment.taught.any()


def test_the_same_tokenizer_changes_nothing_for_fusechat_either():
    words = spelled([f"▁w{n}" for n in range(8)])
    candidates = np.array([[n, (n + 1) % 8] for n in range(8)])
    rows = rows_of(np.arange(8), np.arange(1, 9), candidates, np.log([[0.5, 0.25]] * 8), 8)
    alignment = Dtw(accept="suffix", one_hot="none", renormalise=False)(
        rows, encoding(np.arange(8), np.arange(1, 9)), statistics(words, words, np.full(8, 3))
    )
    assert alignment.source_row.tolist() == [-1, *range(1, 8)]
    np.testing.assert_array_equal(alignment.topk.ids[1:], candidates[1:])


def test_two_corpora_are_not_mixed_up():
    """Maps of the same pair of tokenizers, counted over different text, each give their own rows."""
    ours, theirs = spelled(["▁a", "▁b", "▁c", "▁d"]), spelled(["Ġa", "Ġb", "Ġq"])
    rows = rows_of([0, 1], [1, 3], [[0], [2]], np.log([[0.5], [0.5]]), 3)
    target = encoding([0, 1], [1, 3])
    for onto in (2, 3):
        assert kept(Dtw(accept="suffix", one_hot="next")(rows, target, statistics(theirs, ours, [0, 1, onto])), 1) == {onto: 1.0}


def test_impossible_combinations_are_refused():
    with pytest.raises(ValidationError, match="choose one_hot 'next'"):
        Dtw(accept="suffix")
    ours, theirs = spelled(["▁a"]), spelled(["Ġa"])
    rows = rows_of([0], [1], [[0]], np.log([[0.5]]), 1)
    method = Dtw(accept="suffix", one_hot="next")
    with pytest.raises(ValueError, match="the pair holds no map of tokens, accept 'suffix' needs 'co_occurrence_released'"):
        method(rows, encoding([0], [1]), pair_of(theirs, ours))
    with pytest.raises(ValueError, match="the pair holds the map 'exact'"):
        method(rows, encoding([0], [1]), statistics(theirs, ours, [0], "exact"))
    shares = VocabularyMap(np.array([0, 2]), np.array([0, 1]), np.array([0.5, 0.5], np.float32), 2, "co_occurrence_share")
    with pytest.raises(ValueError, match="the map 'co_occurrence_share'"):
        method(rows, encoding([0], [1]), pair_of(theirs, spelled(["▁a", "▁b"]), shares))


# -- parity with the released code ------------------------------------------------------------------------------------------------


@cache
def golden() -> tuple[list[dict], Pair]:
    """The golden cases, with a pair of both whole vocabularies and a MinED map of the source tokens that occur in them."""
    cases = json.loads(shared("assets", "golden_fusellm.json").read_text(encoding="utf-8"))["cases"]
    vocabularies = []
    for name in ("gpt_neox", "llama2"):
        tokenizer = Tokenizer.from_file(str(shared("assets", "tokenizers", name, "tokenizer.json")))
        vocabularies.append(spelled([tokenizer.id_to_token(n) for n in range(tokenizer.get_vocab_size())]))
    source, target = vocabularies
    used = {n for case in cases for row in case["source_topk_ids"] for n in row} | {n for case in cases for n in case["source_ids"]}
    some = [string if n in used else "" for n, string in enumerate(source.strings)]
    tokens = min_ed_map(Vocabulary(source.flat, source.offsets, tuple(some), {}, "used"), target, on="strings")
    return cases, pair_of(source, target, tokens)


def published_rows(case: dict, accept: str, pair: Pair) -> list[tuple[dict[int, float], bool]]:
    """What the released code teaches after each target token, as probabilities, and whether the row is a one-hot fallback."""
    expected = case["expected"][{"equal": "hard", "min_ed": "soft"}[accept]]
    rows = []
    for ids, logits, current in zip(expected["ids"], expected["logits"], case["target_ids"], strict=True):
        mass = np.exp(np.array(logits) - max(logits, default=0))
        rows.append((dict(zip(ids, (mass / mass.sum()).tolist(), strict=True)), ids == [current] and logits == [1.0]))
    return rows


def test_paths_equal_the_released_code():
    cases, pair = golden()
    for case in cases:
        source = [pair.source.strings[n].replace("Ġ", "") for n in case["source_ids"]]
        target = [pair.target.strings[n].replace("▁", "") for n in case["target_ids"]]
        assert dtw_path(source, target) == case["dtw_target_to_source"]


@pytest.mark.parametrize("accept", ["equal", "min_ed"])
def test_rows_equal_the_released_code(accept):
    """Row i of the released code is ours for token i + 1. Its last row, for the end of the text, has no token here."""
    cases, pair = golden()
    from_source = fallbacks = 0
    for case in cases:
        num_ours, num_theirs = len(case["target_ids"]), len(case["source_ids"])
        logits = np.array(case["source_topk_logits"], np.float64)
        log_probs = np.full(logits.shape, -np.log(logits.shape[1]))  # the row before the first token is nobody's
        log_probs[1:] = logits[:-1] - np.log(np.exp(logits[:-1]).sum(axis=1, keepdims=True)) - 0.1  # some mass in the tail
        ids = np.roll(np.array(case["source_topk_ids"]), 1, axis=0)
        rows = rows_of(case["source_ids"], np.arange(1, num_theirs + 1), ids, log_probs, pair.source.size)
        alignment = Dtw(accept=accept)(rows, encoding(case["target_ids"], np.arange(1, num_ours + 1)), pair)
        assert not alignment.taught[0]
        for i, (expected, is_fallback) in enumerate(published_rows(case, accept, pair)[:-1]):
            assert kept(alignment, i + 1) == pytest.approx(expected, abs=2e-6), (case["text"][:20], i)
            assert alignment.one_hot[i + 1] == is_fallback
            assert alignment.source_row[i + 1] == (-1 if is_fallback or not expected else case["dtw_target_to_source"][i][0] + 1)
            fallbacks += is_fallback
            from_source += not is_fallback
    assert (from_source, fallbacks) == {"equal": (862, 532), "min_ed": (884, 510)}[accept]


def test_the_published_last_row_too():
    """The last row has no token here, but whether it is a source row is decided by the same rule."""
    cases, pair = golden()
    for accept in ("equal", "min_ed"):
        spellings = Spellings.of(pair, accept)
        for case in cases:
            match = accepted(np.array(case["source_ids"]), np.array(case["target_ids"]), spellings)
            expected = [
                -1 if one_hot else case["dtw_target_to_source"][i][0] for i, (_, one_hot) in enumerate(published_rows(case, accept, pair))
            ]
            assert match.tolist() == expected


def test_k_looks_at_the_likeliest_candidates_only():
    rng = np.random.default_rng(0)
    source = Vocabulary.from_tokens([b"a", b"b", b"c", b"d"])
    log_probs = np.log(np.array([[0.5, 0.2, 0.1]] * 3, np.float32))
    topk = TopK(np.array([[0, 1, 2]] * 3), log_probs, np.log(np.full(3, 0.2, np.float32)), 4)
    starts = np.arange(3)
    rows = Rows(starts, starts + 1, np.array([0, 1, 2]), rng.exponential(size=3).astype(np.float32), topk)
    target = Encoding(np.array([0, 1, 2]), starts, starts + 1)
    pair = build_pair(source, source, lambda strings: np.full(len(strings), -1))
    two = Dtw(k=2, renormalise=False)(rows, target, pair)
    assert np.exp(two.topk.log_probs[1]).tolist() == pytest.approx([0.5, 0.2])
    assert np.exp(two.topk.tail[1]) == pytest.approx(0.3)
    assert np.exp(Dtw(k=2)(rows, target, pair).topk.log_probs[1]).tolist() == pytest.approx([5 / 7, 2 / 7])
