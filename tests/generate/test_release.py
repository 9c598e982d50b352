"""What of a text may be shown, and when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmfuse.generate.release import release
from lmfuse.writing import Passage, WritingSettings


def show(parts, reason="stop", **settings):
    *passages, end = release([*(Passage(part, str(place)) for place, part in enumerate(parts)), reason], WritingSettings(**settings))
    return [passage.text for passage in passages], end


def test_a_stop_string_may_begin_in_one_passage_and_end_in_another():
    assert show(["ab", "c<", "en", "d>x"], stop=("<end>",)) == (["ab", "c"], "stop")
    assert show(["ab", "c<", "en", "dow"], stop=("<end>",)) == (["ab", "c", "<", "en", "dow"], "stop")


def test_nothing_is_held_back_longer_than_needed():
    written = release((Passage(part, "a") for part in ("ab<", "e", "x")), WritingSettings(stop=("<end>",)))
    assert [next(written).text for _ in range(3)] == ["ab", "<", "e"]


def test_the_first_of_several_stop_strings_ends_the_text():
    assert show(["one two three"], stop=("three", "two")) == (["one "], "stop")
    assert show(["stop"], stop=("stop",)) == ([], "stop")


def test_a_character_is_never_cut():
    assert show(["né", "é"], max_bytes=4) == (["né"], "length")
    assert show(["日本"], max_bytes=2) == ([], "length")
    assert show(["abc"], max_bytes=3) == (["abc"], "length")
    assert show(["abc"], max_bytes=4, reason="stop") == (["abc"], "stop")


def test_a_stop_string_behind_the_limit_does_not_count():
    assert show(["abcdef"], stop=("ef",), max_bytes=4) == show(["abcd"], stop=("ef",), max_bytes=4) == (["abcd"], "length")
    assert show(["abcdef"], stop=("ef",), max_bytes=5) == (["abcd"], "stop")  # the text up to it fits


def test_what_follows_is_not_asked_for():
    def written():
        yield Passage("ab!", "a")
        raise AssertionError("asked for more")

    assert [getattr(each, "text", each) for each in release(written(), WritingSettings(stop=("!",)))] == ["ab", "stop"]


@given(
    st.lists(st.text("ab<>é", min_size=1, max_size=4), max_size=8),
    st.lists(st.text("ab<>", min_size=1, max_size=3), max_size=3),
    st.integers(1, 30),
)
def test_however_a_text_is_divided_the_same_is_shown(parts, stops, most):
    settings = {"stop": tuple(stops), "max_bytes": most}
    shown, end = show(parts, **settings)
    whole = "".join(parts)
    found = min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))
    cut = whole.encode()[:most].decode(errors="ignore")
    assert "".join(shown) == min(whole[:found], cut, key=len)
    assert end in ("stop", "length")
    assert all(shown)


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_authors_and_scores_stay_with_their_text(reason):
    first, second = Passage("one ", "a", {"a": 1.0}, {"a": "one "}), Passage("two", "b")
    assert list(release([first, second, reason], WritingSettings(stop=("x",)))) == [first, second, reason]
    cut = next(release([first, second, reason], WritingSettings(max_bytes=2)))
    assert (cut.text, cut.author, cut.scores) == ("on", "a", {"a": 1.0})
