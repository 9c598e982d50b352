r"""A model's distribution over the next byte, whatever its tokens.  arXiv:2410.09303

Behind the text that is committed stand some open bytes. Every way to cover them counts: so many of them are written by whole tokens, as
the tokenizer would cut them, and the token that follows begins with the rest and goes on. With ``P(i)`` the probability of the tokens for
the first ``i`` open bytes::

    p(next byte is b)  ~  sum over i of  P(i) * p(next token begins with open[i:] + b  |  the tokens for open[:i])

Open bytes are committed as soon as no token that begins before them matters any more.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lmfuse.decode.boundaries import whole_characters
from lmfuse.decode.byte_mixture import END_SYMBOL, NUM_SYMBOLS
from lmfuse.generate.session import Session
from lmfuse.generate.spelling import Spelled
from lmfuse.generate.tokens import unfinished
from lmfuse.types import Vocabulary

FORGOTTEN = 1e-7  # a share of the probability that earlier beginnings may lose together when they are given up
PREFIX_END = b"\xff" * 8


@dataclass(frozen=True)
class SortedTokens:
    """The tokens that write text, sorted by their bytes, so that those with a common beginning stand together."""

    ids: Int[np.ndarray, "W"]
    tokens: tuple[bytes, ...]

    @classmethod
    def of(cls, vocabulary: Vocabulary, silent: tuple[int, ...] = ()) -> SortedTokens:
        """Sort a vocabulary, without tokens that write nothing and those that are ``silent`` here (ends of turns)."""
        found = [(vocabulary.bytes_of(i), i) for i in range(vocabulary.size) if vocabulary.lengths[i] and i not in silent]
        found.sort()
        return cls(np.array([i for _, i in found], np.int64), tuple(token for token, _ in found))

    @cached_property
    def padded(self) -> Any:
        """Return the bytes of each token one after the other, -1 behind its end: column ``d`` holds the tokens' bytes at ``d``."""
        longest = max(map(len, self.tokens))
        found = np.full((longest + 1, len(self.tokens)), -1, np.int16)
        for place, token in enumerate(self.tokens):
            found[: len(token), place] = np.frombuffer(token, np.uint8)
        return found

    def within(self, beginning: bytes) -> tuple[int, int]:
        """Return where the tokens stand that begin with some bytes.

        >>> words = SortedTokens.of(Vocabulary.from_tokens([b"b", b"ab", b"", b"a", b"abc"]))
        >>> words.tokens, words.within(b"ab")
        ((b'a', b'ab', b'abc', b'b'), (1, 3))
        """
        return bisect_left(self.tokens, beginning), bisect_left(self.tokens, beginning + PREFIX_END)


@dataclass
class _Beginning:
    """One way to cover the open bytes: tokens up to ``place``, whose probability is ``exp(log_weight)``, then one that goes on."""

    place: int
    log_weight: float
    probs: Float[np.ndarray, "W"]  # of the sorted tokens
    end: float  # probability that the text ends there


class ByteReader:
    """One model's view of the next byte. ``session`` holds what is committed; the text is that and the open bytes."""

    def __init__(self, session: Session, tokens: SortedTokens) -> None:
        self.session, self.tokens = session, tokens
        self.open = b" " if session.spelling.dummy and not session.text else b""  # a dummy prefix is written, but is no text
        self._hidden = len(self.open)
        self._begin()

    def _begin(self) -> None:
        self._beginnings = [self._beginning(0, 0.0, self.session.prediction)]
        if self._hidden:
            self._add_beginning()

    def _beginning(self, place: int, log_weight: float, prediction: Float[Tensor, "V"]) -> _Beginning:
        probs = prediction.double().exp().cpu().numpy()
        return _Beginning(place, log_weight, probs[self.tokens.ids], float(probs[list(self.session.chooser.ends)].sum()))

    @property
    def text(self) -> bytes:
        """Return the whole text."""
        return self.session.text + self.open[self._hidden :]

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the text has at most."""
        return self.session.num_tokens + len(self._beginnings) - 1

    def log_probs(self) -> Float[np.ndarray, "257"]:
        """Return the log-probabilities of the next byte and of the end; all ``-inf`` where the model cannot write the text."""
        mass = np.zeros(NUM_SYMBOLS)
        for each in self._beginnings:
            rest = self.open[each.place :]
            low, high = self.tokens.within(rest)
            follows = self.tokens.padded[min(len(rest), len(self.tokens.padded) - 1), low:high]
            going_on = follows >= 0
            weight = np.exp(each.log_weight)
            mass[:256] += weight * np.bincount(follows[going_on], each.probs[low:high][going_on], 256)
            if not rest and unfinished(self.text) == b"":
                mass[END_SYMBOL] += weight * each.end
        with np.errstate(divide="ignore"):
            return np.log(mass / mass.sum()) if mass.sum() > 0 else np.full(NUM_SYMBOLS, -np.inf)

    def push(self, byte: int) -> None:
        """Append a byte to the text; where no token that matters ends behind it, nothing is read."""
        self.open += bytes([byte])
        going_on, ending = (sum(masses) for masses in zip(*map(self._masses, self._beginnings), strict=True))
        if ending > FORGOTTEN * going_on or not going_on:
            self._add_beginning()
        self._settle()

    def _add_beginning(self) -> None:
        spelled = self._spelled()
        if spelled is not None and self.session.num_prompt + spelled.keep + len(spelled.ids) <= self.session.model.context:
            nll, prediction = self.session.weigh(spelled)
            self._beginnings.append(self._beginning(len(self.open), -nll, prediction))

    def _spelled(self) -> Spelled | None:
        """Return the tokens of the open bytes; a character that is not finished is written as its beginning best can be."""
        session, data = self.session, self.open[self._hidden :]
        whole = whole_characters(data).encode()
        found = Spelled(session.num_tokens, (), ())
        if whole:
            spelled = session.spelling.go_on(session.text, session.ends, [whole])[0]
            if spelled is None:
                return None
            found = spelled
        elif self._hidden:
            found = Spelled(0, tuple(session.model.tokenizer.pieces([b" "])[0]), (0,))
        rest = data[len(whole) :]
        more = session.model.tokenizer.pieces([rest])[0] if rest else []
        written = sum(int(session.model.tokenizer.vocabulary.lengths[token_id]) for token_id in more)
        return Spelled(found.keep, (*found.ids, *more), found.ends) if written == len(rest) and (found.ids or more) else None

    def _settle(self) -> None:
        """Commit open bytes that no beginning before them covers with a probability that matters."""
        masses = [self._masses(each)[0] for each in self._beginnings]
        before = np.cumsum(masses) / (sum(masses) or 1.0)
        lost = next((number for number, share in enumerate(before) if share > FORGOTTEN), 0)
        place = self._beginnings[lost].place
        data = self.open[self._hidden : place]
        if place <= self._hidden or unfinished(data) != b"":
            return
        self.session.commit(data)
        self.open, self._hidden = self.open[place:], 0
        kept, base = self._beginnings[lost:], self._beginnings[lost].log_weight
        self._beginnings = [_Beginning(each.place - place, each.log_weight - base, each.probs, each.end) for each in kept]

    def _masses(self, each: _Beginning) -> tuple[float, float]:
        """Return the probability of a beginning with all tokens that go on behind the open bytes, and with those that end there."""
        rest = self.open[each.place :]
        if not rest:
            return float(np.exp(each.log_weight)), 0.0
        low, high = self.tokens.within(rest)
        longer = self.tokens.padded[min(len(rest), len(self.tokens.padded) - 1), low:high] >= 0
        probs = np.exp(each.log_weight) * each.probs[low:high]
        return float(probs[longer].sum()), float(probs[~longer].sum())

    def finish(self) -> None:
        """Commit what is open, up to the last whole character."""
        data = whole_characters(self.open[self._hidden :]).encode()
        if data:
            self.session.commit(data)
        self.open, self._hidden = b"", 0


@lru_cache(maxsize=4096)
def allowed_symbols(pending: bytes) -> Bool[np.ndarray, "257"]:
    r"""Return which bytes, and whether the end, may follow the bytes of a character that has begun.

    >>> np.flatnonzero(allowed_symbols(b"\xe0"))[[0, -1]].tolist(), bool(allowed_symbols(b"")[256])
    ([160, 191], True)
    """
    return np.array([*(unfinished(pending + bytes([byte])) is not None for byte in range(256)), not pending])
