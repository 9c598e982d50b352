"""The map of equal bytes."""

from __future__ import annotations

import numpy as np
import pytest

from lmfuse.align.exact import exact_ids, exact_map, map_control_tokens, map_turn_end, token_bytes, turn_end
from lmfuse.types import Vocabulary
from tests.align.test_pair import toy_vocabulary


def test_by_hand_over_spellings_and_control_classes() -> None:
    llama = Vocabulary.from_tokens(
        [b"", b"", b"\n", b" the", b"\xe6"], strings=["<s>", "</s>", "<0x0A>", "▁the", "<0xE6>"], control={"start": 0, "bos": 0, "eos": 1}
    )
    gpt = Vocabulary.from_tokens(
        [b" the", b"\n", b"the", b"\xe6", b""], strings=["Ġthe", "Ċ", "the", "æ", "<|endoftext|>"], control={"eos": 4, "start": 4}
    )
    assert exact_map(llama, gpt).single().tolist() == [4, 4, 1, 0, 3]
    assert exact_map(gpt, llama).single().tolist() == [3, 2, -1, 4, 1]  # as a start token it would be 0: the end is what gets predicted
    assert exact_map(gpt, llama).coverage == 0.8


def test_a_control_token_never_meets_text_that_spells_it() -> None:
    source = Vocabulary.from_tokens([b""], strings=["</s>"], control={"eos": 0})
    target = Vocabulary.from_tokens([b"</s>", b""], strings=["</s>", "<s>"], control={"bos": 1})
    assert exact_map(source, target).single().tolist() == [-1]


def test_the_end_of_a_turn_is_a_class_of_its_own() -> None:
    chat = Vocabulary.from_tokens([b"", b"", b"a"], control={"eos": 0, "end_of_turn": 1})
    one_end = Vocabulary.from_tokens([b"a", b""], control={"eos": 1, "end_of_turn": 1})
    base = Vocabulary.from_tokens([b"a", b""], control={"eos": 1})
    assert exact_map(chat, one_end).single().tolist() == [1, 1, 0]
    assert exact_map(one_end, chat).single().tolist() == [2, 1]  # what ends both a text and a turn: the turn is what a chat model ends
    assert exact_map(chat, base).single().tolist() == [1, -1, 0]
    assert exact_map(base, chat).single().tolist() == [2, 0]


def test_where_conversations_are_read_the_end_of_a_turn_meets_only_another() -> None:
    speaks = Vocabulary.from_tokens([b"a", b"\xff"], control={"end_of_turn": 1})
    plain = Vocabulary.from_tokens([b"\xff", b"a", b""], control={"end_of_turn": 2})  # a byte of no text; its end writes nothing
    assert (turn_end(speaks), turn_end(plain)) == (1, -1)
    assert exact_map(speaks, plain).single().tolist() == [1, -1]
    assert exact_map(plain, speaks).single().tolist() == [-1, 0, -1]
    assert map_turn_end(np.array([0, 1, 2]), plain, plain).tolist() == [0, 1, 2]  # plain text: nothing changes


def test_named_text_stays_text() -> None:
    """A token that writes text and fills up batches as well is not taken for a padding token, nor a padding token for it."""
    marked, plain = Vocabulary.from_tokens([b"!"], control={"pad": 0}), Vocabulary.from_tokens([b"", b"!"], control={"pad": 0})
    assert exact_map(marked, plain).single().tolist() == [1]
    assert exact_map(plain, marked).single().tolist() == [-1, 0]


def test_twins_are_told_apart_by_their_spelling() -> None:
    twins = Vocabulary.from_tokens([b"\n", b"\n"], strings=["<0x0A>", "\n"])
    assert exact_map(twins, twins).single().tolist() == [0, 1]
    assert exact_map(Vocabulary.from_tokens([b"\n"], strings=["Ċ"]), twins).single().tolist() == [0]


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_search_through_all_tokens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = toy_vocabulary(rng), toy_vocabulary(rng)
    theirs = token_bytes(target)
    expected = [theirs.index(written) if written and written in theirs else -1 for written in token_bytes(source)]
    assert exact_ids(token_bytes(source), target).tolist() == expected


def test_the_same_vocabulary_is_the_identity() -> None:
    vocabulary = toy_vocabulary(np.random.default_rng(0))
    same = exact_map(vocabulary, vocabulary)
    assert same.single().tolist() == list(range(vocabulary.size))
    assert (same.coverage, same.method) == (1.0, "exact")


def test_ids_outside_a_vocabulary_are_an_error() -> None:
    vocabulary = Vocabulary.from_tokens([b"a"])
    outside = Vocabulary.from_tokens([b"a"], control={"eos": 5})
    with pytest.raises(IndexError):
        map_control_tokens(np.zeros(1, np.int64), outside, Vocabulary.from_tokens([b""], control={"eos": 0}))
    assert exact_ids([], vocabulary).tolist() == []
