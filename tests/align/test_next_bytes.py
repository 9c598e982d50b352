"""The law of the next byte against enumeration, and against itself over another vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.join import Join
from lmfuse.align.next_bytes import UNKNOWN, next_bytes, projected_law, true_nll
from lmfuse.bytes import ByteTokenizer
from lmfuse.types import Alignment, Document, Encoding, Rows, TopK, Vocabulary
from tests.align.test_byte_law_oracle import World
from tests.align.test_pair import random_rows
from tests.fakes import KINDS


@pytest.mark.parametrize("canonical", [True, False])
def test_equals_what_a_source_without_ambiguity_writes(canonical: bool) -> None:
    world = World([b"a", b"ba", b"bb", b"c"], [b"a", b"b", b"c"], num_tokens=5, seed=0, canonical=canonical)
    for tokens, bytes_of_it, _ in world.texts[:: len(world.texts) // 9]:
        text = b"".join(world.source.bytes_of(i) for i in tokens)
        law = next_bytes(world.rows(list(tokens)), world.source, text)
        assert_allclose(law.sum(1), 1.0)
        for place in range(4):
            assert_allclose(law[place, [97, 98, 99]], world.expects(bytes_of_it[:place], 1), atol=1e-6)


def test_paths_through_longer_tokens_count() -> None:
    world = World([b"a", b"b", b"ab", b"c"], [b"a", b"b", b"c"], num_tokens=5, seed=1, canonical=True)
    tokens = next(tokens for tokens, _, _ in world.texts if tokens[:2] == (0, 3))  # `a` and then `c`, where `ab` was possible, too
    rows = world.rows(list(tokens))
    law = next_bytes(rows, world.source, b"ac")
    a, ab = np.exp(rows.topk.log_probs[0, [0, 2]])
    c = float(np.exp(-rows.nll_nats[1]))
    assert_allclose(law[1, ord("c")], a * c / (a + ab), rtol=1e-5)


@pytest.mark.parametrize("kind", ["byte_bpe", "metaspace_bpe"])
def test_the_same_vocabulary_says_the_same(kind: str) -> None:
    tokenizer = ByteTokenizer.from_tokenizer(KINDS[kind]())
    document = Document.plain("hello world, hello again: 12 and 13")
    encoding = tokenizer.encode(document)
    rows = random_rows(np.random.default_rng(0), tokenizer.vocabulary, encoding)
    from lmfuse.align.pair import build_pair

    aligned = ByteLaw(k=12)(rows, encoding, build_pair(tokenizer.vocabulary, tokenizer.vocabulary, tokenizer.first_pieces))
    ours = projected_law(aligned, encoding, tokenizer.vocabulary, document.trained_bytes)
    theirs = next_bytes(rows, tokenizer.vocabulary, document.trained_bytes)
    assert_allclose(ours, theirs, atol=1e-4)


def test_a_dummy_prefix_counts_as_written() -> None:
    words = Vocabulary.from_tokens([b" hello", b" help", b"help", b" "])
    topk = TopK(np.array([[0, 1, 2, 3]]), np.log(np.array([[0.4, 0.2, 0.1, 0.2]], np.float32)), np.log(np.array([0.1], np.float32)), 4)
    law = next_bytes(Rows(np.array([0]), np.array([5]), np.array([0]), -np.log(np.array([0.4], np.float32)), topk), words, b"hello")
    assert_allclose(law[0, [ord("h"), UNKNOWN]], np.array([0.6, 0.1]) / 0.7, rtol=1e-5)  # ` ` alone is written, `help` writes no prefix
    assert_allclose(law[3, [ord("l"), ord("p")]], np.array([0.4, 0.2]) / 0.6, rtol=1e-5)


def test_what_is_not_taught_has_no_law_and_what_is_not_kept_is_unknown() -> None:
    world = World([b"ab", b"c"], [b"a", b"b", b"c"], num_tokens=2, seed=0, canonical=False)
    rows, encoding = world.rows([0, 1]), world.encoding([0, 1, 2], world.target)
    joined = Join(map="first_piece")(rows, encoding, world.plain)
    law = projected_law(joined, encoding, world.target, b"abc")
    assert law.sum(1).tolist() == pytest.approx([1, 0, 1])
    cut = Alignment(
        joined.source_row, joined.topk.first(1), *(getattr(joined, n) for n in ("truth_nll_nats", "lost_mass", "one_hot", "boundary"))
    )
    assert_allclose(projected_law(cut, encoding, world.target, b"abc")[0, UNKNOWN], np.exp(cut.topk.tail[0]), rtol=1e-5)


def test_a_true_token_that_was_not_kept_has_an_even_share_of_the_tail() -> None:
    topk = TopK(np.array([[1], [1]]), np.log(np.array([[0.6], [0.6]], np.float32)), np.log(np.array([0.4, 0.4], np.float32)), 5)
    zero = np.zeros(2, np.float32)
    aligned = Alignment(np.array([0, 1]), topk, zero, zero, np.zeros(2, bool), np.zeros(2, bool))
    nll = true_nll(aligned, Encoding(np.array([1, 3]), np.array([0, 1]), np.array([1, 2])))
    assert_allclose(np.exp(-nll), [0.6, 0.1], rtol=1e-6)
