"""The forward passes that several texts want of one model, run as one: a matrix with forty rows costs little more than one with a single row."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from lmfuse.generate.cache import Branch, Reader, Seat, Wanted, masks_of, read_alone, reads_trees
from lmfuse.generate.rooms import Rooms, StackedCache
from lmfuse.memory import is_out_of_memory
from lmfuse.model_head import TOLERANCE
from lmfuse.models import LanguageModel

PASS_TOKENS = 32  # that a pass costs whatever it reads: the weights have to come from memory
MOST_TOKENS = 8192  # of one pass, with padding
MOST_LOGITS = 1 << 26  # at once: 256 MB as float32
_reads_together: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_asking = threading.Lock()


def read_many(wanted: Sequence[Wanted]) -> list[Float[Tensor, "_ V"]]:
    """Run the forward passes of several readers of one model, whose ``Rooms`` they share; wants ``torch.inference_mode``.

    Returns:
        What ``read_alone`` would return for each, but for rounding.
    """
    if len(wanted) == 1 or not reads_together(wanted[0].reader.model):
        return [read_alone(each) for each in wanted]
    found: dict[int, Tensor] = {}
    for places in divided([len(each.ids) for each in wanted]):
        several = [wanted[place] for place in places]
        reads = _read_stacked(several) if len(several) > 1 else [read_alone(several[0])]
        found.update(zip(places, reads, strict=True))
    return [found[place] for place in range(len(wanted))]


def divided(lengths: Sequence[int]) -> list[list[int]]:
    """Divide texts with so many tokens to read into passes, so that passes and padding cost least together.

    Returns:
        For each pass the places of its texts, in order.

    >>> divided([1, 1, 40, 1]), divided([1, 30, 40]), divided([9000, 9000])
    ([[0, 1, 3], [2]], [[0], [1, 2]], [[0], [1]])
    """
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    best = [(0, 0)]  # for so many of the shortest: what they cost, and where their last pass begins
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        begins = [begin for begin in range(end) if begin == end - 1 or (end - begin) * longest <= MOST_TOKENS]
        best.append(min((best[begin][0] + PASS_TOKENS + (end - begin) * longest, begin) for begin in begins))
    passes, end = list[list[int]](), len(order)
    while end:
        begin = best[end][1]
        passes.append(sorted(order[begin:end]))
        end = begin
    return passes[::-1]


def _read_stacked(wanted: Sequence[Wanted]) -> list[Float[Tensor, "_ V"]]:
    model, device = wanted[0].reader.model, wanted[0].reader.model.device
    counts = [len(each.ids) for each in wanted]
    held = [each.reader.length for each in wanted]
    ids, positions = (torch.zeros(len(wanted), max(counts), dtype=torch.int64) for _ in range(2))
    for row, (each, before, new) in enumerate(zip(wanted, held, counts, strict=True)):
        ids[row, :new] = torch.tensor(each.ids)
        positions[row, :new] = torch.arange(before, before + new) if each.positions is None else each.positions
    plain = not any(held) and all(each.sees is None for each in wanted)  # padding stands behind everything, and nothing sees it
    cache = StackedCache([each.reader.cache for each in wanted], [each.reader.seat.row for each in wanted], counts, device)
    hidden = model.body(
        input_ids=ids.to(device),
        attention_mask=None if plain else _masks(wanted, held, positions),
        position_ids=positions.to(device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    lines = [hidden[row, new - 1 if each.last_only else 0 : new] for row, (each, new) in enumerate(zip(wanted, counts, strict=True))]
    return _log_probs(model, lines)


def _masks(wanted: Sequence[Wanted], held: Sequence[int], positions: Tensor) -> Tensor | dict[str, Tensor]:
    """Return the masks of a pass; a query that is padding sees the first token, so that there is something that it sees."""
    rows, new = positions.shape
    longest = max(before + len(each.ids) for each, before in zip(wanted, held, strict=True))
    sees = torch.zeros(rows, new, longest, dtype=torch.bool)
    key_positions = torch.arange(longest).repeat(rows, 1)
    for row, (each, before) in enumerate(zip(wanted, held, strict=True)):
        count = len(each.ids)
        sees[row, :count, : before + count] = causal(count, before) if each.sees is None else each.sees
        sees[row, count:, 0] = True
        key_positions[row, before : before + count] = positions[row, :count]
    return masks_of(wanted[0].reader.model, sees, positions[:, :, None] - key_positions[:, None])


def causal(count: int, before: int) -> Tensor:
    """Return which tokens each of ``count`` new ones sees behind ``before`` others.

    >>> causal(2, 1).tolist()
    [[True, True, False], [True, True, True]]
    """
    return torch.ones(count, before + count, dtype=torch.bool).tril(before)


def _log_probs(model: LanguageModel, lines: Sequence[Float[Tensor, "_ D"]]) -> list[Float[Tensor, "_ V"]]:
    """Return the log-probabilities of hidden states, so few lines at once that the logits stay small; nothing keeps another text's alive."""
    most = max(1, MOST_LOGITS // model.tokenizer.vocabulary.size)
    found, begin = list[Tensor](), 0
    while begin < len(lines):
        end, count = begin + 1, len(lines[begin])
        while end < len(lines) and count + len(lines[end]) <= most:
            end, count = end + 1, count + len(lines[end])
        if count > most:
            found.append(torch.cat([model.head.logits(part).log_softmax(-1) for part in lines[begin].split(most)]))
        else:
            logits = model.head.logits(torch.cat(list(lines[begin:end])))
            found += [part.log_softmax(-1) for part in logits.split([len(line) for line in lines[begin:end]])]
        begin = end
    return found


def reads_together(model: LanguageModel) -> bool:
    """Return whether a model reads several texts in one pass as it reads each alone; found out by asking it, once."""
    with _asking:
        if model.module not in _reads_together:
            _reads_together[model.module] = reads_trees(model) and _ask(model)
        return _reads_together[model.module]


@torch.inference_mode()
def _ask(model: LanguageModel) -> bool:
    size = model.tokenizer.vocabulary.size
    texts = [[(7919 * place + start) % size for place in range(count)] for start, count in ((3, 5), (11, 2), (5, 3))]
    rooms = Rooms(len(texts))
    readers = [Reader(model, Seat(rooms, row, read_alone)) for row in range(len(texts))]
    try:
        found = _read_stacked([Wanted(reader, ids) for reader, ids in zip(readers, texts, strict=True)])
        again = _read_stacked([Wanted(reader, ids[:2]) for reader, ids in zip(readers[::2], texts[::2], strict=True)])
    except Exception as reason:  # attention that takes no mask of ours, or caches that it wants to know by name
        if is_out_of_memory(reason):
            raise
        return False
    for place, ids in enumerate(texts):
        reader = Reader(model)
        pairs = [(found[place], reader.read(ids))]
        if place != 1:
            pairs.append((again[place // 2], reader.read_branches([Branch(len(ids), tuple(ids[:2]))])[0].log_probs))
        for one, other in pairs:
            close = TOLERANCE.get(model.dtype, 1e-3) * max(float(other.abs().max()), 1e-6)
            if one.shape != other.shape or float((one - other).abs().max()) > close:
                return False
    return True
