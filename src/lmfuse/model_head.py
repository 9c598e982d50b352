"""Which part of a causal language model gives the final hidden states, and what its head does with them: found by asking the model itself.

Nothing here trusts a configuration's word: a candidate is taken when its logits are the model's own on a few tokens, for hidden
states of the natural size and of eight times that (a soft cap does not show on small logits).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmfuse.errors import ModelError
from lmfuse.losses.head import Head
from lmfuse.memory import is_out_of_memory

MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "logits_scaling")  # Cohere; Falcon-H1; HyperCLOVA X
DIVISORS = ("logits_scaling",)  # Granite
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma; RecurrentGemma; xLSTM
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}  # of the largest logit; a wrong head is off by its own size
PROBE_TOKENS = 6


def find_head(module: nn.Module, vocab_size: int) -> tuple[nn.Module, Head]:
    """Return the part of a model that gives final hidden states, and a head that turns them into the model's own logits.

    Args:
        module: a transformers causal language model in evaluation mode.
        vocab_size: ids of its tokenizer; logits beyond are padding.

    Raises:
        ModelError: the model is not causal, or its logits cannot be had from its hidden states.
    """
    ids = _probe_ids(vocab_size).to(next(module.parameters()).device)
    with torch.no_grad():
        expected = _run(module, ids)[..., :vocab_size].float()
        _refuse_lookahead(module, expected)
        for body in _bodies(module):
            hidden = _last_hidden(body, ids)
            if hidden is None:
                continue
            own = _own_head(module, body, hidden, expected)
            for head in _candidates(module, vocab_size, own):
                if _agrees(head, hidden, expected) and (own is None or _agrees(head, 8 * hidden, own(8 * hidden.flatten(0, 1)))):
                    return body, head
    raise ModelError(
        f"{type(module).__name__}: its logits are no function of its final hidden states that lmfuse knows",
        "please report the model's name",
    )


def _probe_ids(vocab_size: int) -> Int[Tensor, "2 P"]:
    """Return two rows that agree in their first half only."""
    ids = (torch.arange(2 * PROBE_TOKENS).view(2, PROBE_TOKENS) * 7919 + 3) % vocab_size
    ids[1, : PROBE_TOKENS // 2] = ids[0, : PROBE_TOKENS // 2]
    return ids


def _run(module: nn.Module, ids: Int[Tensor, "B P"]) -> Float[Tensor, "B P V"]:
    try:
        return _logits(module(input_ids=ids, use_cache=False))
    except Exception as reason:
        if is_out_of_memory(reason):
            raise
        what = next(iter(str(reason).splitlines()), type(reason).__name__)
        raise ModelError(f"{type(module).__name__} cannot read tokens: {what}", "its config.json may contradict itself") from reason


def _logits(output: Any) -> Float[Tensor, "*B T V"]:
    found: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return found


def _close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    size = expected.abs().max().clamp(min=1e-6)
    return bool((found - expected).abs().max() <= TOLERANCE.get(dtype, 1e-3) * size)


def _refuse_lookahead(module: nn.Module, logits: Float[Tensor, "2 P V"]) -> None:
    if not torch.isfinite(logits).all():
        raise ModelError(f"{type(module).__name__}: its logits are not finite", "another dtype may help; else the weights are damaged")
    half = PROBE_TOKENS // 2
    if not _close(logits[1, :half], logits[0, :half], next(module.parameters()).dtype):
        raise ModelError(f"{type(module).__name__} looks ahead: it is no causal language model", "use a decoder-only language model")


def _bodies(module: Any) -> Iterator[nn.Module]:
    """Yield what may be the model without its head, likeliest first."""
    seen = {id(module)}
    for find in (lambda: module.base_model, lambda: module.get_decoder(), lambda: module.base_model.get_decoder()):
        try:
            body = find()
        except (AttributeError, NotImplementedError):
            continue
        if id(body) not in seen:
            seen.add(id(body))
            yield body


def _last_hidden(body: nn.Module, ids: Int[Tensor, "B P"]) -> Float[Tensor, "B P D"] | None:
    output = body(input_ids=ids, use_cache=False)
    hidden = getattr(output, "last_hidden_state", None)
    return hidden if isinstance(hidden, Tensor) and hidden.shape[:2] == ids.shape else None


def _candidates(module: Any, vocab_size: int, own: Callable[..., Tensor] | None) -> Iterator[Head]:
    """Yield the heads that the configuration suggests, then the model's own code as the last resort."""
    output = module.get_output_embeddings()
    weight = getattr(output, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return
    config = module.config.get_text_config(decoder=True)
    number = (int, float)
    scales = [value for name in MULTIPLIERS if isinstance(value := getattr(config, name, None), number)]
    scales += [1 / value for name in DIVISORS if isinstance(value := getattr(config, name, None), number) and value]
    caps = [value for name in SOFTCAPS if isinstance(value := getattr(config, name, None), number)]
    bias = getattr(output, "bias", None)
    for scale, cap in itertools.product(dict.fromkeys([*map(float, scales), 1.0]), [*map(float, caps), None]):
        yield Head(weight=weight, bias=bias, vocab_size=vocab_size, logit_scale=scale, softcap=cap)
    if own is not None:
        yield Head(weight=weight, bias=bias, vocab_size=vocab_size, full=own)


def _agrees(head: Head, hidden: Float[Tensor, "B P D"], expected: Float[Tensor, "*B V"]) -> bool:
    if head.weight.shape[1] != hidden.shape[-1] and head.full is None:
        return False
    found = head.logits(hidden.flatten(0, 1))
    return _close(found, expected.reshape(-1, expected.shape[-1])[:, : head.vocab_size].float(), head.weight.dtype)


class _Given(nn.Module):
    """Stands where a model's body was and returns the hidden states that it is given."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _GivenOutput:
        return _GivenOutput(inputs_embeds)


class _GivenOutput:
    """A body's output with nothing in it but the hidden states, by name or as the first of a tuple."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]


def _own_head(
    module: nn.Module, body: nn.Module, hidden: Float[Tensor, "B P D"], expected: Float[Tensor, "B P V"]
) -> Callable[[Float[Tensor, "N D"]], Float[Tensor, "N V"]] | None:
    """Return the model's own code from hidden states to logits, or None where it cannot be had by exchanging the body."""
    names = [name for name, child in module.named_children() if child is body]
    if len(names) != 1:
        return None
    shell = copy.copy(module)
    shell.__dict__["_modules"] = {**module._modules, names[0]: _Given()}

    def own(hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        return _logits(shell(inputs_embeds=hidden.unsqueeze(0), use_cache=False))[0]

    try:
        found = own(hidden.flatten(0, 1))[:, : expected.shape[-1]]
    except Exception:  # a head that wants more of its body than hidden states; the probe then rests on natural sizes alone
        return None
    return own if _close(found.float(), expected.flatten(0, 1), next(module.parameters()).dtype) else None
