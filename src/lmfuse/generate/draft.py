"""What a model writes ahead, and what it makes of what others wrote: a few rows of log-probabilities at most, for the rest single numbers."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from lmfuse.generate.cache import Branch, Read
from lmfuse.generate.spelling import Spelled

KEPT_ROWS = 16  # log-probabilities of a whole vocabulary; what is needed of older ones is computed again


@dataclass(frozen=True)
class Written:
    """What a model has written of a segment, when a rule is asked where the segment ends.

    Attributes:
        data: the bytes.
        ends: the byte at which each token ends.
        ended: whether nothing follows.
        limit_met: whether it may write no more.
    """

    data: bytes
    ends: Sequence[int]
    ended: bool
    limit_met: bool


StopRule: TypeAlias = Callable[[Written], int | None]  # how many bytes the segment has; None: to go on


@dataclass
class Draft:
    """What a model would write next.

    Attributes:
        ids: its tokens.
        data: their bytes.
        ends: the byte at which each ends.
        nll_nats: what each costs.
        ended: whether the end follows the last one.
        length: bytes of the segment, the first of ``data``; 0 proposes to end here, None nothing.
        num_read: how many of the tokens the model has read.
    """

    ids: list[int] = field(default_factory=list)
    data: bytes = b""
    ends: list[int] = field(default_factory=list)
    nll_nats: list[float] = field(default_factory=list)
    ended: bool = False
    length: int | None = None
    num_read: int = 0
    _rows: deque[Float[Tensor, "V"]] = field(default_factory=lambda: deque(maxlen=KEPT_ROWS))

    @property
    def text(self) -> bytes | None:
        """Return the proposed segment; empty for the proposal to end here, None where there was no room for one."""
        return None if self.length is None else self.data[: self.length]

    @property
    def is_whole(self) -> bool:
        """Return whether the segment is all that the model wanted to write."""
        return self.ended and self.length == len(self.data)

    def expect(self, prediction: Float[Tensor, "V"], num_read: int) -> None:
        """Take note of what follows the tokens that were read."""
        self._rows.append(prediction)
        self.num_read = num_read

    @property
    def prediction(self) -> Float[Tensor, "V"]:
        """Return the log-probabilities of what follows the tokens that were read."""
        return self._rows[-1]

    def prediction_after(self, count: int) -> Float[Tensor, "V"] | None:
        """Return the log-probabilities of what follows the first ``count`` tokens; None where they are not read, or not kept."""
        place = len(self._rows) - 1 + count - self.num_read
        return self._rows[place] if 0 <= place < len(self._rows) else None

    def tokens_of(self, text: bytes) -> int | None:
        """Return how many of its tokens write exactly this text; None where none do."""
        if not text or not self.data.startswith(text) or len(text) not in self.ends:
            return None
        return len(self.ends) - self.ends[::-1].index(len(text))


@dataclass(frozen=True)
class Verdict:
    """A judge's negative log-likelihood of a candidate in nats (``inf``: cannot write it), and its length in the judge's tokens."""

    nll_nats: float
    tokens: int


@dataclass(frozen=True)
class Judgement:
    """What a model has read of a candidate.

    Attributes:
        spelled: the candidate's tokens behind the text.
        branch: what was read.
        first: where in the cache that stands.
        nll_nats: what each token costs.
        likeliest: whether each is the token that was expected most; empty where nobody asked.
        rows: log-probabilities of what follows the last tokens, so many as were kept.
    """

    spelled: Spelled
    branch: Branch
    first: int
    nll_nats: list[float]
    likeliest: list[bool]
    rows: Float[Tensor, "R V"]

    @property
    def read(self) -> Read:
        """Return what the cache wants to know in order to keep it."""
        return Read(self.branch, self.rows, self.first)

    def up_to(self, end: int) -> Judgement | None:
        """Return what was read of the tokens that end at most at a byte of the text; None where none ends there."""
        if end not in self.spelled.ends:
            return None
        count, size = bisect_right(self.spelled.ends, end), len(self.spelled.ids)
        again = len(self.branch.ids) - size
        spelled = Spelled(self.spelled.keep, self.spelled.ids[:count], self.spelled.ends[:count])
        rows = self.rows[: max(0, len(self.rows) + count - size)]
        branch = Branch(self.branch.keep, self.branch.ids[: again + count])
        return Judgement(spelled, branch, self.first, self.nll_nats[:count], self.likeliest[:count], rows)
