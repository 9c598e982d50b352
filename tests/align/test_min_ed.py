"""MinED: exact first, then the nearest by edit distance, under one tie rule."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from tokenizers import Tokenizer

from lmfuse.align import nearest as nearest_module
from lmfuse.align.min_ed import exact_string_map, min_ed_map
from lmfuse.align.nearest import nearest
from lmfuse.types import Vocabulary
from tests.fakes import shared


def spelled(strings: list[str], key: str = "", **control: int) -> Vocabulary:
    """A vocabulary whose tokens write what they spell, control tokens nothing, the two space signs a space."""
    tokens = [b"" if n in control.values() else s.replace("▁", " ").replace("Ġ", " ").encode() for n, s in enumerate(strings)]
    return Vocabulary.from_tokens(tokens, strings=strings, control=control, key=key)


def real_spellings(name: str) -> Vocabulary:
    tokenizer = Tokenizer.from_file(str(shared("assets", "tokenizers", name, "tokenizer.json")))
    return spelled([tokenizer.id_to_token(n) for n in range(tokenizer.get_vocab_size())])


def shared_prefix(a: str, b: str) -> int:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


def brute_force(missing: list[str], known: list[str], prefix_first: bool) -> list[int]:
    def rank(a: str, n: int) -> tuple[int, int, int]:
        return Levenshtein.distance(a, known[n]), -shared_prefix(a, known[n]) if prefix_first else 0, n

    return [min(range(len(known)), key=lambda n, a=a: rank(a, n)) for a in missing]


def test_by_hand_on_bytes():
    target = spelled(["</s>", "cat", "cart", "▁dog", "dogs", "<unk>"], eos=0, unk=5)
    source = spelled(["cat", "carts", "Ġdogs", "zz", "<|end|>", "<|pad|>", ""], eos=4, pad=5)
    # carts: `cart` is 1 away; Ġdogs: `▁dog` and `dogs` are 1 away and `▁dog` shares the prefix; zz: distance 3 to `cat` alone;
    # the end goes to the end; the target has no padding token; an empty token writes nothing
    assert min_ed_map(source, target, on="bytes").single().tolist() == [1, 2, 3, 1, 0, -1, -1]


def test_by_hand_on_strings():
    target = spelled(["</s>", "▁dog", "dogs", "z"], eos=0)
    source = spelled(["Ġdog", "Ġdogs", "dog", "</p>"], eos=3)
    # Ġdogs becomes ▁dogs: `▁dog` and `dogs` tie and the lower id wins; so it does for dog; </p> is text, one edit from </s>
    made = min_ed_map(source, target, on="strings")
    assert made.single().tolist() == [1, 1, 1, 0]
    assert made.method == "min_ed_strings"
    assert exact_string_map(source, target).single().tolist() == [1, -1, -1, -1]


def test_the_end_of_a_turn_is_near_to_nothing_but_the_other():
    """`</s>` is one edit from `</p>` and `</a>`; the byte 0xFF one from every other byte."""
    ours = Vocabulary.from_tokens([b"\xff", b"</a>", b"book"], strings=["<e>", "</a>", "book"], control={"end_of_turn": 0})
    theirs = Vocabulary.from_tokens([b"<", b"</p>", b"\xff"], strings=["<", "</p>", "</s>"], control={"end_of_turn": 2})
    assert min_ed_map(theirs, ours, on="strings").single().tolist() == [1, 1, 0]
    assert min_ed_map(theirs, ours, on="bytes").single().tolist() == [1, 1, 0]
    assert min_ed_map(ours, theirs, on="strings").single().tolist() == [2, 1, 0]  # `book` is 4 from both
    assert exact_string_map(theirs, ours).single().tolist() == [-1, -1, 0]
    other = Vocabulary.from_tokens([b"</a>", b"</s>"], strings=["</a>", "</s>"])
    assert min_ed_map(theirs, other, on="strings").single()[2] == -1  # no end there: not even the token of its letters


def test_tie_rules_differ():
    target, source = spelled(["xbc", "abd"]), spelled(["abc"])
    assert min_ed_map(source, target, on="strings").single().tolist() == [0]
    assert min_ed_map(source, target, on="bytes").single().tolist() == [1]


def test_edit_distance_is_over_bytes():
    target, source = spelled(["é", "eee"]), spelled(["èe"])
    # as characters both are 2 away; as bytes c3 a8 65 is 2 from c3 a9 and 3 from 65 65 65
    assert min_ed_map(source, target, on="bytes").single().tolist() == [0]


@pytest.mark.parametrize("on", ["bytes", "strings"])
def test_a_vocabulary_maps_to_itself(on):
    words = spelled(["<s>", "a", "▁a", "a", "", "<0x61>"], start=0)
    made = min_ed_map(words, words, on=on)
    assert made.single().tolist() == list(range(6))
    assert made.coverage == 1.0


def test_nothing_to_choose_from():
    source = spelled(["a", "b"])
    assert min_ed_map(source, spelled(["<s>"], start=0), on="bytes").single().tolist() == [-1, -1]
    assert min_ed_map(source, spelled([""]), on="strings").single().tolist() == [-1, -1]


def test_unknown_rule_is_refused():
    with pytest.raises(Exception, match="letters"):
        min_ed_map(spelled(["a"]), spelled(["b"]), on="letters")


words = st.lists(st.text(alphabet="abcé▁", min_size=1, max_size=7), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(missing=words, known=words, prefix_first=st.booleans())
def test_nearest_equals_brute_force(missing, known, prefix_first):
    assert nearest(missing, known, prefix_first=prefix_first).tolist() == brute_force(missing, known, prefix_first)


@settings(max_examples=50, deadline=None)
@given(source=words, target=words)
def test_maps_equal_brute_force_over_the_whole_vocabulary(source, target):
    ours, theirs = (
        spelled(sorted({*strings, "▁"}), key=key) for strings, key in ((target, "ours"), (source, "theirs"))
    )  # both know the sign
    for on, prefix_first in (("bytes", True), ("strings", False)):
        texts = [[t.replace("▁", " ").encode().decode("latin-1") if on == "bytes" else t for t in v.strings] for v in (theirs, ours)]
        assert min_ed_map(theirs, ours, on=on).single().tolist() == brute_force(*texts, prefix_first)


@pytest.mark.parametrize("prefix_first", [True, False])
def test_blocks_and_long_strings_change_nothing(monkeypatch, prefix_first):
    rng = np.random.default_rng(0)
    missing, known = (["".join(rng.choice(list("abcd"), size=rng.integers(1, 12))) for _ in range(120)] for _ in range(2))
    missing, known = [*missing, "a" * 300, "ab" * 200], [*known, "a" * 290, "b" * 260, "\0\0"]
    expected = brute_force(missing, known, prefix_first)
    assert nearest(missing, known, prefix_first=prefix_first).tolist() == expected
    for name, value in (("ROWS", 7), ("COLUMNS", 5), ("PAIRS", 11)):
        monkeypatch.setattr(nearest_module, name, value)
    assert nearest(missing, known, prefix_first=prefix_first).tolist() == expected


def test_hash_collisions_do_no_harm(monkeypatch):
    monkeypatch.setattr(nearest_module, "hash", lambda string: len(string) % 2, raising=False)
    missing, known = ["abc", "xy", "hello"], ["abd", "bcd", "y", "jello", "xz"]
    assert nearest(missing, known, prefix_first=True).tolist() == brute_force(missing, known, True)


def test_equals_the_published_map():
    """Every entry that FuseLLM's released code made for the golden texts: GPT-NeoX to Llama-2."""
    golden = json.loads(shared("assets", "golden_fusellm.json").read_text(encoding="utf-8"))
    source, target = real_spellings("gpt_neox"), real_spellings("llama2")
    published = {theirs: ours for case in golden["cases"] for theirs, ours in case["min_ed_map"].items()}
    canonical = [string.replace("Ġ", "▁") for string in source.strings]
    asked = [n for n, string in enumerate(canonical) if string in published]
    assert len({canonical[n] for n in asked}) == len(published) > 500
    some = Vocabulary.from_tokens([b"x"] * len(asked), strings=[source.strings[n] for n in asked])
    found = min_ed_map(some, target, on="strings").single()
    assert [target.strings[n] for n in found] == [published[canonical[n]] for n in asked]
