r"""A model's distribution over the next byte, whatever its tokens.  arXiv:2410.09303

Behind the text that is committed stand some open bytes. Every way to cover them counts: so many of them are written by whole tokens, as
the tokenizer would cut them, and the token that follows begins with the rest and goes on. With ``P(i)`` the probability of the tokens for
the first ``i`` open bytes::

    p(next byte is b)  ~  sum over i of  P(i) * p(next token begins with open[i:] + b  |  the tokens for open[:i])

Open bytes are committed as soon as no token that begins before them matters any more.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lmfuse.decode.boundaries import whole_characters
from lmfuse.decode.byte_mixture import END_SYMBOL, NUM_SYMBOLS
from lmfuse.generate.session import Session
from lmfuse.generate.spelling import Spelled
from lmfuse.generate.tokens import unfinished
from lmfuse.types import Vocabulary

FORGOTTEN = 1e-7  # a share of the probability that earlier beginnings may lose together when they are given up
PREFIX_END = b"\xff" * 8
MANY = 1024  # tokens with a common beginning: how they go on is worked out once
_sorted: dict[tuple[int, tuple[int, ...]], SortedTokens] = {}  # by a vocabulary's id, as long as it lives
_sorting = threading.Lock()


@dataclass(frozen=True)
class Following:
    """The tokens that begin with some bytes, among the sorted ones: ``low:first`` are just these, ``first:high`` go on.

    Attributes:
        low, first, high: see above.
        symbols: the bytes with which they go on, in order.
        places: where, counted from ``first``, those begin that go on with each.
    """

    low: int
    first: int
    high: int
    symbols: UInt8[np.ndarray, "N"]
    places: Int[np.ndarray, "N"]


@dataclass(frozen=True)
class SortedTokens:
    """The tokens that write text, sorted by their bytes, so that those with a common beginning stand together.

    Attributes:
        ids: the tokens.
        tokens: their bytes.
    """

    ids: Int[np.ndarray, "W"]
    tokens: tuple[bytes, ...]
    _often: dict[bytes, Following] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, vocabulary: Vocabulary, silent: tuple[int, ...] = ()) -> SortedTokens:
        """Return a vocabulary's tokens, without those that write nothing and those that are ``silent`` here (ends of turns).

        They are sorted once, and kept as long as the vocabulary is.
        """
        key = id(vocabulary), silent
        with _sorting:
            if key not in _sorted:
                _sorted[key] = cls._sort(vocabulary, silent)
                weakref.finalize(vocabulary, _sorted.pop, key, None)
            return _sorted[key]

    @classmethod
    def _sort(cls, vocabulary: Vocabulary, silent: tuple[int, ...]) -> SortedTokens:
        flat, offsets = vocabulary.flat.tobytes(), vocabulary.offsets.tolist()
        written = set(np.flatnonzero(vocabulary.lengths).tolist()) - set(silent)
        found = sorted((flat[offsets[token_id] : offsets[token_id + 1]], token_id) for token_id in written)
        return cls(np.array([token_id for _, token_id in found], np.int64), tuple(token for token, _ in found))

    @cached_property
    def _flat(self) -> UInt8[np.ndarray, "N"]:
        return np.frombuffer(b"".join(self.tokens), np.uint8)

    @cached_property
    def _starts(self) -> Int[np.ndarray, "W"]:
        return np.cumsum([0, *map(len, self.tokens)])[:-1]

    def following(self, beginning: bytes) -> Following:
        """Return where the tokens stand that begin with some bytes, by the byte that comes next.

        >>> words = SortedTokens.of(Vocabulary.from_tokens([b"b", b"ab", b"", b"a", b"abd", b"abc", b"abcd"]))
        >>> found = words.following(b"ab")
        >>> words.tokens[found.low : found.first], words.tokens[found.first : found.high], bytes(found.symbols.tolist()), found.places.tolist()
        ((b'ab',), (b'abc', b'abcd', b'abd'), b'cd', [0, 2])
        """
        if beginning in self._often:
            return self._often[beginning]
        low = bisect_left(self.tokens, beginning)
        first = bisect_right(self.tokens, beginning, low)
        high = bisect_left(self.tokens, beginning + PREFIX_END, first)
        after = self._flat[self._starts[first:high] + len(beginning)]
        places = np.flatnonzero(np.diff(after, prepend=-1))
        found = Following(low, first, high, after[places], places)
        if high - low >= MANY:
            self._often[beginning] = found
        return found


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
        log_probs = prediction.float().cpu().numpy()
        end = float(np.exp(log_probs[list(self.session.chooser.ends)], dtype=np.float64).sum())
        return _Beginning(place, log_weight, np.exp(log_probs[self.tokens.ids]), end)

    @property
    def text(self) -> bytes:
        """Return the whole text."""
        return self.session.text + self.open[self._hidden :]

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the text has at most."""
        return self.session.num_tokens + len(self._beginnings) - 1

    @property
    def room(self) -> int:
        """Return how many tokens more the model can read at least."""
        return self.session.room - (self.num_tokens - self.session.num_tokens)

    def fitting(self, end: int, most_tokens: int) -> int:
        """Return how many of the text's first ``end`` bytes its first ``most_tokens`` tokens write, whole characters."""
        session = self.session
        if session.num_tokens > most_tokens:
            return len(whole_characters(session.text[: min(end, session.ends[most_tokens - 1])]).encode())
        more = self.text[len(session.text) : end]
        return end if not more else len(session.text) + session.fitting(more, most_tokens)

    def log_probs(self) -> Float[np.ndarray, "257"]:
        """Return the log-probabilities of the next byte and of the end; all ``-inf`` where the model cannot write the text."""
        mass = np.zeros(NUM_SYMBOLS)
        for each in self._beginnings:
            rest, weight = self.open[each.place :], np.exp(each.log_weight)
            found = self.tokens.following(rest)
            if found.high > found.first:
                mass[found.symbols] += weight * np.add.reduceat(each.probs[found.first : found.high], found.places, dtype=np.float64)
            if not rest and unfinished(self.text) == b"":
                mass[END_SYMBOL] += weight * each.end
        with np.errstate(divide="ignore"):
            return np.log(mass / mass.sum()) if mass.sum() > 0 else np.full(NUM_SYMBOLS, -np.inf)

    def push(self, byte: int) -> None:
        """Append a byte to the text; where no token that matters ends behind it, nothing is read."""
        self.open += bytes([byte])
        masses = [self._masses(each) for each in self._beginnings]
        going_on, ending = (sum(each) for each in zip(*masses, strict=True))
        if ending > FORGOTTEN * going_on or not going_on:
            self._add_beginning()
        self._settle([mass for mass, _ in masses])

    def _add_beginning(self) -> None:
        spelled = self._spelled()
        if spelled is not None and self.session.num_prompt + spelled.keep + len(spelled.ids) <= self.session.model.context:
            nll, prediction = self.session.weigh(spelled, self.open[self._hidden :])
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

    def _settle(self, masses: list[float]) -> None:
        """Commit open bytes that no beginning before them covers with a probability that matters.

        Args:
            masses: the probability of each beginning, but for one that begins behind all open bytes, with all tokens that go on.
        """
        masses += [float(np.exp(each.log_weight)) for each in self._beginnings[len(masses) :]]
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
        found, weight = self.tokens.following(rest), np.exp(each.log_weight)
        going_on, ending = (
            each.probs[span].sum(dtype=np.float64) for span in (slice(found.first, found.high), slice(found.low, found.first))
        )
        return float(weight * going_on), float(weight * ending)

    def finish(self, length: int | None = None) -> None:
        """Commit what is open, up to the last whole character, and of the text the first ``length`` bytes at most."""
        data = whole_characters(self.text[:length][len(self.session.text) :]).encode()
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
