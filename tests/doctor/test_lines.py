import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse.doctor.axis import Axis
from lmfuse.doctor.lines import CHUNK_BYTES, LINE_BYTES, Finder
from tests.doctor.build import ODD, axis, documents, tokenizer, tokens
from tests.fakes import TEXT


def finder(texts, target="byte_bpe", source="metaspace_bpe"):
    sides = tokenizer(target), tokenizer(source)
    return Finder(Axis.of(documents(*texts), *sides), documents(*texts), *(side.vocabulary for side in sides))


def written(excerpt) -> str:
    return b"".join(bytes.fromhex(chunk["bytes"]) for chunk in excerpt["chunks"]).decode()


def test_the_worst_span_has_most_tokens():
    given_axis = axis(b"abcdefgh", tokens((0, 1), (1, 2), (2, 8)), tokens((0, 2), (2, 4), (4, 6), (6, 8)))
    found = Finder(given_axis, documents("abcdefgh"), tokenizer("byte_bpe").vocabulary, tokenizer("byte_bpe").vocabulary)
    assert [(span["start"], span["end"], span["num_target"], span["num_source"]) for span in found.spans()["worst"]] == [
        (2, 8, 1, 3),
        (0, 2, 2, 1),
    ]


def test_equal_spans_are_counted_together():
    repeated = finder([TEXT[-1], TEXT[-1], TEXT[-1]]).spans()
    assert {span["times"] for span in repeated["worst"]} == {3}
    assert repeated["commonest"] == sorted(repeated["worst"], key=lambda span: -span["times"])
    assert not finder([TEXT[0]], "byte_bpe", "byte_bpe").spans()["worst"]


def test_an_excerpt_is_a_line_of_the_text():
    for excerpt in finder(TEXT).lines(6):
        assert len(written(excerpt).encode()) <= LINE_BYTES
        assert written(excerpt).strip("\n") in "".join(TEXT)
        assert excerpt["before"] or any(text.startswith(written(excerpt)[:5]) for text in TEXT)


def test_both_kinds_of_lines_are_shown_and_none_twice():
    lines = finder(TEXT).lines(5)
    assert [line["why"] for line in lines] == sorted((line["why"] for line in lines), reverse=True)
    assert {line["why"] for line in lines} == {"worst", "typical"}
    assert len({written(line) for line in lines}) == len(lines) <= 5


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=80), min_size=1, max_size=3),
    st.sampled_from(["byte_bpe", "metaspace_bpe", "wordpiece"]),
    st.integers(1, 6),
)
def test_excerpts_of_any_text_are_its_bytes(texts, source, count):
    """Neighbouring chunks, the tokens of each inside it and in order, both sides cut at the same bytes."""
    for excerpt in finder(texts, "byte_bpe", source).lines(count):
        data = texts[excerpt["document"]].encode()
        for before, after in zip(excerpt["chunks"], excerpt["chunks"][1:], strict=False):
            assert before["end"] == after["start"]
        for chunk in excerpt["chunks"]:
            assert bytes.fromhex(chunk["bytes"]) == data[chunk["start"] : chunk["shown_end"]]
            for side in ("target", "source"):
                places = [(token["start"], token["end"]) for token in chunk[side]]
                assert places == sorted(places)
                assert all(chunk["start"] <= start <= end <= chunk["end"] for start, end in places)
    assert json.dumps(excerpt)


def test_a_span_without_end_is_cut():
    given_axis = axis(b"x" * 5000, tokens(*((n, n + 1) for n in range(5000))), tokens((0, 5000)))
    vocabulary = tokenizer("byte_bpe").vocabulary
    given_axis.target.ids[:] = 5
    (excerpt,) = Finder(given_axis, documents("x" * 5000), vocabulary, vocabulary).lines(4)
    (chunk,) = excerpt["chunks"]
    assert (chunk["end"], chunk["shown_end"], len(chunk["target"])) == (5000, CHUNK_BYTES, CHUNK_BYTES)


@pytest.mark.parametrize("texts", [["\n"], ["a"], ["\n\n\n", "b"], [ODD[2]]])
def test_odd_texts_have_lines(texts):
    assert len(finder(texts).lines(3)) >= 1
    assert np.array_equal(finder(texts).worst(), np.sort(finder(texts).worst())) or len(finder(texts).worst()) > 1
