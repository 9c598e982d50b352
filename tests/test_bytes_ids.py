"""Ids of a tokenizer.json: each token one, each one token."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse.bytes_ids import MOST_UNUSED, check_ids
from lmfuse.errors import TokenizerError

PATH = Path("tokenizer.json")


def state(vocab: object, *added: tuple[str, object]) -> dict:
    return {"model": {"vocab": vocab}, "added_tokens": [{"content": text, "id": i, "special": True} for text, i in added]}


def test_by_hand():
    check_ids(state({"a": 0, "b": 1}, ("<s>", 2)), PATH)
    check_ids(state([["a", -1.0], ["b", 0]], ("a", 0)), PATH)
    check_ids({"model": {"vocab": {"a": 3}}}, PATH)
    for vocab, added, words in (
        ({"a": 0, "b": 0}, (), "model.vocab: 'a' and 'b' have the same id 0"),
        ({"a": 0}, (("<s>", 0),), "added_tokens: '<s>' has id 0, which is that of 'a' of model.vocab"),
        ({"a": 0}, (("a", 1),), "added_tokens: 'a' has id 1, but 0 in model.vocab"),
        ([["a", 1.0], ["a", 2.0]], (), "model.vocab: 'a' has two ids, 0 and 1"),
        ({"a": 1 + MOST_UNUSED}, (), f"model.vocab: 'a' has id {1 + MOST_UNUSED}, but there are only 1 tokens"),
    ):
        with pytest.raises(TokenizerError, match=f"^tokenizer.json: {words}$"):
            check_ids(state(vocab, *added), PATH)


IDS = st.integers(-2, 6)
TEXTS = st.text("ab", min_size=1, max_size=2)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.dictionaries(TEXTS, IDS, max_size=4), st.lists(st.tuples(TEXTS, IDS), max_size=3))
def test_what_passes_is_a_bijection(vocab, added):
    """Oracle: the set of all pairs of text and id has each text and each id once, none negative."""
    pairs = {*vocab.items(), *added}
    one_to_one = len({text for text, _ in pairs}) == len(pairs) == len({i for _, i in pairs})
    fine = one_to_one and all(i >= 0 for _, i in pairs) and len({text for text, _ in added}) == len(added)
    fine = fine and bool(vocab) and not set(vocab) <= {text for text, _ in added}
    try:
        check_ids(state(vocab, *added), PATH)
    except TokenizerError:
        assert not fine
    else:
        assert fine
