"""What two vocabularies mean to each other; and the toys of all alignment tests: vocabularies, encodings, rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from lmfuse.align.exact import token_bytes
from lmfuse.align.pair import Pair, build_pair, prefix_nodes, suffix_targets
from lmfuse.types import Encoding, Rows, TopK, Vocabulary, VocabularyMap

TEXT = "def add(a, b):\n    return a + b\n\n    # naïve café, Zürich: hello world, hello 東京\n".encode()


def longest_first(vocabulary: Vocabulary) -> Callable[[Sequence[bytes]], np.ndarray]:
    """A tokenizer's first pieces: the longest token that the string begins with, -1 for none."""
    ids = {written: token_id for token_id, written in reversed(list(enumerate(token_bytes(vocabulary)))) if written}

    def first(strings: Sequence[bytes]) -> np.ndarray:
        return np.array([next((ids[s[:n]] for n in range(len(s), 0, -1) if s[:n] in ids), -1) for s in strings], np.int64)

    return first


def toy_vocabulary(rng: np.random.Generator, text: bytes = TEXT, size: int = 60) -> Vocabulary:
    """All bytes of the text and random substrings of it, between two control tokens."""
    letters = {bytes([byte]) for byte in text + b" "}
    cuts = [(start, start + int(rng.integers(2, 7))) for start in rng.integers(0, len(text), size)]
    tokens = sorted(letters | {text[start:end] for start, end in cuts} | {b" h", b" he"})
    rng.shuffle(tokens)
    return Vocabulary.from_tokens([b"", *tokens, b""], control={"bos": 0, "eos": len(tokens) + 1})


def encode(
    vocabulary: Vocabulary, text: bytes, rng: np.random.Generator, *, dummy_prefix: bool = False, start_token: bool = False
) -> Encoding:
    """Cut a text into tokens at random; with a dummy prefix a space is written before it."""
    ids_of: dict[bytes, int] = {written: token_id for token_id, written in enumerate(token_bytes(vocabulary)) if written}
    written, at, ids, spans = b" " * dummy_prefix + text, 0, [], []
    while at < len(written):
        lengths = [n for n in range(1, 8) if written[at : at + n] in ids_of and at + n <= len(written)]
        length = int(rng.choice(lengths))
        ids.append(ids_of[written[at : at + length]])
        spans.append((max(at - dummy_prefix, 0), at + length - dummy_prefix))
        at += length
    if start_token:
        ids, spans = [vocabulary.control["bos"], *ids], [(-1, -1), *spans]
    starts, ends = np.array(spans, np.int64).reshape(-1, 2).T
    return Encoding(np.array(ids, np.int64), starts, ends)


def random_rows(rng: np.random.Generator, vocabulary: Vocabulary, encoding: Encoding, k: int = 6) -> Rows:
    """Rows that a model could have given: candidates that share beginnings with what followed, which is among them in half of the rows."""
    text = np.flatnonzero(encoding.starts >= 0)
    next_ids = encoding.ids[text]
    alphabetical = np.array(sorted(range(vocabulary.size), key=token_bytes(vocabulary).__getitem__))
    place = np.argsort(alphabetical)[next_ids]
    steps = np.array([rng.permutation(np.arange(-k, k + 1))[:k] for _ in text], np.int64).reshape(len(text), k)
    ids = alphabetical[(place[:, None] + steps) % vocabulary.size]
    probs = rng.dirichlet(np.full(k + 1, 0.7), len(text)).reshape(len(text), k + 1)
    followed = np.where(steps == 0, probs[:, :k], 0.0).sum(1)
    followed = np.where(followed > 0, followed, probs[:, k] * rng.uniform(0.1, 0.9, len(text)))
    order = np.argsort(-probs[:, :k], axis=1)
    ids, kept = np.take_along_axis(ids, order, 1), np.take_along_axis(probs[:, :k], order, 1)
    topk = TopK(ids, np.log(kept).astype(np.float32), np.log(probs[:, k]).astype(np.float32), vocabulary.size)
    return Rows(encoding.starts[text], encoding.ends[text], next_ids, -np.log(followed).astype(np.float32), topk)


def total_mass(topk: TopK) -> np.ndarray:
    return np.exp(topk.log_probs.astype(np.float64)).sum(1) + np.exp(topk.tail.astype(np.float64))


def test_by_hand() -> None:
    source, target = Vocabulary.from_tokens([b"abc", b"", b"bc", b"ca"]), Vocabulary.from_tokens([b"c", b"a", b"", b"bc", b" a"])
    pair = build_pair(source, target, longest_first(target))
    assert pair.suffix_target.tolist() == [1, 3, 0, 3, 0, 0, 1]  # abc bc c | bc c | ca a
    assert pair.prefixed_target is not None
    assert pair.prefixed_target.tolist() == [4, -1, -1, -1]  # " abc" begins with " a", the target has no " b", no " c", no " "
    assert pair.whole_target.tolist() == [1, -1, 3, 0]


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_slow_loop_over_all_tokens_and_cuts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = toy_vocabulary(rng), toy_vocabulary(rng)
    first = longest_first(target)
    pair = build_pair(source, target, first)
    named: dict[bytes, int] = {}
    for token_id, written in enumerate(token_bytes(source)):
        for cut in range(len(written)):
            slot = source.offsets[token_id] + cut
            assert pair.suffix_target[slot] == first([written[cut:]])[0]
            assert named.setdefault(written[: cut + 1], int(pair.prefix_node[slot])) == pair.prefix_node[slot]
    assert len(set(named.values())) == len(named)


@pytest.mark.parametrize("seed", range(3))
def test_beginnings_and_rests_equal_those_of_byte_strings(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = toy_vocabulary(rng), toy_vocabulary(rng)
    pair, written = build_pair(source, target, longest_first(target)), token_bytes(source)
    followed = np.array([n for n in range(source.size) if len(written[n]) > 2])
    cut = np.array([rng.integers(1, len(written[n])) for n in followed])
    ids = rng.integers(0, source.size, (40, len(followed)))
    begins = np.array([[written[i].startswith(written[f][:c]) for i, f, c in zip(row, followed, cut, strict=True)] for row in ids])
    assert (pair.begins_alike(ids, followed, cut) == begins).all()
    which = np.nonzero(begins)
    rest = [written[i][c:] for i, c in zip(ids[which], cut[which[1]], strict=True)]
    assert pair.target_of_rest(ids[which], cut[which[1]]).tolist() == longest_first(target)(rest).tolist()


def test_the_same_vocabulary_maps_each_whole_token_to_itself_even_if_two_write_the_same() -> None:
    twins = Vocabulary.from_tokens([b"\n", b"a", b"\n"], strings=["<0x0A>", "a", "\n"])
    assert build_pair(twins, twins, longest_first(twins)).whole_target.tolist() == [0, 1, 2]


def test_of_two_tokens_with_the_same_bytes_the_tokenizer_decides() -> None:
    twins = Vocabulary.from_tokens([b"\n", b"a", b"\n"], strings=["<0x0A>", "a", "\n"])
    source = Vocabulary.from_tokens([b"a\n"])
    assert suffix_targets(source, twins, lambda strings: np.full(len(strings), 2)).tolist() == [2, 2]
    assert suffix_targets(source, twins, lambda strings: np.full(len(strings), 1)).tolist() == [1, 0]  # "a" does not write "\n"


def test_large_vocabularies_do_not_mix_up_what_was_asked() -> None:
    """Questions are numbers beyond 32 bits: prefixes of the target times tokens of the source."""
    letters = [bytes([a, b]) for a in range(256) for b in range(256)]
    source, target = Vocabulary.from_tokens(letters), Vocabulary.from_tokens([a + b for a, b in pairwise(letters)])
    tables = np.zeros(len(source.flat), np.int64)
    asked: list[bytes] = []

    def number(strings: Sequence[bytes]) -> np.ndarray:
        asked.extend(strings)
        return np.arange(len(asked) - len(strings), len(asked))

    pair = Pair(source, target, tables, tables, first_pieces=number)
    written = np.tile(np.arange(target.size), 2)
    first = pair.first_of_both(written, np.repeat([3, 4], target.size), np.full(len(written), 7))
    strings = [
        target.bytes_of(i)[:n] + source.bytes_of(7) for i, n in zip(written.tolist(), np.repeat([3, 4], target.size).tolist(), strict=True)
    ]
    assert [asked[i] for i in first.tolist()] == strings
    assert len(asked) == len(set(strings))


def test_arrays_are_all_that_is_needed_to_build_it_again() -> None:
    rng = np.random.default_rng(0)
    source, target = toy_vocabulary(rng), toy_vocabulary(rng)
    pair = build_pair(source, target, longest_first(target))
    again = Pair.from_arrays(source, target, pair.to_arrays())
    assert again.to_arrays().keys() == {"suffix_target", "prefix_node", "prefixed_target"}
    assert all((again.to_arrays()[name] == table).all() for name, table in pair.to_arrays().items())


def test_empty_vocabularies_have_no_nodes() -> None:
    assert prefix_nodes(Vocabulary.from_tokens([b"", b""])).tolist() == []


def test_tables_of_another_vocabulary_are_refused() -> None:
    source, target = Vocabulary.from_tokens([b"ab", b"c"]), Vocabulary.from_tokens([b"a"])
    nodes = prefix_nodes(source)
    with pytest.raises(ValueError, match="2 suffix targets and 2 prefix nodes for a source vocabulary of 3 bytes"):
        Pair(source, target, nodes[:2], nodes[:2])
    with pytest.raises(ValueError, match="1 prefixed targets for 2 source tokens"):
        Pair(source, target, nodes, nodes, prefixed_target=np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="a map 3 -> 1 between vocabularies of 2 and 1 tokens"):
        Pair(source, target, nodes, nodes, VocabularyMap.from_single(np.zeros(3, np.int64), 1, "exact"))
