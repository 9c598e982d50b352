"""The byte law against hand-made numbers, a slow reading of its definition, and true byte models."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.counts import Counts
from lmfuse.align.exact import token_bytes
from lmfuse.align.longer import longer_map
from lmfuse.align.pair import Pair, build_pair, prefix_nodes
from lmfuse.align.spans import align_many
from lmfuse.bytes import ByteTokenizer
from lmfuse.types import Alignment, Document, Encoding, Rows, TopK, Vocabulary, VocabularyMap
from tests.align.test_pair import TEXT, encode, longest_first, random_rows, total_mass, toy_vocabulary
from tests.fakes import KINDS, shared

LOSSLESS = ("gpt2", "gpt_neox", "llama2", "mistral", "qwen2_5")
ALL = (*LOSSLESS, "t5", "bert_uncased")


def rows_of(vocabulary: Vocabulary, *said: tuple[str, dict[str, float]]) -> Rows:
    """Rows from (what followed, {candidate: probability}); the rest is the tail."""
    width = max(len(candidates) for _, candidates in said)
    topk = TopK.unknown(len(said), width, vocabulary.size)
    for row, (_, candidates) in enumerate(said):
        for slot, (token, p) in enumerate(candidates.items()):
            topk.ids[row, slot], topk.log_probs[row, slot] = vocabulary.strings.index(token), np.log(p)
        topk.tail[row] = np.log(max(1 - sum(candidates.values()), 1e-30))
    ends = np.cumsum([len(token) for token, _ in said])
    starts = np.append(0, ends[:-1])
    ids = np.array([vocabulary.strings.index(token) for token, _ in said])
    nll = -np.log(np.array([candidates[token] for token, candidates in said], np.float32))
    return Rows(starts, ends, ids, nll, topk)


def said(alignment: Alignment, vocabulary: Vocabulary) -> list[dict[str, float]]:
    """What each row says, by token."""
    topk = alignment.topk
    return [
        {vocabulary.strings[i]: round(float(np.exp(lp)), 5) for i, lp in zip(ids, log_probs, strict=True) if np.isfinite(lp)}
        for ids, log_probs in zip(topk.ids, topk.log_probs, strict=True)
    ]


def test_hello_world_by_hand() -> None:
    source = Vocabulary.from_tokens([b"hello", b"help", b" wor", b" war", b"ld", b"d"])
    target = Vocabulary.from_tokens([b" hel", b"lo", b" world", b"p", b" w", b"ld", b"d", b"l", b"o", b"r"])
    rows = rows_of(source, ("hello", {"hello": 0.5, "help": 0.25}), (" wor", {" wor": 0.6, " war": 0.2}), ("ld", {"ld": 0.8, "d": 0.1}))
    encoding = Encoding(np.array([0, 1, 2]), np.array([0, 3, 5]), np.array([3, 5, 11]))
    aligned = ByteLaw()(rows, encoding, build_pair(source, target, longest_first(target)))
    assert aligned.source_row.tolist() == [0, 0, 1]
    assert said(aligned, target) == [{" hel": 0.75}, {"lo": 0.66667, "p": 0.33333}, {" world": 0.48, " w": 0.26}]
    assert_allclose(np.exp(-aligned.truth_nll_nats), [0.75, 0.5 / 0.75, 0.6 * 0.8], rtol=1e-5)
    assert_allclose(np.exp(aligned.topk.tail), [0.25, 0.0, 0.2 + 0.6 * 0.1], atol=1e-6)  # " word" begins with " w", nothing was said of 0.1
    assert aligned.lost_mass.tolist() == [0.0, 0.0, 0.0]


def test_without_a_map_for_the_dummy_prefix_other_candidates_go_to_the_tail_and_are_counted() -> None:
    source, target = Vocabulary.from_tokens([b"ab", b"cd"]), Vocabulary.from_tokens([b" ab", b" cd", b"cd"])
    rows = rows_of(source, ("ab", {"ab": 0.5, "cd": 0.25}))
    pair = build_pair(source, target, longest_first(target))
    encoding = Encoding(np.array([0]), np.array([0]), np.array([2]))
    assert said(ByteLaw()(rows, encoding, pair), target) == [{" ab": 0.5, " cd": 0.25}]
    blind = ByteLaw()(rows, encoding, replace(pair, prefixed_target=None))
    assert said(blind, target) == [{" ab": 0.5}]
    assert blind.lost_mass.tolist() == [0.25]


def test_a_newline_that_followed_is_not_taught_where_the_target_writes_it_with_the_indentation() -> None:
    source = Vocabulary.from_tokens([b"\n", b"    ", b"\n\n", b"x"])
    target = Vocabulary.from_tokens([b"\n", b"\n    ", b"\n\n", b"x"])
    rows = rows_of(source, ("\n", {"\n": 0.7, "\n\n": 0.1, "x": 0.1}), ("    ", {"    ": 0.9}))
    aligned = ByteLaw()(rows, Encoding(np.array([1]), np.array([0]), np.array([5])), build_pair(source, target, longest_first(target)))
    assert said(aligned, target) == [{"\n    ": 0.63, "\n\n": 0.1, "x": 0.1}]
    assert_allclose(np.exp(aligned.topk.tail), 0.1 + 0.07, rtol=1e-5)
    assert aligned.lost_mass.tolist() == [0.0]


def test_a_source_with_a_dummy_prefix_is_conditioned_on_it_and_keeps_its_tail() -> None:
    source, target = Vocabulary.from_tokens([b" ab", b" cd", b"ab"]), Vocabulary.from_tokens([b"ab", b"cd"])
    rows = rows_of(source, (" ab", {" ab": 0.5, " cd": 0.25, "ab": 0.05}))
    rows = replace(rows, ends=rows.ends - 1)
    aligned = ByteLaw()(rows, Encoding(np.array([0]), np.array([0]), np.array([2])), build_pair(source, target, longest_first(target)))
    assert said(aligned, target) == [{"ab": round(0.5 / 0.95, 5), "cd": round(0.25 / 0.95, 5)}]
    assert_allclose(np.exp(aligned.topk.tail), 0.2 / 0.95, rtol=1e-5)
    assert_allclose(np.exp(-aligned.truth_nll_nats), 0.5, rtol=1e-6)  # the prefix is part of the cost of the document


def test_the_true_token_keeps_a_slot_and_the_lightest_candidate_leaves() -> None:
    vocabulary = Vocabulary.from_tokens([b"a", b"b", b"c", b"d"])
    topk = TopK(np.array([[0, 1]]), np.log(np.array([[0.6, 0.3]], np.float32)), np.log(np.array([0.1], np.float32)), 4)
    rows = Rows(np.array([0]), np.array([1]), np.array([2]), -np.log(np.array([0.05], np.float32)), topk)
    encoding = Encoding(np.array([2]), np.array([0]), np.array([1]))
    pair = build_pair(vocabulary, vocabulary, longest_first(vocabulary))
    assert said(ByteLaw()(rows, encoding, pair), vocabulary) == [{"a": 0.6, "c": 0.05}]
    assert said(ByteLaw(k=3)(rows, encoding, pair), vocabulary) == [{"a": 0.6, "b": 0.3, "c": 0.05}]
    assert said(ByteLaw(k=1)(rows, encoding, pair), vocabulary) == [{"c": 0.05}]
    assert_allclose(total_mass(ByteLaw(k=1)(rows, encoding, pair).topk), 1.0, rtol=1e-6)


def test_a_prefix_that_the_target_would_write_longer_is_not_counted_twice() -> None:
    source = Vocabulary.from_tokens([b"abc", b"abd"])
    target = Vocabulary.from_tokens([b"ab", b"c", b"abd"])
    rows = rows_of(source, ("abc", {"abc": 0.5, "abd": 0.5 - 1e-7}))
    aligned = ByteLaw()(
        rows, Encoding(np.array([0, 1]), np.array([0, 2]), np.array([2, 3])), build_pair(source, target, longest_first(target))
    )
    assert said(aligned, target)[0] == {"ab": 0.5, "abd": 0.5}  # the law of the bytes `ab` is 1, but the target writes `abd` as one token
    assert said(aligned, target)[1] == {"c": 1.0}  # so where it has written `ab`, the source can only have meant `abc`
    assert_allclose(total_mass(aligned.topk), 1.0, rtol=1e-6)


class SlowLaw:
    """The law token by token, from byte strings; what is worth too little for the fast one is not left out."""

    def __init__(self, rows: Rows, target: Encoding, pair: Pair) -> None:
        self.rows, self.target = rows, target
        self.source, self.written, self.pair = token_bytes(pair.source), token_bytes(pair.target), pair
        self.first = longest_first(pair.target)
        self.classes = {i: pair.target.control.get(name, -1) for name, i in pair.source.control.items()}
        self.tokens = [self.source[i] for i in rows.next_ids]
        self.prefix = [len(self.tokens[u]) - int(rows.ends[u] - rows.starts[u]) for u in range(len(rows))]
        self.support = [self.kept(u) for u in range(len(rows))]
        self.places = [self.place(t) for t in range(len(target.ids))]
        self.joined = {u for u, consumed in self.places if consumed == 0}

    def kept(self, u: int) -> tuple[dict[int, float], float]:
        topk, followed = self.rows.topk, int(self.rows.next_ids[u])
        kept = {int(i): float(np.exp(lp)) for i, lp in zip(topk.ids[u], topk.log_probs[u], strict=True)}
        p = float(np.exp(-self.rows.nll_nats[u]))
        tail = float(np.exp(topk.tail[u])) - (0.0 if followed in kept else p)
        return kept | {followed: p}, tail

    def begin_with(self, u: int, head: bytes) -> dict[int, float]:
        return {i: p for i, p in self.support[u][0].items() if self.source[i].startswith(head) and self.source[i]}

    def place(self, t: int) -> tuple[int, int]:
        """The row that speaks for a target token and how many bytes of its token are written; -1 bytes where only the target has a prefix."""
        rows, a, b = self.rows, int(self.target.starts[t]), int(self.target.ends[t])
        has_prefix = a >= 0 and len(self.written[self.target.ids[t]]) > b - a
        begins = [u for u in range(len(rows)) if rows.starts[u] == a and self.prefix[u]] if has_prefix else []
        opens = [u for u in range(len(rows)) if rows.starts[u] <= a < rows.ends[u]]
        if a < 0 or not (begins or opens):
            return -1, -1
        u = (begins or opens)[0]
        return u, (0 if begins else -1) if has_prefix else a - int(rows.starts[u]) + self.prefix[u]

    def cost(self, at: int, behind_prefix: bool) -> float:
        rows, everyone = self.rows, range(len(self.rows))
        bare = [u for u in everyone if rows.starts[u] == rows.ends[u] == at]
        total = sum(float(rows.nll_nats[u]) for u in everyone if rows.ends[u] <= at and (u not in bare or behind_prefix))
        for u in everyone:
            inside = rows.starts[u] < at < rows.ends[u]
            if inside or (behind_prefix and rows.starts[u] == at < rows.ends[u] and self.prefix[u]):
                mass = sum(self.begin_with(u, self.tokens[u][: at - rows.starts[u] + self.prefix[u]]).values())
                total -= np.log(mass if inside else mass + self.support[u][1])
        return total

    def nll(self, t: int) -> float:
        rows, starts, ends = self.rows, self.target.starts, self.target.ends
        a, b = int(starts[t]), int(ends[t])
        u, consumed = self.places[t]
        covered = all(any(rows.starts[v] <= x < rows.ends[v] for v in range(len(rows))) for x in range(a, b))
        if u < 0 or not covered or (a == b and consumed < 0):
            return float("nan")
        return self.cost(b, a == b) - self.cost(a, t > 0 and starts[t - 1] == ends[t - 1] == a)

    def stops(self, i: int) -> list[int]:
        """Where the target's own pieces of a source token end."""
        found, at = [], 0
        while at < len(self.source[i]):
            piece = int(self.first([self.source[i][at:]])[0])
            if piece < 0:
                break
            at += len(self.written[piece])
            found.append(at)
        return found

    def row(self, t: int) -> dict[int, float]:
        rows, true_id, b = self.rows, int(self.target.ids[t]), int(self.target.ends[t])
        u, consumed = self.places[t]
        (kept, tail), followed, cut = self.support[u], int(rows.next_ids[u]), max(consumed, 0)
        law: dict[int, float] = defaultdict(float)
        if cut:
            begun = self.begin_with(u, self.tokens[u][:cut])
            kept = {i: p for i, p in begun.items() if i == followed or u not in self.joined or cut in self.stops(i)}
            tail = tail if self.target.starts[t] == rows.starts[u] else 0.0
        norm = sum(kept.values()) + tail if cut else 1.0
        for i, p in kept.items():
            rest = b" " * (consumed < 0) + self.source[i][cut:] if self.source[i] else b""
            if i != followed:
                for onto, share in self.goes_to(i, rest, consumed).items():
                    law[onto] += share * p / norm
        through = self.add_earlier_paths(law, t)
        pending, row = through * kept[followed] / norm, u
        while rows.ends[row] < b:
            row += 1
            before = self.written[true_id][: len(self.written[true_id]) - (b - int(rows.starts[row]))]
            for i, p in self.support[row][0].items():
                if i != rows.next_ids[row]:
                    law[int(self.first([before + self.source[i]])[0])] += pending * p
            pending *= self.support[row][0][int(rows.next_ids[row])]
        law[true_id] += pending
        if self.target.starts[t] == b < rows.ends[u]:  # a dummy prefix alone, which the tail is believed to share
            return {i: p for i, p in law.items() if i >= 0 and i != true_id and p > 0} | {
                true_id: law[true_id] + 1 - sum(p for i, p in law.items() if i >= 0)
            }
        law[-1] = 1 - sum(p for i, p in law.items() if i >= 0)
        return {i: p for i, p in law.items() if p > 0}

    def goes_to(self, i: int, rest: bytes, consumed: int) -> dict[int, float]:
        """Where a candidate that did not follow goes: to its class, to its first piece, or shared among longer tokens."""
        if not self.source[i]:
            return {self.classes.get(i, -1): 1.0}
        shares = self.pair.longer
        if consumed == 0 and shares is not None and shares.indptr[i] < shares.indptr[i + 1]:
            entries = range(shares.indptr[i], shares.indptr[i + 1])
            return {int(shares.target_ids[n]): float(shares.weights[n]) for n in entries}
        return {int(self.first([rest])[0]): 1.0}

    def add_earlier_paths(self, law: dict[int, float], t: int) -> float:
        u, consumed = self.places[t]
        if consumed != 0 or u == 0 or self.rows.ends[u - 1] != self.rows.starts[u] or u - 1 not in self.joined:
            return 1.0
        head = self.tokens[u - 1]
        longer = {
            i: p for i, p in self.begin_with(u - 1, head).items() if len(head) in [s for s in self.stops(i)[:2] if s < len(self.source[i])]
        }
        p_followed = self.support[u - 1][0][int(self.rows.next_ids[u - 1])]
        total = p_followed + sum(longer.values())
        for i in law:
            law[i] *= p_followed / total
        for i, p in longer.items():
            law[int(self.first([self.source[i][len(head) :]])[0])] += p / total
        return p_followed / total


def random_shares(rng: np.random.Generator, source: Vocabulary, target: Vocabulary) -> VocabularyMap:
    """What a corpus could say of the tokens that the target may go on behind."""
    pairs = [(s, t) for s in range(source.size) for t in range(target.size)
             if source.bytes_of(s) and target.bytes_of(t).startswith(source.bytes_of(s)) and rng.random() < 0.7]  # fmt: skip
    ids = np.repeat(np.array(pairs), rng.integers(1, 9, len(pairs)), axis=0)
    shares = longer_map(Counts.nothing(source.size, target.size).plus(ids[:, 0], ids[:, 1]), source, target)
    assert len(shares.target_ids)
    return shares


@pytest.mark.parametrize("source_prefix", [False, True])
@pytest.mark.parametrize("target_prefix", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_slow_law(seed: int, source_prefix: bool, target_prefix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmfuse.align.expand.WORTH", 0.0)
    rng = np.random.default_rng(seed)
    source, target = toy_vocabulary(rng), toy_vocabulary(rng)
    pair = build_pair(source, target, longest_first(target))
    if seed % 2:
        pair = replace(pair, longer=random_shares(rng, source, target))
    for text in (TEXT, b"hello world", b" hello", b"\nhello"):
        rows = random_rows(rng, source, encode(source, text, rng, dummy_prefix=source_prefix))
        if seed == 2 and len(rows) > 9:  # a hole, and nothing before the first token
            rows = Rows(*(getattr(rows, name)[np.r_[1:5, 7 : len(rows)]] for name in ("starts", "ends", "next_ids", "nll_nats", "topk")))
        encoding = encode(target, text, rng, dummy_prefix=target_prefix, start_token=True)
        aligned = ByteLaw(k=60)(rows, encoding, pair)
        slow = SlowLaw(rows, encoding, pair)
        nlls = [slow.nll(t) for t in range(len(encoding.ids))]
        assert (aligned.source_row >= 0).tolist() == [not np.isnan(nll) for nll in nlls]
        assert_allclose(aligned.truth_nll_nats, nlls, atol=2e-5)
        for t in np.flatnonzero(aligned.taught):
            mass = np.exp(aligned.topk.log_probs[t])
            for i, p in slow.row(t).items():
                got = np.exp(aligned.topk.tail[t]) if i < 0 else mass[(aligned.topk.ids[t] == i) & (mass > 0)].sum()
                assert_allclose(got, p, atol=1e-5)
        assert_allclose(total_mass(aligned.topk), 1.0, atol=1e-5)


def test_shares_and_earlier_paths_together_are_one_distribution() -> None:
    """`a` or `ab` stood before: what goes on there and what begins here are weighed, the shares of `1` with the latter."""
    source, target = Vocabulary.from_tokens([b"a", b"ab", b"1", b"x"]), Vocabulary.from_tokens([b"a", b"b", b"1", b"12", b"x"])
    rows = rows_of(source, ("a", {"a": 0.5, "ab": 0.5}), ("x", {"1": 0.6, "x": 0.3}))
    shares = longer_map(Counts.nothing(4, 5).plus(np.array([2]), np.array([3])), source, target)
    pair = replace(build_pair(source, target, longest_first(target)), longer=shares)
    aligned = ByteLaw(k=6)(rows, Encoding(np.array([0, 4]), np.array([0, 1]), np.array([1, 2])), pair)
    assert said(aligned, target)[1] == {"b": 0.5, "x": 0.15, "1": 0.15, "12": 0.15}
    assert_allclose(np.exp(aligned.topk.tail[1]), 0.05, rtol=1e-5)


def test_an_earlier_path_counts_only_where_the_target_began_with_it() -> None:
    source = Vocabulary.from_tokens([b"x", b"a", b"ab", b"c"])
    target = Vocabulary.from_tokens([b"x", b"a", b"b", b"c", b"xa", b"xab"])
    rows = rows_of(source, ("x", {"x": 0.9}), ("a", {"a": 0.5, "ab": 0.49}), ("c", {"c": 0.9}))
    pair = build_pair(source, target, longest_first(target))
    aligned = ByteLaw(k=6)(rows, Encoding(np.array([4, 3]), np.array([0, 2]), np.array([2, 3])), pair)
    assert said(aligned, target) == [{"xab": 0.441, "xa": 0.45}, {"c": 0.9}]  # `ab` went to `xab`, and is not `b` as well


def test_the_end_of_a_text_goes_to_the_targets_own() -> None:
    source = Vocabulary.from_tokens([b"", b"a", b""], control={"eos": 0, "bos": 2})
    target = Vocabulary.from_tokens([b"a", b""], control={"eos": 1})
    topk = TopK(np.array([[0, 1, 2]]), np.log(np.array([[0.6, 0.2, 0.1]], np.float32)), np.log(np.array([0.1], np.float32)), 3)
    rows = Rows(np.array([0]), np.array([1]), np.array([1]), -np.log(np.array([0.2], np.float32)), topk)
    aligned = ByteLaw()(rows, Encoding(np.array([0]), np.array([0]), np.array([1])), build_pair(source, target, longest_first(target)))
    law = {int(i): float(p) for i, p in zip(aligned.topk.ids[0], np.exp(aligned.topk.log_probs[0]), strict=True) if p > 0}
    assert law == pytest.approx({1: 0.6, 0: 0.2})
    assert_allclose(aligned.lost_mass, 0.1, rtol=1e-5)  # the target has no token that begins a text


def markov_rows(vocabulary: Vocabulary, encoding: Encoding, step: np.ndarray, first: np.ndarray) -> Rows:
    """Complete distributions of a Markov chain over tokens."""
    probs = np.concatenate([first[None], step[encoding.ids[:-1]]]).astype(np.float64)
    ids = np.tile(np.arange(vocabulary.size), (len(probs), 1))
    topk = TopK(ids, np.log(probs).astype(np.float32), np.full(len(probs), -np.inf, np.float32), vocabulary.size)
    nll = -np.log(probs[np.arange(len(probs)), encoding.ids]).astype(np.float32)
    return Rows(encoding.starts, encoding.ends, encoding.ids, nll, topk)


@pytest.mark.parametrize("tokens", [[b"a", b"b"], [b"a", b"ba", b"bb"], [b"aa", b"ab", b"b"]])
def test_exact_for_sources_in_which_a_text_has_one_segmentation(tokens: list[bytes]) -> None:
    """The law equals what enumerating all that the source could write says about the target's bytes."""
    rng = np.random.default_rng(0)
    source = Vocabulary.from_tokens(tokens)
    target = Vocabulary.from_tokens([b"a", b"b", b"ab", b"bba", b"aab", b"bb"])
    first, step = rng.dirichlet(np.ones(len(tokens))), rng.dirichlet(np.ones(len(tokens)), len(tokens))
    everything: dict[bytes, float] = defaultdict(float)
    for sequence in product(range(len(tokens)), repeat=8):
        p = first[sequence[0]] * np.prod(step[list(sequence[:-1]), list(sequence[1:])])
        everything[b"".join(tokens[i] for i in sequence)] += p

    def begins(head: bytes) -> float:
        return sum(p for text, p in everything.items() if text.startswith(head))

    for draw in range(4):
        text = b"".join(tokens[i] for i in rng.integers(0, len(tokens), 4))
        rows = markov_rows(source, encode(source, text, rng), step, first)
        encoding = encode(target, text, rng)
        pair = build_pair(source, target, longest_first(target))
        aligned = ByteLaw()(rows, encoding, pair)
        truth = [begins(text[:b]) / begins(text[:a]) for a, b in zip(encoding.starts, encoding.ends, strict=True)]
        assert_allclose(np.exp(-aligned.truth_nll_nats), truth, rtol=1e-5, err_msg=f"{draw} {text!r}")


def test_single_byte_sources_give_single_byte_targets_their_exact_distribution() -> None:
    rng = np.random.default_rng(0)
    source = Vocabulary.from_tokens([b"a", b"b", b"c"])
    target = Vocabulary.from_tokens([b"c", b"a", b"b"])
    step = rng.dirichlet(np.ones(3), 3)
    rows = markov_rows(source, encode(source, b"abccba", rng), step, step[0])
    aligned = ByteLaw()(rows, encode(target, b"abccba", rng), build_pair(source, target, longest_first(target)))
    for row, ids, log_probs in zip(np.exp(rows.topk.log_probs), aligned.topk.ids, aligned.topk.log_probs, strict=True):
        assert_allclose(np.exp(log_probs)[np.argsort(ids)], row[[2, 0, 1]], rtol=1e-6)


def check_invariants(rows: Rows, encoding: Encoding, pair: Pair) -> Alignment:
    aligned = ByteLaw()(rows, encoding, pair)
    text = encoding.starts >= 0
    assert_allclose(np.nansum(aligned.truth_nll_nats.astype(np.float64)), rows.nll_nats.sum(dtype=np.float64), rtol=1e-5)
    assert (aligned.source_row[~text] == -1).all()
    assert_allclose(total_mass(aligned.topk), 1.0, atol=1e-5)
    on_truth = np.where(aligned.topk.ids == encoding.ids[:, None], np.exp(aligned.topk.log_probs), 0.0).sum(1)
    rows_say = -np.log(on_truth[aligned.taught]).sum(dtype=np.float64)
    assert rows_say <= rows.nll_nats.sum(dtype=np.float64) * (1 + 1e-5)  # the source's own path, and whatever else writes the same bytes
    return aligned


@pytest.mark.parametrize("source", sorted(set(KINDS) - {"wordpiece"}))
@pytest.mark.parametrize("target", sorted(set(KINDS) - {"wordpiece"}))
def test_a_documents_targets_cost_what_its_source_tokens_cost(source: str, target: str) -> None:
    rng = np.random.default_rng(0)
    ours, theirs = ByteTokenizer.from_tokenizer(KINDS[target]()), ByteTokenizer.from_tokenizer(KINDS[source]())
    pair = build_pair(theirs.vocabulary, ours.vocabulary, ours.first_pieces)
    for text in (TEXT.decode(), " starts with a space", "\n", "1", "東京🙂 and <unk></s>", "a"):
        document = Document.plain(text)
        rows = random_rows(rng, theirs.vocabulary, theirs.encode(document))
        aligned = check_invariants(rows, ours.encode(document), pair)
        text_tokens = ours.encode(document).starts != ours.encode(document).ends
        assert aligned.taught[text_tokens].all()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_same_tokenizer_changes_nothing(kind: str) -> None:
    rng = np.random.default_rng(0)
    tokenizer = ByteTokenizer.from_tokenizer(KINDS[kind]())
    vocabulary = tokenizer.vocabulary
    pair = build_pair(vocabulary, vocabulary, tokenizer.first_pieces)
    for text in (TEXT.decode(), " starts with a space", "\n"):
        encoding = tokenizer.encode(Document.plain(text))
        rows = random_rows(rng, vocabulary, encoding)
        aligned = ByteLaw(k=rows.topk.k + 1)(rows, encoding, pair)
        spoken = encoding.starts >= 0
        assert aligned.source_row[spoken].tolist() == list(range(len(rows)))
        assert_allclose(aligned.truth_nll_nats[spoken], rows.nll_nats, atol=1e-5)
        assert not aligned.lost_mass[spoken].any()
        assert_allclose(np.exp(aligned.topk.log_probs[spoken, :-1]), np.exp(rows.topk.log_probs), rtol=1e-5)
        assert (aligned.topk.ids[spoken, :-1] == rows.topk.ids).all()


def test_true_tokens_get_the_mass_that_the_source_gave_them() -> None:
    """Off-by-one guard: a row moved by one token would put the truth's probability elsewhere."""
    rng = np.random.default_rng(0)
    source, target = (Vocabulary.from_tokens([b"", *(bytes([b]) for b in order)]) for order in (range(256), range(255, -1, -1)))
    text = bytes(rng.integers(0, 256, 400).astype(np.uint8))
    rows = random_rows(rng, source, encode(source, text, rng), k=10)
    encoding = encode(target, text, rng)
    aligned = ByteLaw()(rows, encoding, build_pair(source, target, longest_first(target)))
    on_truth = np.where(aligned.topk.ids == encoding.ids[:, None], np.exp(aligned.topk.log_probs), 0.0).sum(1)
    assert_allclose(on_truth.mean(), np.exp(-rows.nll_nats).mean(), rtol=1e-5)
    assert_allclose(on_truth, np.exp(-rows.nll_nats), rtol=1e-4)


def test_lossy_tokenizers_leave_masked_spans_untaught() -> None:
    rng = np.random.default_rng(0)
    lossy, exact = (ByteTokenizer.from_tokenizer(KINDS[kind]()) for kind in ("wordpiece", "byte_bpe"))
    document = Document.plain(TEXT.decode())
    for theirs, ours in ((lossy, exact), (exact, lossy)):
        encoding = ours.encode(document)
        rows = random_rows(rng, theirs.vocabulary, theirs.encode(document))
        aligned = ByteLaw()(rows, encoding, build_pair(theirs.vocabulary, ours.vocabulary, ours.first_pieces))
        read = {x for start, end in zip(rows.starts, rows.ends, strict=True) for x in range(start, end)}
        spans = zip(encoding.starts, encoding.ends, strict=True)
        assert aligned.taught.tolist() == [start >= 0 and read.issuperset(range(start, end)) for start, end in spans]
        assert 0 < aligned.taught.mean() < 1
        assert_allclose(total_mass(aligned.topk), 1.0, atol=1e-5)


def test_a_row_without_any_hope_stays_finite() -> None:
    vocabulary = Vocabulary.from_tokens([b"ab", b"a", b"b"])
    topk = TopK(np.array([[1]]), np.zeros((1, 1), np.float32), np.full(1, -np.inf, np.float32), 3)
    rows = Rows(np.array([0]), np.array([2]), np.array([0]), np.array([200.0], np.float32), topk)
    encoding = Encoding(np.array([1, 2]), np.array([0, 1]), np.array([1, 2]))
    aligned = ByteLaw()(rows, encoding, build_pair(vocabulary, vocabulary, longest_first(vocabulary)))
    assert_allclose(aligned.truth_nll_nats, [0.0, 200.0], atol=1e-3)
    assert_allclose(total_mass(aligned.topk), 1.0, atol=1e-6)


def test_nothing_in_nothing_out() -> None:
    vocabulary = Vocabulary.from_tokens([b"a", b"b"])
    pair = build_pair(vocabulary, vocabulary, longest_first(vocabulary))
    none, two = np.zeros(0, np.int64), np.array([0, 1])
    no_rows = Rows(none, none, none, np.zeros(0, np.float32), TopK.unknown(0, 3, 2))
    assert not ByteLaw()(no_rows, Encoding(two, two, two + 1), pair).taught.any()
    rows = random_rows(np.random.default_rng(0), Vocabulary.from_tokens([b"a", b"b"]), Encoding(two, two, two + 1), k=1)
    assert len(ByteLaw()(rows, Encoding(none, none, none), pair).topk) == 0


@cache
def real(name: str) -> ByteTokenizer:
    return ByteTokenizer.load(shared("assets", "tokenizers", name))


def assert_telescopes(source: str, targets: tuple[str, ...], texts: list[str]) -> None:
    """The law of each target's tokens adds up to the source's own document, and no token with bytes is left without a teacher."""
    documents = [Document.plain(text) for text in texts]
    rng = np.random.default_rng(0)
    theirs = real(source)
    rows = [random_rows(rng, theirs.vocabulary, encoding, k=8) for encoding in theirs.encode_many(documents)]
    nodes = prefix_nodes(theirs.vocabulary)
    for target in targets:
        ours = real(target)
        encodings = ours.encode_many(documents)
        assert not any(encoding.masked_bytes for encoding in encodings)
        pair = Pair(theirs.vocabulary, ours.vocabulary, np.zeros_like(nodes), nodes)  # the law of true tokens needs no map
        for encoding, document, aligned in zip(encodings, rows, align_many(ByteLaw(), rows, encodings, pair), strict=True):
            own = document.nll_nats.sum(dtype=np.float64)
            assert_allclose(np.nansum(aligned.truth_nll_nats.astype(np.float64)), own, rtol=1e-5)
            assert aligned.taught[encoding.starts != encoding.ends].all()


@pytest.mark.parametrize("source", LOSSLESS)
def test_real_tokenizers_telescope(source: str) -> None:
    lines = (shared("assets", "data", "wikitext2", "test.txt")).read_text().splitlines(keepends=True)
    texts = ["".join(lines[n : n + 6]) for n in range(0, 60, 6)] + [shared("README.md").read_text()]
    assert_telescopes(source, LOSSLESS, texts)


@pytest.mark.parametrize("source", ALL)
def test_telescoping_over_every_real_tokenizer_on_text_that_none_of_them_changes(source: str) -> None:
    words = ("mayor", "unbelievable", "x")
    assert_telescopes(
        source, ALL, [f"the quick brown fox, the {word} of the town, jumps over {n} lazy dogs." for n, word in enumerate(words)]
    )
