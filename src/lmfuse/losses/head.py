"""The last step of a language model: final hidden states to logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Head:
    """A model's output layer, as data, so that a loss can apply it to a few positions at a time.

    ``logits = softcap * tanh(logit_scale * (hidden @ weight.T + bias) / softcap)``, without the cap where there is none.

    Attributes:
        weight: the live parameter, padded rows included; ``R >= vocab_size`` rows.
        vocab_size: number of real ids; rows beyond it pad the matrix and never take part in a softmax.
        bias: added to each logit.
        logit_scale: factor on the logits (Cohere, Granite).
        softcap: limit of the logits' size (Gemma 2).
        full: the whole map, for heads that are no plain linear one; replaces ``weight`` and ``bias``. Scale and cap still apply
            to what it returns: leave them alone if it does that itself.
    """

    weight: Float[Tensor, "R D"]
    vocab_size: int
    bias: Float[Tensor, "R"] | None = None
    logit_scale: float = 1.0
    softcap: float | None = None
    full: Callable[[Tensor], Tensor] | None = None

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Return the logits of real ids, scaled and capped, in float32 (or wider). Differentiable.

        >>> Head(torch.eye(3), vocab_size=2, logit_scale=0.5).logits(torch.tensor([[4.0, 2.0, 9.0]])).tolist()
        [[2.0, 1.0]]
        """
        if self.full is not None:
            raw = self.full(hidden)[:, : self.vocab_size]
        else:
            bias = None if self.bias is None else self.bias[: self.vocab_size].to(hidden.dtype)
            raw = torch.nn.functional.linear(hidden, self.weight[: self.vocab_size].to(hidden.dtype), bias)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.logit_scale != 1.0:
            raw = raw * self.logit_scale
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)
