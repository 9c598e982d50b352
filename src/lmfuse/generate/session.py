"""One model while a text is being written: it proposes what comes next, judges what others propose, and takes over what was chosen.

Between two segments the cache holds exactly the session's ids, and these write exactly the shared text. Methods that read tokens want
``torch.inference_mode``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lmfuse.decode.boundaries import whole_characters
from lmfuse.errors import TokenizerError
from lmfuse.generate.cache import Branch, Read, Reader, Seat
from lmfuse.generate.draft import KEPT_ROWS, Draft, Judgement, StopRule, Verdict, Written
from lmfuse.generate.prompt import read_fitting
from lmfuse.generate.spelling import Spelled
from lmfuse.generate.tokens import END, Chooser, unfinished
from lmfuse.models import LanguageModel
from lmfuse.writing import Prompt, WritingSettings


class ContextFullError(Exception):
    """A model cannot read more; the text ends here."""


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

    def __init__(
        self, model: LanguageModel, label: str, prompt: Prompt, settings: WritingSettings, seed: int, seat: Seat | None = None
    ) -> None:
        """Read the prompt; with a seat, beside other texts.

        Raises:
            InputError: see ``Writer.write``.
            TokenizerError: likewise.
        """
        self.model, self.label = model, label
        self.ids, self.spelling = read_fitting(model, label, prompt)
        self.num_prompt = len(self.ids)
        digest = hashlib.sha256(f"{settings.seed} {seed} {self.ids}".encode()).digest()
        self.chooser = Chooser(model.tokenizer.vocabulary, settings, int.from_bytes(digest[:8], "little"), model.device)
        self.reader = Reader(model, seat)
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
        self._known: dict[bytes, Judgement] = {}

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the text has."""
        return len(self.ids) - self.num_prompt

    @property
    def room(self) -> int:
        """Return how many tokens more it can read."""
        return self.model.context - len(self.ids)

    # ── proposing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def propose(self, rule: StopRule, limit: int, *, greedy: bool = False) -> Draft:
        """Write until a rule says where the segment ends, or the model can read no more; ``greedy``: whatever the temperature.

        From ``limit`` tokens on the rule is told that the limit is met.
        """
        self._forget()
        self.reader.cut(len(self.ids))
        choose = self.chooser.likeliest if greedy else self.chooser
        draft, drawn, limit, room = self.draft, list(self._drawn), min(limit, self.room), self.room
        draft.expect(self.prediction, 0)
        while True:
            pending = unfinished(draft.data)
            assert pending is not None, "every token was chosen so that the text stays UTF-8"
            token_id = drawn.pop(0) if drawn else choose(draft.prediction, pending)
            if token_id == END:
                draft.ended = True
                draft.length = rule(Written(draft.data, draft.ends, ended=True, limit_met=True))
                return draft
            if len(draft.ids) == room:
                return draft
            self._add(draft, token_id)
            draft.length = rule(Written(draft.data, draft.ends, ended=False, limit_met=len(draft.ids) >= limit))
            if draft.length is not None:
                return draft
            draft.expect(self.reader.read([token_id])[-1], len(draft.ids))

    def _add(self, draft: Draft, token_id: int) -> None:
        written = self.model.tokenizer.vocabulary.bytes_of(token_id)
        if not (self.text or draft.ids) and self.spelling.dummy and written[:1] == b" ":
            written = written[1:]
        draft.nll_nats.append(-float(draft.prediction[token_id]))
        draft.ids.append(token_id)
        draft.data += written
        draft.ends.append(len(draft.data))

    # ── judging ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def cuts(self, more: bytes) -> frozenset[int]:
        """Return where in a continuation the tokenizer would end its tokens."""
        return self.spelling.cuts(self.text, self.ends, more)

    def fitting(self, more: bytes, most_tokens: int | None = None) -> int:
        """Return how many bytes of a continuation, whole characters, fit into the context, and into ``most_tokens`` tokens of the text.

        What the tokenizer cannot write fits: that is for judges to say.
        """
        most = self.model.context - self.num_prompt
        most = most if most_tokens is None else min(most, most_tokens)
        if not more or self.num_tokens + len(more) + 1 <= most:  # a token writes a byte at least, but for one that writes a dummy prefix
            return len(more)
        own = self.draft.tokens_of(more)
        if own is not None:
            ends, left = self.draft.ends[:own], most - self.num_tokens
        else:
            spelled = self.spelling.go_on(self.text, self.ends, [more])[0]
            if spelled is None:
                return len(more)
            ends, left = [end - len(self.text) for end in spelled.ends], most - spelled.keep
        if len(ends) <= left:
            return len(more)
        return len(whole_characters(more[: max(ends[left - 1], 0)]).encode()) if left > 0 else 0

    def judge(self, candidates: Sequence[bytes], *, compare: bool = False) -> list[Verdict]:
        """Judge segments that may follow the text, all in one pass; an empty one means that the text ends here.

        ``compare``: also with what it would write itself, see ``judged_tokens``.

        Of its own draft, and of what begins it, the cost is known where the tokens are those that the tokenizer would write.
        """
        if not self.draft.ids:
            self.reader.cut(len(self.ids))
        texts = [each for each in dict.fromkeys(candidates) if each]
        spelled = self.spelling.go_on(self.text, self.ends, texts) if texts else []
        wanted = {text: found for text, found in zip(texts, spelled, strict=True) if found is not None and self._has_to_read(text, found)}
        reads = self.reader.read_branches([self._branch(found) for found in wanted.values()]) if wanted else []
        long = any(len(read.log_probs) > KEPT_ROWS for read in reads)
        judged = (self._judgement(found, read, long=long, compare=compare) for found, read in zip(wanted.values(), reads, strict=True))
        self._known = dict(zip(wanted, judged, strict=True))
        return [self._verdict(each) for each in candidates]

    def _has_to_read(self, text: bytes, spelled: Spelled) -> bool:
        """Return whether a candidate fits, and is not what it has just written itself."""
        own = self.draft.tokens_of(text)
        if own is not None and spelled.keep == self.num_tokens and spelled.ids == tuple(self.draft.ids[:own]):
            return False
        return self.num_prompt + spelled.keep + len(spelled.ids) <= self.model.context

    def weigh(self, spelled: Spelled, text: bytes) -> tuple[float, Float[Tensor, "V"]]:
        """Return the negative log-likelihood in nats of what may follow the text, cut as it says, and what would come next.

        What it has read is kept: if this text, or what begins it, is committed next, it is not read again.
        """
        self.reader.cut(len(self.ids))
        found = self._judgement(spelled, self.reader.read_branches([self._branch(spelled)])[0])
        self._known = {text: found}
        return sum(found.nll_nats) - sum(self.nll_nats[spelled.keep :]), found.rows[-1]

    def _branch(self, spelled: Spelled) -> Branch:
        """Return what is to be read; where tokens of the text are replaced, the one before them again: its prediction is gone."""
        keep = self.num_prompt + spelled.keep
        again = self.ids[keep - 1 : keep] if 0 < spelled.keep < self.num_tokens else []
        return Branch(keep - len(again), (*again, *spelled.ids))

    def _judgement(self, spelled: Spelled, read: Read, *, long: bool = False, compare: bool = False) -> Judgement:
        """Return what a read says; of a ``long`` one most rows are let go."""
        again = len(read.branch.ids) - len(spelled.ids)
        own = self.prediction if spelled.keep == self.num_tokens else self._prompt_prediction
        first, rows = (read.log_probs[0], read.log_probs[1:]) if again else (own, read.log_probs)
        ids = torch.tensor(spelled.ids[1:], dtype=torch.int64, device=rows.device)
        costs = [-float(first[spelled.ids[0]]), *(-rows[:-1].gather(1, ids[:, None])[:, 0]).tolist()]
        likeliest = [int(first.argmax()) == spelled.ids[0], *(rows[:-1].argmax(-1) == ids).tolist()] if compare else []
        kept = rows[-KEPT_ROWS:].clone() if long else rows
        return Judgement(spelled, read.branch, read.first, costs, likeliest, kept)

    def _verdict(self, text: bytes) -> Verdict:
        if not text:
            return Verdict(self.chooser.end_nll(self.prediction), 1)
        known, own = self._known.get(text), self.draft.tokens_of(text)
        if known is not None:
            dropped = self.nll_nats[known.spelled.keep :]
            return Verdict(sum(known.nll_nats) - sum(dropped), max(1, len(known.spelled.ids) - len(dropped)))
        return Verdict(np.inf, 1) if own is None else Verdict(sum(self.draft.nll_nats[:own]), own)

    def judged_tokens(self, text: bytes) -> tuple[list[int], list[float], list[bool]] | None:
        """Return where in another's segment the tokens end, what each costs in nats, and whether it is the likeliest.

        The segment was judged with ``compare``; None where it cannot write it. What tokens cost that it replaces is taken off the first one.
        """
        if text not in self._known:
            return None
        known = self._known[text]
        first, *rest = known.nll_nats
        ends = [end - len(self.text) for end in known.spelled.ends]
        return ends, [first - sum(self.nll_nats[known.spelled.keep :]), *rest], known.likeliest

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
            self._commit_judged(known)
        self.text += text
        self._forget()
        assert self.reader.length == len(self.ids), "the cache holds what was committed"

    def _part(self, text: bytes) -> Judgement | None:
        """Return what was judged for a text, or for a longer one that begins with it."""
        end = len(self.text) + len(text)
        parts = (known.up_to(end) for whole, known in self._known.items() if whole.startswith(text))
        return next((part for part in parts if part is not None), None)

    def refusal(self, text: bytes) -> Exception:
        """Return why it cannot take a segment over: its tokenizer cannot write it, or its context is full."""
        if self.spelling.go_on(self.text, self.ends, [text])[0] is not None:
            return ContextFullError(self.label)
        return TokenizerError(f"{self.label} cannot write {text.decode()[:40]!r}", "use models whose tokenizers can represent every text")

    def _commit_judged(self, known: Judgement) -> None:
        spelled = known.spelled
        del self.ids[self.num_prompt + spelled.keep :], self.ends[spelled.keep :], self.nll_nats[spelled.keep :]
        self.ids += spelled.ids
        self.ends += spelled.ends
        self.nll_nats += known.nll_nats
        self.reader.take(known.read)
        self._drawn = []
        if len(known.rows):
            self.prediction = known.rows[-1]
        else:
            self.reader.cut(len(self.ids) - 1)
            self.prediction = self.reader.read(self.ids[-1:])[-1]

    def _commit_own(self, own: int) -> None:
        draft, before = self.draft, len(self.ids)
        self.ids += draft.ids[:own]
        self.ends += [len(self.text) + end for end in draft.ends[:own]]
        self.nll_nats += draft.nll_nats[:own]
        self._drawn = [*draft.ids[own:], *([END] if draft.ended else [])]  # drawn once, and not again
        prediction, begin = draft.prediction_after(own), min(own - 1, draft.num_read)
        self.reader.cut(before + (begin if prediction is None else own))
        self.prediction = self.reader.read(draft.ids[begin:own])[-1] if prediction is None else prediction
