"""Where segments may end."""

import pytest

from lmfuse.decode.boundaries import first_end, last_resort, unit_ends, word_ends


def words(text: str, ended: bool = False) -> list[str]:
    ends = word_ends(text, ended)
    return [text[first:last] for first, last in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" the quick  fox", [" the", " quick"]),  # the last word may go on
        ("don't", ["don", "'"]),
        (" costs $3.50 now ", [" costs", " $", "3", ".", "50", " now"]),
        ("x = foo_bar(12)\n", ["x", " =", " foo", "_", "bar", "(", "12", ")"]),
        ("नमस्ते दुनिया ", ["नमस्ते", " दुनिया"]),  # vowel signs belong to their letters
        ("مرحبا بالعالم.", ["مرحبا", " بالعالم"]),
        ("我们去北京。", ["我", "们", "去", "北", "京"]),  # no spaces: every character is a word
        ("日本語のテキスト a", ["日", "本", "語", "の", "テ", "キ", "ス", "ト"]),
        ("สวัสดี ", ["ส", "วั", "ส", "ดี"]),
        ("hi 👩‍👩‍👧 👍🏽 ok ", ["hi", " 👩‍👩‍👧", " 👍🏽", " ok"]),  # a family is joined, a skin tone belongs to its thumb
        ("cafe\u0301s ", ["cafe\u0301s"]),  # a combining accent
    ],
)
def test_words_in_many_scripts(text, expected):
    assert words(text) == expected


def test_nothing_follows_the_end():
    assert words(" the fox", ended=True) == [" the", " fox"]
    assert words("one \n", ended=True) == ["one", " \n"]
    assert word_ends("", True) == []


def test_ends_count_bytes_and_leave_out_a_character_that_is_not_finished():
    data = "né 東京 ".encode()
    assert unit_ends(data, False, "word") == [3, 7, 10]
    assert unit_ends(data[:9], False, "word") == [3]
    assert unit_ends(data[:9], True, "word") == [3]  # the text cannot end inside a character


@pytest.mark.parametrize(
    ("unit", "text", "expected"),
    [
        ("sentence", 'He left. "Why?" No! ', ["He left.", ' "Why?"', " No!"]),
        ("sentence", "Pi is 3.14 now. ", ["Pi is 3.14 now."]),
        ("sentence", "我去。你呢？好", ["我去。", "你呢？"]),
        ("paragraph", "One.\nTwo.\n\nThree.\n \n\nFour", ["One.\nTwo.", "\n\nThree."]),
        ("answer", "One.\n\nTwo.", []),
    ],
)
def test_larger_units(unit, text, expected):
    data = text.encode()
    ends = unit_ends(data, False, unit)
    assert [data[first:last].decode() for first, last in zip([0, *ends], ends, strict=False)] == expected
    assert unit_ends(data, True, unit)[-1] == len(data)


def test_an_end_must_suit_every_tokenizer():
    assert first_end([3, 5, 9], [{3, 5, 9}, {5, 9}], 1) == 5
    assert first_end([3, 5, 9], [{3, 5, 9}, {5, 9}], 3) == 9
    assert first_end([3, 5, 9], [{4}, {3, 5, 9}], 1) is None
    assert first_end([3, 5, 9], [], 2) == 5


def test_the_last_resort_is_a_word_then_a_character_then_nothing():
    assert last_resort(b"one two three", {3, 7, 13}) == 7
    assert last_resort(b"one two three", {2, 13}) == 13
    assert last_resort("né".encode()[:2], {1, 2}) == 1
    assert last_resort("é".encode()[:1], {1}) == 0
