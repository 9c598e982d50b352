import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from lmfuse.report.visible import HIDDEN, parts, plain, visible


def test_parts_by_hand():
    assert parts("a\tb\u202e\u0301".encode()) == [("text", "a"), ("mark", "⇥"), ("text", "b"), ("hex", "E280AE"), ("text", "\u25cc\u0301")]
    assert parts(b"\xf0\x9f") == [("hex", "F09F")]
    assert parts(b"\x00\x1b\x7f") == [("hex", "001B7F")]
    assert parts("東🙂".encode()) == [("text", "東🙂")]
    assert parts(b"") == []


def test_a_long_string_is_cut():
    assert visible("x" * 1000, 10) == "x" * 9 + "…"
    assert plain("two words", 40) == "two words"
    assert len(visible("\u202e" * 1000, 40)) == 40


@given(st.binary(max_size=200))
def test_nothing_hidden_gets_through(data):
    """Invariant: no control character, no change of direction, whatever the bytes; and all of them are told."""
    found = parts(data)
    shown = "".join(text for _, text in found)
    assert not {unicodedata.category(character) for character in shown} & set(HIDDEN)
    told = {"hex": bytes.fromhex, "mark": lambda text: text.translate({0xB7: 0x20, 0x21B5: 0x0A, 0x21E5: 0x09}).encode(),
            "text": lambda text: text.encode()}  # fmt: skip
    assert b"".join(told[kind](text.removeprefix("\u25cc") if "\u25cc".encode() not in data else text) for kind, text in found) == data


@given(st.text())
def test_strings_with_lone_surrogates_are_shown_too(text):
    assert visible(text + "\ud800", 10_000).isprintable()
