"""Which token a model writes next: the likeliest or a drawn one, never one that could not stand in a text."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor

from lmfuse.types import Vocabulary
from lmfuse.writing import WritingSettings

END = -1  # stands for all tokens that end a turn or a text
LIKELIEST = 16  # that are looked at before all are sorted


def end_ids(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return the tokens with which a model ends what it writes: its turn's end and its text's."""
    found = {vocabulary.control[name] for name in ("end_of_turn", "eos") if name in vocabulary.control}
    return tuple(sorted(token_id for token_id in found if token_id < vocabulary.size))


def unfinished(data: bytes) -> bytes | None:
    r"""Return the bytes at the end that begin a character without ending it; None where no continuation makes the bytes UTF-8.

    >>> unfinished("né".encode()), unfinished("né".encode()[:-1]), unfinished(b"\x80")
    (b'', b'\xc3', None)
    """
    with suppress(UnicodeDecodeError):
        rest = data[codecs.utf_8_decode(data, "strict", False)[1] :]
        return None if rest[:1] == b"\xed" and rest[1:] >= b"\xa0" else rest  # the decoder waits for the third byte of a surrogate
    return None


class Chooser:
    """Chooses the tokens of one model and one text."""

    def __init__(self, vocabulary: Vocabulary, settings: WritingSettings, seed: int, device: torch.device | str = "cpu") -> None:
        """Prepare; ``seed`` is the model's own, made from that of the settings."""
        self.vocabulary, self.settings = vocabulary, settings
        self.ends = end_ids(vocabulary)
        allowed = torch.from_numpy(vocabulary.lengths > 0)
        allowed[list(self.ends)] = True
        self._barred = torch.zeros(vocabulary.size).masked_fill_(~allowed, -torch.inf).to(device)
        self._ends = torch.tensor(self.ends, dtype=torch.int64, device=device)
        self._random = torch.Generator().manual_seed(seed & ((1 << 63) - 1))

    def __call__(self, log_probs: Float[Tensor, "V"], pending: bytes) -> int:
        """Return a token, or ``END``.

        A control token that ends nothing is never chosen, nor one whose bytes can be no part of a text behind ``pending``, the bytes of
        a character that has begun.
        """
        return self._first(self._drawn(log_probs), pending) if self.settings.temperature else self.likeliest(log_probs, pending)

    def likeliest(self, log_probs: Float[Tensor, "V"], pending: bytes) -> int:
        """Return the likeliest token that may be chosen, whatever the temperature, or ``END``."""
        return self._first(self._by_likelihood(log_probs + self._barred), pending)

    def _first(self, order: Iterator[int], pending: bytes) -> int:
        for token_id in order:
            if token_id in self.ends:
                if not pending:
                    return END
            elif unfinished(pending + self.vocabulary.bytes_of(token_id)) is not None:
                return token_id
        return END  # a vocabulary that cannot finish a character that it began

    def end_nll(self, log_probs: Float[Tensor, "V"]) -> float:
        """Return the negative log-likelihood of ending here, in nats; ``nan`` for a model that has no end token."""
        return -float(torch.logsumexp(log_probs[self._ends], 0)) if self.ends else float("nan")

    @staticmethod
    def _by_likelihood(log_probs: Float[Tensor, "V"]) -> Iterator[int]:
        yield int(log_probs.argmax())
        yield from log_probs.topk(min(LIKELIEST, len(log_probs))).indices.tolist()
        order = log_probs.sort(descending=True)
        yield from order.indices[order.values > -torch.inf].tolist()

    def _drawn(self, log_probs: Float[Tensor, "V"]) -> Iterator[int]:
        """Draw without putting back: what cannot stand here leaves its probability to the others."""
        allowed = (log_probs + self._barred).double().cpu()
        scaled = (allowed - allowed.max()) / self.settings.temperature  # the likeliest stays 0, however small the temperature
        probs = scaled.softmax(-1)
        if self.settings.top_p < 1:  # sorting a large vocabulary costs more than drawing from it
            ordered = probs.sort(descending=True)
            kept = ordered.values.cumsum(-1) - ordered.values < self.settings.top_p
            probs = torch.zeros_like(probs).scatter_(0, ordered.indices, torch.where(kept, ordered.values, 0.0))
        while float(probs.sum()) > 0:
            token_id = int(torch.multinomial(probs, 1, generator=self._random))
            yield token_id
            probs[token_id] = 0.0
        yield from self._by_likelihood(scaled)
