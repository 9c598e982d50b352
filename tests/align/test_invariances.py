"""What alignment must not depend on, over random vocabularies and texts: padding rows, the token before a text, the order of documents."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.chunks import Chunks
from lmfuse.align.counts import Counts
from lmfuse.align.exact import exact_map, token_bytes
from lmfuse.align.join import Join
from lmfuse.align.longer import longer_map
from lmfuse.align.pair import Pair, build_pair
from lmfuse.align.spans import align_many
from lmfuse.bytes import ByteTokenizer
from lmfuse.types import Alignment, Document, Encoding, Rows, Vocabulary
from tests import fakes
from tests.align.test_pair import encode, longest_first, random_rows, toy_vocabulary

METHODS = (ByteLaw(), Join(map="exact"))
BY_NAME = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
TEXTS = st.text("ab c\né東", min_size=1, max_size=24).map(str.encode)
SEEDS = st.integers(0, 2**32 - 1)
PROPERTY = settings(max_examples=60, deadline=None, database=None, derandomize=True)


def pair_of(source: Vocabulary, target: Vocabulary) -> Pair:
    """All that a run's byte law has, shares of longer tokens included, and a map for the join."""
    ours, theirs = token_bytes(target), token_bytes(source)
    longer = [(s, t) for s in range(len(theirs)) for t in range(len(ours)) if theirs[s] and ours[t].startswith(theirs[s])]
    ids = np.array(longer, np.int64).reshape(-1, 2)
    shares = longer_map(Counts.nothing(source.size, target.size).plus(ids[:, 0], ids[:, 1]), source, target)
    return replace(build_pair(source, target, longest_first(target), exact_map(source, target)), longer=shares)


def padded(vocabulary: Vocabulary, num_rows: int) -> Vocabulary:
    """The vocabulary with ids that nothing writes, as of a model whose embedding is larger than its tokenizer."""
    tokens = [*token_bytes(vocabulary), *[b""] * num_rows]
    return Vocabulary.from_tokens(tokens, strings=[*vocabulary.strings, *[""] * num_rows], control=vocabulary.control)


def drawn(seed: int, text: bytes) -> tuple[np.random.Generator, Vocabulary, Vocabulary, Encoding, Encoding]:
    """Two random vocabularies and a random encoding by each, with and without a dummy prefix."""
    rng = np.random.default_rng(seed)
    source, target = toy_vocabulary(rng, text + b" h"), toy_vocabulary(rng, text + b" h")
    theirs = encode(source, text, rng, dummy_prefix=bool(rng.integers(2)))
    return rng, source, target, theirs, encode(target, text, rng, dummy_prefix=bool(rng.integers(2)))


def assert_same(found: Alignment, expected: Alignment) -> None:
    for field in fields(Alignment):
        if field.name != "topk":
            assert_array_equal(getattr(found, field.name), getattr(expected, field.name), field.name)
    kept = np.isfinite(expected.topk.log_probs)
    assert_array_equal(np.where(kept, found.topk.ids, -1), np.where(kept, expected.topk.ids, -1))
    assert_array_equal(found.topk.log_probs, expected.topk.log_probs)
    assert_array_equal(found.topk.tail, expected.topk.tail)


@BY_NAME
@PROPERTY
@given(SEEDS, TEXTS)
def test_padding_rows_change_nothing(method, seed, text):
    rng, source, target, theirs, ours = drawn(seed, text)
    rows = random_rows(rng, source, theirs)
    expected = method(rows, ours, pair_of(source, target))
    wide = replace(rows, topk=replace(rows.topk, vocab_size=source.size + 7))
    assert_same(method(wide, ours, pair_of(padded(source, 7), target)), expected)
    onto_wide = method(rows, ours, pair_of(source, padded(target, 5)))
    assert_same(onto_wide, expected)
    assert (onto_wide.topk.vocab_size, onto_wide.topk.ids.max(initial=0) < target.size) == (target.size + 5, True)


@BY_NAME
@PROPERTY
@given(SEEDS, TEXTS)
def test_the_token_before_a_text_changes_nothing_but_its_own_row(method, seed, text):
    rng, source, target, theirs, ours = drawn(seed, text)
    rows, pair = random_rows(rng, source, theirs), pair_of(source, target)
    alone = method(rows, ours, pair)
    begun = Encoding(np.append(target.control["bos"], ours.ids), np.append(-1, ours.starts), np.append(-1, ours.ends))
    found = method(rows, begun, pair)
    rest = {field.name: getattr(found, field.name)[1:] for field in fields(Alignment)}
    assert_same(Alignment(**rest), alone)
    assert not found.taught[0]
    assert found.topk.tail[0] == 0.0, "all of its mass is unknown"


@BY_NAME
@PROPERTY
@given(SEEDS, st.lists(TEXTS, min_size=1, max_size=5))
def test_the_order_of_documents_changes_nothing(method, seed, texts):
    rng = np.random.default_rng(seed)
    source, target = (toy_vocabulary(rng, b"".join(texts) + b" h") for _ in range(2))
    pair = pair_of(source, target)
    documents = []
    for text in texts:
        prefixes = rng.integers(2, size=2).astype(bool).tolist()
        theirs = encode(source, text, rng, dummy_prefix=prefixes[0])
        ours = encode(target, text, rng, dummy_prefix=prefixes[1], start_token=bool(rng.integers(2)))
        documents.append((random_rows(rng, source, theirs), ours))
    at_once = int(rng.integers(1, 40))
    found = align_many(method, *zip(*documents, strict=True), pair, tokens_at_once=at_once)
    order = rng.permutation(len(documents))
    shuffled = align_many(method, *zip(*(documents[i] for i in order), strict=True), pair, tokens_at_once=at_once)
    for place, i in enumerate(order):
        alone = method(*documents[i], pair)
        for other in (found[i], shuffled[place]):
            assert_array_equal(other.source_row, alone.source_row)
            assert_array_equal(other.boundary, alone.boundary)
            assert_allclose(other.truth_nll_nats, alone.truth_nll_nats, atol=2e-6)
            assert_allclose(np.exp(other.topk.tail), np.exp(alone.topk.tail), atol=2e-6)
            assert_allclose(laws(other), laws(alone), atol=2e-6)


def laws(alignment: Alignment) -> np.ndarray:
    """Each row as a dense distribution: two candidates of nearly the same mass may change places."""
    topk = alignment.topk
    dense = np.zeros((len(topk), topk.vocab_size))
    np.add.at(dense, (np.arange(len(topk))[:, None], topk.ids), np.exp(topk.log_probs))
    return dense


@PROPERTY
@given(SEEDS, TEXTS)
def test_spans_are_symmetric(seed, text):
    rng, source, target, theirs, ours = drawn(seed, text)
    there = Join(map="exact")(random_rows(rng, source, theirs), ours, pair_of(source, target))
    back = Join(map="exact")(random_rows(rng, target, ours), theirs, pair_of(target, source))
    assert set(ours.starts[there.source_row >= 0]) == set(theirs.starts[back.source_row >= 0]) == set(ours.starts) & set(theirs.starts)
    assert set(ours.ends[there.boundary]) == set(theirs.ends[back.boundary]) == set(ours.ends) & set(theirs.ends)

    chunks = Chunks.between(theirs.starts, theirs.ends, ours.starts, ours.ends)
    swapped = Chunks.between(ours.starts, ours.ends, theirs.starts, theirs.ends)
    for name, other in (
        ("byte_start", "byte_start"),
        ("byte_end", "byte_end"),
        ("target_first", "source_first"),
        ("target_stop", "source_stop"),
    ):
        assert_array_equal(getattr(chunks, name), getattr(swapped, other))
        assert_array_equal(getattr(swapped, name), getattr(chunks, other))


@PROPERTY
@given(SEEDS, TEXTS)
def test_no_byte_is_crossed_twice(seed, text):
    rng, source, target, theirs, ours = drawn(seed, text)
    rows, pair = random_rows(rng, source, theirs), pair_of(source, target)
    law, join = ByteLaw()(rows, ours, pair), Join(map="exact")(rows, ours, pair)
    for found in (law, join):
        taught = np.flatnonzero(found.source_row >= 0)
        row = found.source_row[taught]
        assert (np.diff(row) >= 0).all(), "rows are used in the order of the text"
        assert ((rows.starts[row] <= ours.starts[taught]) & (ours.starts[taught] <= rows.ends[row])).all()
    joined = ours.starts[(join.source_row >= 0) & (ours.ends > ours.starts)]
    assert len(set(joined)) == len(joined)
    chunks = Chunks.of(rows, ours)
    assert (chunks.byte_start[1:] >= chunks.byte_end[:-1]).all()
    assert (chunks.byte_end >= chunks.byte_start).all()
    unknown = np.isnan(law.truth_nll_nats)
    assert (ours.starts == ours.ends)[unknown].all(), "only a dummy prefix that the source does not write has no law"
    assert_allclose(np.nansum(law.truth_nll_nats), rows.nll_nats.sum(), rtol=1e-4, err_msg="every byte is paid for once")


@cache
def tokenizer(name: str, document_start: str = "auto") -> ByteTokenizer:
    return ByteTokenizer.from_tokenizer(fakes.KINDS[name](), document_start=document_start)


@cache
def real_pair(source: str, target: str) -> Pair:
    ours = tokenizer(target)
    onto = exact_map(tokenizer(source).vocabulary, ours.vocabulary)
    return build_pair(tokenizer(source).vocabulary, ours.vocabulary, ours.first_pieces, onto)


def rows_by(name: str, document_start: str, text: str, seed: int) -> Rows:
    theirs = tokenizer(name, document_start).encode(Document.plain(text))
    return random_rows(np.random.default_rng(seed), tokenizer(name).vocabulary, theirs)


@BY_NAME
@pytest.mark.parametrize(("source", "target"), [("byte_bpe", "metaspace_bpe"), ("metaspace_bpe", "byte_bpe"), ("unigram", "metaspace_bpe")])
@settings(max_examples=15, deadline=None, database=None, derandomize=True)
@given(SEEDS, st.text(st.sampled_from("the quick brown fox\n12 é東🙂"), min_size=1, max_size=30))
def test_bos_of_tokenizers_changes_nothing(method, source, target, seed, text):
    pair = real_pair(source, target)
    with_start = tokenizer(target).encode(Document.plain(text))
    without = tokenizer(target, "none").encode(Document.plain(text))
    num_starts = len(tokenizer(target).start_ids)
    found = method(rows_by(source, "auto", text, seed), with_start, pair)
    rest = {field.name: getattr(found, field.name)[num_starts:] for field in fields(Alignment)}
    assert_same(Alignment(**rest), method(rows_by(source, "none", text, seed), without, pair))
    assert not found.taught[:num_starts].any()


def test_rows_of_another_vocabulary_are_refused_padded_or_not():
    rng, source, target, theirs, ours = drawn(0, b"abc")
    rows = random_rows(rng, source, theirs)
    for method in METHODS:
        with pytest.raises(ValueError, match=r"do not belong to a source vocabulary"):
            method(rows, ours, pair_of(padded(source, 3), target))
