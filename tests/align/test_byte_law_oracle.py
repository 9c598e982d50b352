"""The byte law against the truth: toy worlds in which everything that a source could write is enumerated.

A world is a source that writes sequences of tokens, each with its probability. From all of them follow, exactly, its rows, and what a target
that cuts text its own way should expect next. So every approximation of the alignment has a size here.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.counts import Counts, pairs_on_bytes
from lmfuse.align.first_piece import first_piece_map
from lmfuse.align.join import Join
from lmfuse.align.longer import longer_map
from lmfuse.align.pair import Pair, build_pair
from lmfuse.types import Encoding, Rows, TopK, Vocabulary
from tests.align.test_pair import longest_first

READ = 4  # bytes of each text that are looked at; the rest is there so that the last token of these is known


class World:
    """A source over some tokens that writes ``num_tokens`` of them by a random Markov chain, and a target."""

    def __init__(self, source: list[bytes], target: list[bytes], num_tokens: int, seed: int, *, canonical: bool) -> None:
        rng = np.random.default_rng(seed)
        self.source, self.target = Vocabulary.from_tokens(source), Vocabulary.from_tokens(target)
        first, step = rng.dirichlet(np.ones(len(source))), rng.dirichlet(np.ones(len(source)), len(source))
        self.sequences: dict[tuple[int, ...], float] = {}
        for tokens in product(range(len(source)), repeat=num_tokens):
            text = b"".join(source[i] for i in tokens)
            if not canonical or self.cut(text, self.source)[:-1] == list(tokens[: len(self.cut(text, self.source)) - 1]):
                self.sequences[tokens] = float(first[tokens[0]] * np.prod(step[list(tokens[:-1]), list(tokens[1:])]))
        total = sum(self.sequences.values())
        self.sequences = {tokens: p / total for tokens, p in self.sequences.items()}

    @staticmethod
    def cut(text: bytes, vocabulary: Vocabulary) -> list[int]:
        first, at, ids = longest_first(vocabulary), 0, []
        while at < len(text):
            ids.append(int(first([text[at:]])[0]))
            at += int(vocabulary.lengths[ids[-1]])
        return ids

    @cached_property
    def texts(self) -> list[tuple[tuple[int, ...], list[int], float]]:
        """Every sequence, the target's tokens of its text, and its probability."""
        written = self.source.bytes_of
        return [(s, self.cut(b"".join(written(i) for i in s), self.target), p) for s, p in self.sequences.items()]

    def expects(self, tokens: list[int], side: int) -> np.ndarray:
        """The exact distribution of the token after these: the source's own (side 0) or the target's (side 1)."""
        law = self.after[side][tuple(tokens)]
        return law / law.sum()

    @cached_property
    def after(self) -> list[dict[tuple[int, ...], np.ndarray]]:
        """For each side, by the tokens before: the probability of each next token together with these."""
        found = []
        for side, vocabulary in ((0, self.source), (1, self.target)):
            laws: dict[tuple[int, ...], np.ndarray] = defaultdict(lambda size=vocabulary.size: np.zeros(size))
            for both in self.texts:
                for n, token in enumerate(both[side]):
                    laws[tuple(both[side][:n])][token] += both[2]
            found.append(laws)
        return found

    def encoding(self, ids: list[int], vocabulary: Vocabulary) -> Encoding:
        ends = np.cumsum(vocabulary.lengths[ids])
        return Encoding(np.array(ids), ends - vocabulary.lengths[ids], ends)

    def rows(self, ids: list[int]) -> Rows:
        """The source's rows over a text that it has cut so, complete."""
        laws = np.array([self.expects(ids[:n], 0) for n in range(len(ids))])
        with np.errstate(divide="ignore"):
            logs = np.log(laws).astype(np.float32)
        topk = TopK(np.tile(np.arange(self.source.size), (len(ids), 1)), logs, np.full(len(ids), -np.inf, np.float32), self.source.size)
        encoding = self.encoding(ids, self.source)
        return Rows(encoding.starts, encoding.ends, encoding.ids, -logs[np.arange(len(ids)), ids], topk)

    @cached_property
    def longer(self) -> Pair:
        """The pair with shares counted over texts of the world, as a corpus would have them."""
        counts = Counts.nothing(self.source.size, self.target.size)
        rng = np.random.default_rng(0)
        p = np.array([p for _, _, p in self.texts])
        for n in rng.choice(len(p), 3000, p=p / p.sum()):
            theirs, ours, _ = self.texts[n]
            counts = counts.plus(*pairs_on_bytes(self.encoding(list(theirs), self.source), self.encoding(ours[:-1], self.target)))
        tables = build_pair(self.source, self.target, longest_first(self.target)).to_arrays()
        shares = longer_map(counts, self.source, self.target)
        return Pair.from_arrays(self.source, self.target, tables, None, shares, longest_first(self.target))

    @cached_property
    def plain(self) -> Pair:
        first = longest_first(self.target)
        return build_pair(self.source, self.target, first, first_piece_map(self.source, self.target, first))

    def compare(self, method: ByteLaw | Join, pair: Pair, draws: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
        """What the alignment teaches at the first tokens of some texts, the truth, and the alignment's tail."""
        rng = np.random.default_rng(1)
        p = np.array([p for _, _, p in self.texts])
        found = []
        for n in rng.choice(len(p), draws, p=p / p.sum()):
            theirs, ours, _ = self.texts[n]
            aligned = method(self.rows(list(theirs)), self.encoding(ours, self.target), pair)
            for token in range(len(ours)):
                if int(self.target.lengths[ours[:token]].sum()) > READ:
                    break
                taught = np.zeros(self.target.size)
                np.add.at(taught, aligned.topk.ids[token], np.exp(aligned.topk.log_probs[token]))
                found.append((taught, self.expects(ours[:token], 1), float(np.exp(aligned.topk.tail[token]))))
        return found

    def distances(self, method: ByteLaw | Join, pair: Pair, draws: int = 25) -> np.ndarray:
        """Half the L1 distance between what the alignment teaches and the truth; 1 where nothing is taught."""
        return np.array([0.5 * (np.abs(taught - truth).sum() + tail) for taught, truth, tail in self.compare(method, pair, draws)])


BYTES = [b"a", b"b", b"c"]


@pytest.mark.parametrize("source", [[b"a", b"b", b"c"], [b"a", b"ba", b"bb", b"c"], [b"aa", b"ab", b"b", b"ca", b"cb"]])
def test_exact_where_no_token_begins_another_and_the_target_reads_bytes(source: list[bytes]) -> None:
    """No approximation is left: neither map nor hole, and every text has one segmentation."""
    world = World(source, BYTES, num_tokens=6, seed=0, canonical=False)
    assert_allclose(world.distances(ByteLaw(k=8), world.plain), 0.0, atol=2e-3)  # what is worth less than 0.001 is left out
    if max(map(len, source)) > 1:
        assert world.distances(Join(k=8), world.plain).mean() > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_what_is_said_is_true_where_the_target_reads_bytes_and_the_rest_is_in_the_tail(seed: int) -> None:
    """Where `ab` followed, nobody knows what would have come after `a`: that path is unknown, and nothing else is."""
    world = World([b"a", b"b", b"ab", b"c"], BYTES, num_tokens=7, seed=seed, canonical=True)
    for taught, truth, tail in world.compare(ByteLaw(k=8), world.plain, draws=25):
        assert (taught <= truth + 2e-3).all()
        assert_allclose(taught.sum() + tail, 1.0, atol=1e-5)
    assert world.distances(ByteLaw(k=8), world.plain).mean() < 0.5 * world.distances(Join(k=8), world.plain).mean()


WORLDS = {
    "numbers": ([b"1", b"2", b"x"], [b"1", b"2", b"x", b"12", b"21", b"11"]),
    "words": ([b"a", b"b", b"ab", b"ba", b"aab"], [b"a", b"b", b"bb", b"aba", b"baa"]),
    "crossing": ([b"a", b"b", b"ab", b"bb"], [b"a", b"b", b"ba", b"bab"]),
}


@pytest.mark.parametrize("canonical", [True, False])
@pytest.mark.parametrize("name", WORLDS)
def test_nearer_to_the_truth_than_the_plain_join_and_nearer_still_with_shares(name: str, canonical: bool) -> None:
    """Worlds as ambiguous as can be, so distances are large: what a token that did not follow would have led to, no row tells."""
    joined, lawful, shared = [], [], []
    for seed in range(2):
        world = World(*WORLDS[name], num_tokens=6 if len(WORLDS[name][0]) < 5 else 5, seed=seed, canonical=canonical)
        joined.append(world.distances(Join(k=9), world.plain, draws=8).mean())
        lawful.append(world.distances(ByteLaw(k=9), world.plain, draws=8).mean())
        shared.append(world.distances(ByteLaw(k=9), world.longer, draws=8).mean())
    assert np.mean(lawful) < np.mean(joined)
    assert np.mean(shared) < np.mean(lawful)


@pytest.mark.parametrize("name", WORLDS)
def test_the_cost_of_a_text_is_the_same_however_it_is_cut(name: str) -> None:
    world = World(*WORLDS[name], num_tokens=5, seed=0, canonical=False)
    for theirs, ours, _ in world.texts[:: len(world.texts) // 9]:
        rows = world.rows(list(theirs))
        aligned = ByteLaw()(rows, world.encoding(ours, world.target), world.plain)
        assert_allclose(aligned.truth_nll_nats.sum(), rows.nll_nats.sum(), rtol=1e-4)
        bytewise = list(b"".join(world.target.bytes_of(i) for i in ours))
        letters = Vocabulary.from_tokens([bytes([i]) for i in sorted(set(bytewise))])
        pair = build_pair(world.source, letters, longest_first(letters))
        by_bytes = ByteLaw()(rows, world.encoding([sorted(set(bytewise)).index(i) for i in bytewise], letters), pair)
        ends = np.cumsum(world.target.lengths[ours])
        spans = np.add.reduceat(by_bytes.truth_nll_nats.astype(np.float64), np.append(0, ends[:-1]))
        assert_allclose(spans, aligned.truth_nll_nats, atol=2e-5)  # every target token costs what its bytes cost
