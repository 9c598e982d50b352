"""The map of first pieces."""

from __future__ import annotations

import numpy as np
import pytest

from lmfuse.align.exact import exact_map, token_bytes
from lmfuse.align.first_piece import first_piece_ids, first_piece_map
from lmfuse.bytes import ByteTokenizer
from lmfuse.types import Vocabulary
from tests.align.test_pair import longest_first, toy_vocabulary
from tests.fakes import byte_bpe, metaspace_bpe, unigram


def test_by_hand() -> None:
    source = Vocabulary.from_tokens([b" hello", b"lo", b"", b"xyz"], control={"eos": 2})
    target = Vocabulary.from_tokens([b" hel", b"lo", b""], control={"eos": 2})
    assert first_piece_map(source, target, longest_first(target)).single().tolist() == [0, 1, 2, -1]


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_tokenizer_asked_about_every_token(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = toy_vocabulary(rng), toy_vocabulary(rng)
    first = longest_first(target)
    expected = np.array([first([written])[0] if written else -1 for written in token_bytes(source)])
    for name in ("bos", "eos"):
        expected[source.control[name]] = target.control[name]
    assert first_piece_map(source, target, first).single().tolist() == expected.tolist()


def test_real_kinds_of_tokenizers_agree_with_exact_where_that_maps() -> None:
    kinds = [ByteTokenizer.from_tokenizer(kind()) for kind in (byte_bpe, metaspace_bpe, unigram)]
    for ours in kinds:
        for theirs in kinds:
            exact = exact_map(theirs.vocabulary, ours.vocabulary).single()
            pieces = first_piece_map(theirs.vocabulary, ours.vocabulary, ours.first_pieces).single()
            written = token_bytes(ours.vocabulary)
            assert [written[i] for i in pieces[exact >= 0]] == [written[i] for i in exact[exact >= 0]]
            assert all(token.startswith(written[i]) for token, i in zip(token_bytes(theirs.vocabulary), pieces, strict=True) if i >= 0)
            assert (pieces >= 0).sum() >= (exact >= 0).sum()


def test_the_same_vocabulary_is_the_identity() -> None:
    vocabulary = toy_vocabulary(np.random.default_rng(0))
    assert first_piece_map(vocabulary, vocabulary, longest_first(vocabulary)).single().tolist() == list(range(vocabulary.size))


def test_answers_of_another_length_are_an_error() -> None:
    target = Vocabulary.from_tokens([b"a"])
    with pytest.raises(ValueError, match="zip"):
        first_piece_ids([b"ab", b"ac"], target, lambda strings: np.zeros(1, np.int64))
