"""Evaluation text in the training text is found, named and refused."""

from __future__ import annotations

import random
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse import overlap
from lmfuse.errors import TextError
from lmfuse.overlap import find_overlap, refuse_overlap
from lmfuse.text import TextSpec, read_documents
from lmfuse.types import Document
from tests.chat_templates import talk
from tests.fakes import shared

WORDS = ["alpha", "Beta", "gamma", "a1", "x", "zürich", "東京"]


def documents(*texts: str, name: str = "train") -> list[Document]:
    return [Document.plain(text, origin=f"{name}:{i}") for i, text in enumerate(texts)]


def numbers(first: int, last: int) -> str:
    return " ".join(f"word{i}" for i in range(first, last))


# ------------------------------------------------------------------------------------------------------------------ by hand


def test_half_of_a_document_inside_another_one():
    train = documents("nothing of it", "Before it: " + numbers(0, 22) + " and after")
    evaluation = documents(numbers(0, 32), name="test")  # 20 spans of 13 words, the first 10 of which end before word22
    (found,) = find_overlap(train, evaluation)
    assert (found.evaluation, found.train, found.share) == ("test:0", "train:1", 0.5)
    assert (found.evaluation_id, found.train_id) == (evaluation[0].id, train[1].id)
    assert find_overlap(train, evaluation, threshold=0.51) == []


def test_case_and_punctuation_do_not_hide_a_copy():
    text = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May – “naïve”."
    other = "NATALIA SOLD CLIPS:\n to 48 of her friends in april and then (she sold half) as many clips, in May; naïve"
    assert [found.share for found in find_overlap(documents(other), documents(text))] == [1.0]


def test_scripts_without_spaces_have_words_too():
    text = "今日は天気がいいから散歩しましょう"
    assert len(find_overlap(documents("昨日" + text + "明日"), documents(text))) == 1
    assert find_overlap(documents("昨日は雨でしたから家で本を読みました。とても面白かったです"), documents(text)) == []


def test_a_short_document_overlaps_with_an_equal_one_only():
    train = documents("Yes.", "no, never", numbers(0, 100))
    assert [o.train for o in find_overlap(train, documents("yes", "never", "No never!", numbers(3, 9)))] == ["train:0", "train:1"]


def test_equal_documents_without_any_word_overlap():
    assert [o.share for o in find_overlap(documents("🙂 !"), documents("🙂 !", "🙂 ?"))] == [1.0]


def test_the_training_document_that_shares_most_is_named_and_the_first_of_equally_good_ones():
    train = documents(numbers(0, 16), numbers(0, 40) + " a", numbers(0, 40) + " b")
    assert [o.train for o in find_overlap(train, documents(numbers(0, 50)))] == ["train:1"]
    assert [o.train for o in find_overlap(train[1:], documents(numbers(0, 50)))] == ["train:1"]
    assert [o.train for o in find_overlap(train, documents(numbers(0, 40) + " b"))] == ["train:2"]  # an equal one before all others


def test_empty_sides_never_overlap():
    assert find_overlap([], documents("x y z")) == []
    assert find_overlap(documents("x y z"), []) == []
    assert find_overlap(documents(""), documents("")) != []  # equal
    assert find_overlap(documents(""), documents("x")) == []


# ------------------------------------------------------------------------------------------------------------------- oracle


def oracle_shares(train: list[Document], evaluation: list[Document], words: int) -> list[float]:
    """Return the shares by comparing tuples of words."""

    def spans(document: Document) -> list[tuple[str, ...]]:
        text = document.segments[0].text.casefold()
        found = [w for word in re.findall(r"[a-z0-9]+|[^\W\x00-\x7f]", text) for w in [word]]
        return [tuple(found[i : i + words]) for i in range(len(found) - words + 1)] or ([tuple(found)] if found else [])

    known = {span for document in train for span in spans(document)}
    return [np.mean([span in known for span in spans(document)]).item() if spans(document) else 0.0 for document in evaluation]


texts = st.lists(st.sampled_from([*WORDS, ", ", "\n"]), max_size=12).map(" ".join)


@settings(deadline=None)
@given(st.lists(texts, max_size=5), st.lists(texts, max_size=5), st.integers(1, 4), st.sampled_from([20, 2**21]))
def test_shares_equal_the_oracle(train, evaluation, words, batch_bytes):
    train, evaluation = documents(*train), documents(*(text + " x" for text in evaluation), name="test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "BATCH_BYTES", batch_bytes)
        found = {o.evaluation: o.share for o in find_overlap(train, evaluation, threshold=0.0, words=words)}
    equal = {document.id for document in train}
    expected = [1.0 if d.id in equal else share for d, share in zip(evaluation, oracle_shares(train, evaluation, words), strict=True)]
    assert found == {document.origin: pytest.approx(share) for document, share in zip(evaluation, expected, strict=True) if share}


# --------------------------------------------------------------------------------------------------------------- invariants


def test_every_copy_is_found_and_nothing_else():
    rng = random.Random(0)
    train = documents(*(" ".join(rng.choices([f"w{i}" for i in range(2000)], k=rng.randint(20, 80))) for _ in range(300)))
    fresh = documents(*(" ".join(rng.choices([f"w{i}" for i in range(2000)], k=40)) for _ in range(100)), name="fresh")
    copies = [Document.plain("Intro. " + d.segments[0].text.upper(), origin=f"copy of {d.origin}") for d in rng.sample(train, 50)]
    mixed = rng.sample(fresh + copies, 150)
    found = find_overlap(train, mixed)
    assert {(o.evaluation, o.train) for o in found} == {(c.origin, c.origin.removeprefix("copy of ")) for c in copies}


def test_words_are_hashed_without_collisions():
    """46,656 different words of three letters and digits, neighbours included, give as many hashes."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [a + b + c for a in letters for b in letters for c in letters]
    spans = np.concatenate([part.hashes for part in overlap._batches(documents(" ".join(words)), 1)])
    assert len(np.unique(spans)) == len(words)


def test_megabytes_take_seconds():
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"word{i}" for i in range(5000)])
    train = documents(*(" ".join(vocabulary[rng.integers(0, 5000, 1000)]) for _ in range(500)))
    evaluation = documents(*(" ".join(vocabulary[rng.integers(0, 5000, 100)]) for _ in range(100)), train[77].segments[0].text)
    begin = time.process_time()
    found = find_overlap(train, evaluation)
    assert [o.train for o in found] == ["train:77"]
    assert time.process_time() - begin < 4  # 4 MB; 0.4 s on an idle core


# ------------------------------------------------------------------------------------------------------------- wrong inputs


def test_overlap_is_refused_with_both_names():
    train, evaluation = documents(numbers(0, 50), "other"), documents(numbers(10, 50), "fine", name="test")
    with pytest.raises(
        TextError, match=r"^1 of 2 evaluation documents also stand in the training text, such as 'test:0' in 'train:0' \(100%"
    ) as caught:
        refuse_overlap(train, evaluation)
    assert caught.value.hint
    refuse_overlap(train, evaluation[1:])


def test_public_corpora_do_not_overlap_and_a_leak_is_found():
    folder = shared("assets", "data", "gsm8k")
    spec = TextSpec(domain="math", path="train.jsonl", text="{question}\n{answer}", limit=2000)
    train = list(read_documents(spec, folder))
    test = list(read_documents(TextSpec(domain="math", path="test.jsonl", text="{question}\n{answer}", limit=300), folder))
    assert find_overlap(train, test) == []
    leaked = [o.evaluation for o in find_overlap([*train, *test[5:8]], test)]
    assert leaked == [document.origin for document in test[5:8]]


# ------------------------------------------------------------------------------------------------------------ conversations

LONG_QUESTION = "please tell me how many apples there are when Anna has twelve and buys seven more of them today"
LONG_ANSWER = "twelve apples and seven apples make nineteen apples in all so Anna has nineteen apples when she comes home"


def shares(train: Document, evaluation: Document) -> list[float]:
    return [found.share for found in find_overlap([train], [evaluation], threshold=0.01)]


@pytest.mark.parametrize(
    ("known", "asked", "expected"),
    [
        (talk(LONG_QUESTION, "nineteen"), talk(LONG_QUESTION, LONG_ANSWER), [1.0]),  # a known question with another answer
        (talk("how many?", LONG_ANSWER), talk(LONG_QUESTION, LONG_ANSWER), [1.0]),  # a known answer
        (Document.plain(LONG_QUESTION), talk(LONG_QUESTION, LONG_ANSWER), [1.0]),  # as plain text, too
        (talk(LONG_QUESTION, LONG_ANSWER), Document.plain(LONG_ANSWER), [1.0]),
        (talk("hi", "nineteen", system=LONG_ANSWER), talk(LONG_QUESTION, "x", system=LONG_ANSWER), []),  # all have the same system message
        (talk("go on", "a b c"), talk("go on", "d e f"), []),  # short questions are everybody's
        (talk("x", "yes"), talk("y", "yes"), []),
        (talk("go on", "a b c", system="s"), talk("go on", "a b c", system="t"), [1.0]),
    ],
)
def test_questions_and_answers_of_conversations(known, asked, expected):
    assert shares(known, asked) == expected
