"""Held-out documents and repeated ones: chosen by content, never by position."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmfuse.errors import TextError
from lmfuse.splits import deduplicate, split_held_out
from lmfuse.types import Document, Segment
from tests.chat_templates import talk


def corpus(**sizes: int) -> list[Document]:
    return [Document.plain(f"{domain} {i}", domain, f"{domain}:{i}") for domain, size in sizes.items() for i in range(size)]


def test_shares_and_numbers_count_by_domain():
    documents = corpus(code=30, math=10, prose=3)
    kept, held_out = split_held_out(documents, 0.2)
    assert [sum(d.domain == name for d in held_out) for name in ("code", "math", "prose")] == [6, 2, 1]  # at least one
    assert sorted((*kept, *held_out), key=documents.index) == documents
    assert kept == [document for document in documents if document in kept]
    assert len(split_held_out(documents, 2)[1]) == 6


def test_the_choice_equals_a_sort_by_hash():
    import hashlib

    documents = corpus(code=20)
    ranked = sorted(documents, key=lambda document: hashlib.sha256(f"7\0{document.id}".encode()).hexdigest())
    assert {d.id for d in split_held_out(documents, 5, seed=7)[1]} == {d.id for d in ranked[:5]}


@given(st.integers(0, 5), st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(seed, rng):
    documents = corpus(code=12, math=7)
    chosen = {document.id for document in split_held_out(documents, 0.3, seed=seed)[1]}
    shuffled = rng.sample([*documents, *documents[:5]], 24)
    kept, held_out = split_held_out(shuffled, 0.3, seed=seed)
    assert {document.id for document in held_out} == chosen
    assert not {document.id for document in kept} & chosen


def test_a_text_in_two_domains_stands_on_one_side():
    documents = corpus(code=10)
    both = documents + [Document(document.segments, "copy", document.origin) for document in documents]
    kept, held_out = split_held_out(both, 0.3, seed=1)
    assert not {document.id for document in kept} & {document.id for document in held_out}
    assert [document.domain for document in held_out] == ["code"] * 3 + ["copy"] * 3


def test_another_seed_chooses_otherwise():
    documents = corpus(code=100)
    assert split_held_out(documents, 0.5, seed=0) != split_held_out(documents, 0.5, seed=1)


@pytest.mark.parametrize(("sizes", "held_out"), [({"code": 1}, 0.1), ({"code": 5}, 5), ({"code": 5, "math": 2}, 2), ({"code": 4}, 0.9)])
def test_a_domain_too_small_to_split_is_named(sizes, held_out):
    with pytest.raises(TextError, match=r"domain '(code|math)': cannot hold out \d of \d different documents"):
        split_held_out(corpus(**sizes), held_out)


def test_deduplicate_keeps_the_first():
    documents = [*corpus(code=3), Document.plain("code 1", "other", "elsewhere"), *corpus(code=2)]
    assert deduplicate(iter(documents)) == (documents[:3], 3)
    assert deduplicate([]) == ([], 0)
    assert deduplicate(random.Random(0).sample(corpus(code=9), 9))[1] == 0


def test_conversations_that_begin_with_the_same_question_stay_together():
    talks = [talk(f"question {n % 10}", f"answer {n}", "and?", f"more {n}", system=f"system {n}") for n in range(60)]
    kept, held_out = split_held_out(talks, 0.3, seed=3)
    sides = [{document.segments[1].text for document in side} for side in (kept, held_out)]
    assert (len(sides[0]), len(sides[1])) == (7, 3)
    assert not sides[0] & sides[1]
    assert len(kept) + len(held_out) == 60


def test_an_untrained_answer_ends_the_question_and_its_case_and_spaces_do_not_count():
    def asked(n: int, question: str, *, trained: bool) -> Document:
        first = Segment(f"answer {n}", "assistant", trained)
        return Document(
            (Segment(question, "user", trained=False), first, Segment("and?", "user", trained=False), Segment("So.", "assistant"))
        )

    spelled = ("why {} x?", "Why  {} X? ", "\nWHY\t{} x?")
    talks = [asked(n, spelled[n % 3].format(n // 3), trained=n % 2 == 0) for n in range(60)]
    kept, held_out = split_held_out(talks, 0.3, seed=3)
    sides = [{document.segments[0].text.casefold().split()[1] for document in side} for side in (kept, held_out)]
    assert (len(sides[0]), len(sides[1]), len(held_out)) == (14, 6, 18)
    assert not sides[0] & sides[1]


def test_case_and_spaces_of_plain_text_count():
    documents = [Document.plain("a B"), Document.plain("a b"), Document.plain("a  b")]
    assert len(split_held_out(documents, 2)[1]) == 2
