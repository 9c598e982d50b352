"""One model while a text is being written: it proposes what comes next, judges what others propose, and takes over what was chosen.

Between two segments the cache holds exactly the session's ids, and these write exactly the shared text. Methods that read tokens want
``torch.inference_mode``.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lmfuse.errors import InputError, TokenizerError
from lmfuse.generate.cache import Branch, Read, Reader
from lmfuse.generate.prompt import read_prompt
from lmfuse.generate.spelling import Spelled
from lmfuse.generate.tokens import END, Chooser, unfinished
from lmfuse.models import LanguageModel
from lmfuse.writing import Prompt, WritingSettings

StopRule = Callable[
    [bytes, Sequence[int], bool, bool], int | None
]  # bytes, token ends, nothing follows, limit met -> where the segment ends


class ContextFullError(Exception):
    """A model cannot read more; the text ends here."""


@dataclass
class Draft:
    """What a model would write next; ``predictions[i]`` follows its first ``i`` tokens, those up to the last one read."""

    ids: list[int] = field(default_factory=list)
    data: bytes = b""
    ends: list[int] = field(default_factory=list)  # bytes of the draft that stand before the end of each token
    nll_nats: list[float] = field(default_factory=list)
    predictions: list[Float[Tensor, "V"]] = field(default_factory=list)
    ended: bool = False  # the end follows the last token
    length: int | None = None  # bytes of the segment: the first of ``data``; 0 proposes to end here, None nothing

    @property
    def text(self) -> bytes | None:
        """Return the proposed segment; empty for the proposal to end here, None where there was no room for one."""
        return None if self.length is None else self.data[: self.length]

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


class Session:
    """A model, the prompt as it sees it, and the text so far.

    Attributes:
        ids: everything that it has read: the prompt and the text.
        num_prompt: how many of them are the prompt's.
        text: the bytes of the text; the same for all sessions of a text.
        ends: for each token of the text the byte behind its last one.
        nll_nats: for each token of the text its negative log-likelihood.
        prediction: log-probabilities of the token that follows ``ids``.
    """

    def __init__(self, model: LanguageModel, label: str, prompt: Prompt, settings: WritingSettings, seed: int) -> None:
        """Read the prompt.

        Raises:
            InputError: see ``Writer.write``.
            TokenizerError: likewise.
        """
        self.model, self.label = model, label
        self.ids, self.spelling = read_prompt(model.tokenizer, prompt)
        self.num_prompt = len(self.ids)
        if self.num_prompt >= model.context:
            raise InputError(f"the prompt has {self.num_prompt:,} tokens, {label} reads at most {model.context:,}", "shorten the prompt")
        digest = hashlib.sha256(f"{settings.seed} {seed} {self.ids}".encode()).digest()
        self.chooser = Chooser(model.tokenizer.vocabulary, settings, int.from_bytes(digest[:8], "little"), model.device)
        self.reader = Reader(model)
        self._prompt_prediction = self.reader.read(self.ids, last_only=True)[-1]
        self.restart()

    def restart(self) -> None:
        """Go back to the end of the prompt."""
        del self.ids[self.num_prompt :]
        self.reader.cut(self.num_prompt)
        self.prediction = self._prompt_prediction
        self.text, self.ends, self.nll_nats = b"", list[int](), list[float]()
        self._drawn: list[int] = []
        self._forget()

    def _forget(self) -> None:
        self.draft = Draft()
        self._known: dict[bytes, tuple[Spelled, Read]] = {}

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the text has."""
        return len(self.ids) - self.num_prompt

    @property
    def room(self) -> int:
        """Return how many tokens more it can read."""
        return self.model.context - len(self.ids)

    # ── proposing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def propose(self, rule: StopRule, limit: int) -> Draft:
        """Write until a rule says where the segment ends (None: to go on), or the model can read no more.

        From ``limit`` tokens on the rule is told that the limit is met.
        """
        self._forget()
        self.reader.cut(len(self.ids))
        draft = self.draft = Draft(predictions=[self.prediction])
        drawn, limit, room = list(self._drawn), min(limit, self.room), self.room
        while True:
            pending = unfinished(draft.data)
            assert pending is not None, "every token was chosen so that the text stays UTF-8"
            token_id = drawn.pop(0) if drawn else self.chooser(draft.predictions[-1], pending)
            if token_id == END:
                draft.ended = True
                draft.length = rule(draft.data, draft.ends, True, True)
                return draft
            if len(draft.ids) == room:
                return draft
            self._add(draft, token_id)
            draft.length = rule(draft.data, draft.ends, False, len(draft.ids) >= limit)
            if draft.length is not None:
                return draft
            draft.predictions.append(self.reader.read([token_id])[-1])

    def _add(self, draft: Draft, token_id: int) -> None:
        written = self.model.tokenizer.vocabulary.bytes_of(token_id)
        if not (self.text or draft.ids) and self.spelling.dummy and written[:1] == b" ":
            written = written[1:]
        draft.nll_nats.append(-float(draft.predictions[-1][token_id]))
        draft.ids.append(token_id)
        draft.data += written
        draft.ends.append(len(draft.data))

    # ── judging ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def cuts(self, more: bytes) -> frozenset[int]:
        """Return where in a continuation the tokenizer would end its tokens."""
        return self.spelling.cuts(self.text, self.ends, more)

    def judge(self, candidates: Sequence[bytes]) -> list[Verdict]:
        """Judge segments that may follow the text, all in one pass; an empty one means that the text ends here.

        Of its own draft, and of what begins it, the tokens are known and cost nothing.
        """
        unknown = [each for each in candidates if each and self.draft.tokens_of(each) is None]
        spelled = dict(zip(unknown, self.spelling.go_on(self.text, self.ends, unknown), strict=True))
        known: dict[bytes, tuple[Spelled, Branch]] = {}
        for text, found in spelled.items():
            if found is not None and self.num_prompt + found.keep + len(found.ids) <= self.model.context:
                known[text] = found, self._branch(found)
        reads = self.reader.read_branches([branch for _, branch in known.values()]) if known else []
        self._known = {text: (found, read) for (text, (found, _)), read in zip(known.items(), reads, strict=True)}
        return [self._verdict(each) for each in candidates]

    def weigh(self, spelled: Spelled) -> tuple[float, Float[Tensor, "V"]]:
        """Return the negative log-likelihood in nats of what may follow the text, cut as it says, and what would come next."""
        read = self.reader.read_branches([self._branch(spelled)])[0]
        cost = sum(self._costs(spelled, read)) - sum(self.nll_nats[spelled.keep :])
        self.reader.cut(len(self.ids))
        return cost, read.log_probs[-1]

    def _branch(self, spelled: Spelled) -> Branch:
        """Return what is to be read; where tokens of the text are replaced, the one before them again: its prediction is gone."""
        keep = self.num_prompt + spelled.keep
        again = self.ids[keep - 1 : keep] if 0 < spelled.keep < self.num_tokens else []
        return Branch(keep - len(again), (*again, *spelled.ids))

    def _verdict(self, text: bytes) -> Verdict:
        if not text:
            return Verdict(self.chooser.end_nll(self.prediction), 1)
        own = self.draft.tokens_of(text)
        if own is not None:
            return Verdict(sum(self.draft.nll_nats[:own]), own)
        if text not in self._known:
            return Verdict(np.inf, 1)
        spelled, read = self._known[text]
        dropped = self.nll_nats[spelled.keep :]
        return Verdict(sum(self._costs(spelled, read)) - sum(dropped), max(1, len(spelled.ids) - len(dropped)))

    def token_costs(self, text: bytes) -> tuple[list[int], list[float]] | None:
        """Return where in a segment that was judged the tokens end, and what each costs in nats; None where it cannot write it.

        What tokens cost that it replaces is taken off the first one.
        """
        own = self.draft.tokens_of(text)
        if own is not None:
            return self.draft.ends[:own], self.draft.nll_nats[:own]
        if text not in self._known:
            return None
        spelled, read = self._known[text]
        first, *rest = self._costs(spelled, read)
        return [end - len(self.text) for end in spelled.ends], [first - sum(self.nll_nats[spelled.keep :]), *rest]

    def _costs(self, spelled: Spelled, read: Read) -> list[float]:
        """Return the negative log-likelihood of each new token."""
        again = len(read.branch.ids) > len(spelled.ids)
        first = self.prediction if spelled.keep == self.num_tokens else self._prompt_prediction
        rows = read.log_probs if again else torch.cat([first[None], read.log_probs])
        ids = torch.tensor(spelled.ids, device=rows.device)
        return (-rows[: len(ids)].gather(1, ids[:, None])[:, 0]).tolist()

    # ── taking over ─────────────────────────────────────────────────────────────────────────────────────────────────

    def commit(self, text: bytes) -> None:
        """Make a segment part of the text: with the tokens of its own draft where they write it, else with those that it judged.

        Raises:
            TokenizerError: the tokenizer cannot write it.
            ContextFullError: the model cannot read so much.
        """
        own = self.draft.tokens_of(text)
        if own is not None:
            self._commit_own(own)
        else:
            known = self._part(text)
            if known is None:
                self.judge([text])
                known = self._part(text)
            if known is None:
                raise self.refusal(text)
            spelled, read = known
            costs = self._costs(spelled, read)
            del self.ids[self.num_prompt + spelled.keep :], self.ends[spelled.keep :], self.nll_nats[spelled.keep :]
            self.ids += spelled.ids
            self.ends += spelled.ends
            self.nll_nats += costs
            self.reader.take(read)
            self.prediction, self._drawn = read.log_probs[-1], []
        self.text += text
        self._forget()
        assert self.reader.length == len(self.ids), "the cache holds what was committed"

    def _part(self, text: bytes) -> tuple[Spelled, Read] | None:
        """Return what was judged for a text, or for a longer one that begins with it."""
        end = len(self.text) + len(text)
        for whole, (spelled, read) in self._known.items():
            if whole.startswith(text) and end in spelled.ends:
                count = bisect_right(spelled.ends, end)
                again = len(read.branch.ids) - len(spelled.ids)
                branch = Branch(read.branch.keep, read.branch.ids[: again + count])
                part = Spelled(spelled.keep, spelled.ids[:count], spelled.ends[:count])
                return part, Read(branch, read.log_probs[: again + count], read.first)
        return None

    def refusal(self, text: bytes) -> Exception:
        """Return why it cannot take a segment over: its tokenizer cannot write it, or its context is full."""
        if self.spelling.go_on(self.text, self.ends, [text])[0] is not None:
            return ContextFullError(self.label)
        return TokenizerError(f"{self.label} cannot write {text.decode()[:40]!r}", "use models whose tokenizers can represent every text")

    def _commit_own(self, own: int) -> None:
        draft, before = self.draft, len(self.ids)
        self.ids += draft.ids[:own]
        self.ends += [len(self.text) + end for end in draft.ends[:own]]
        self.nll_nats += draft.nll_nats[:own]
        self._drawn = [*draft.ids[own:], *([END] if draft.ended else [])]  # drawn once, and not again
        read = len(draft.predictions) - 1
        self.reader.cut(before + min(own, read))
        self.prediction = draft.predictions[own] if own <= read else self.reader.read(draft.ids[read:own])[-1]
