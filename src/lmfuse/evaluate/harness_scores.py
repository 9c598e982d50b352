"""How likely models find continuations: by one model's own tokens, by the judgement of several, or by their mixture over bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from lmfuse.decode.byte_mixture import ByteMixture, mix
from lmfuse.decode.pack_llm import PackLLM
from lmfuse.decode.unite import Unite
from lmfuse.errors import InputError
from lmfuse.evaluate.harness_models import Ensemble
from lmfuse.evaluate.harness_prompts import Context, cut_left
from lmfuse.forward import RowPlan, row_logits
from lmfuse.generate.byte_reader import ByteReader, allowed_symbols
from lmfuse.generate.cache import Seat
from lmfuse.generate.crew import Crew
from lmfuse.generate.joint import prompt_nats_per_byte
from lmfuse.generate.session import Session
from lmfuse.generate.tokens import END, unfinished
from lmfuse.models import LanguageModel
from lmfuse.types import Document, Encoding
from lmfuse.writing import Passage, WritingSettings

SLACK = 8  # tokens of room: bytes of a character that is not finished are tokens of their own
Mix = Callable[[Float[np.ndarray, "S 257"]], Float[np.ndarray, "257"]]
Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Score:
    """The log-likelihood of a continuation in nats, and whether greedy writing gives it."""

    log_prob: float
    greedy: bool


# ── one model's own tokens ──────────────────────────────────────────────────────────────────────────────────────────────


def token_pair(ensemble: Ensemble, context: str, continuation: str) -> Pair:
    """Return the tokens of a context and of a continuation as the harness's own Hugging Face class cuts them.

    The continuation's are those of both together, without as many as the context alone has: where a token reaches over the boundary these
    are not the continuation's bytes. Nothing would be left of some; these are cut for themselves. What stands before a continuation
    without a context is the start token.

    Raises:
        InputError: there is no start token.
    """
    model = ensemble.models("plain" if context else "empty")[0]
    whole = model.tokenizer.encode(Document.plain(context + continuation)).ids.tolist()
    before = model.tokenizer.encode(Document.plain(context)).ids.tolist() if context else list(model.tokenizer.start_ids)
    if not before:
        raise InputError(f"{ensemble.labels[0]} has no start token, and nothing stands before {continuation[:40]!r}", "use another task")
    return before, whole[len(before) :] or model.tokenizer.pieces([continuation.encode()])[0]


def score_tokens(model: LanguageModel, pairs: Sequence[Pair]) -> list[Score]:
    """Return the scores of continuations, all read in one batch; a context that does not fit loses its beginning.

    Raises:
        InputError: a continuation alone exceeds the model's context.
        ResourceError: memory does not suffice.
    """
    kept = []
    for before, after in pairs:
        if len(after) > model.context:
            raise InputError(f"a continuation of {len(after):,} tokens, the model reads at most {model.context:,}", "use another task")
        kept.append(np.array([*before, *after][-(model.context + 1) :], np.int64))
    places = tuple(np.arange(len(ids) - len(after), len(ids), dtype=np.int64) for ids, (_, after) in zip(kept, pairs, strict=True))
    plan = RowPlan(places, np.concatenate([[0], np.cumsum([len(place) for place in places])]).astype(np.int64))
    nothing = [np.full(len(ids), -1, np.int64) for ids in kept]
    encodings = [Encoding(ids, none, none) for ids, none in zip(kept, nothing, strict=True)]
    found, best = np.zeros(plan.num_rows), np.zeros(plan.num_rows, np.bool_)
    for chunk in row_logits(model, encodings, plan, batch_tokens=max((len(ids) for ids in kept), default=1) * len(kept)):
        rows = chunk.logits.log_softmax(-1)
        found[chunk.rows] = rows.gather(1, chunk.next_ids[:, None])[:, 0].cpu().numpy()
        best[chunk.rows] = (rows.argmax(-1) == chunk.next_ids).cpu().numpy()
    spans = [slice(int(first), int(last)) for first, last in zip(plan.offsets, plan.offsets[1:], strict=False)]
    return [Score(float(found[span].sum()), bool(best[span].all())) for span in spans]


def windows(start: int, ids: Sequence[int], most: int) -> Iterator[Pair]:
    """Yield parts of a text and what stands before each: every token is predicted once, with at most ``most`` tokens before it.

    As the harness cuts them: the last part has as much before it as fits.

    >>> list(windows(9, [0, 1, 2, 3, 4], 2))
    [([9], [0, 1]), ([1], [2, 3]), ([2, 3], [4])]
    """
    if ids:
        yield [start], list(ids[:most])
    done = min(most, len(ids))
    while done < len(ids):
        size = min(most, len(ids) - done)
        yield list(ids[done + size - most - 1 : done]), list(ids[done : done + size])
        done += size


def roll_tokens(ensemble: Ensemble, text: str, batch: int) -> float:
    """Return the log-likelihood of a whole text: the weighted mean over the models of what their own tokens say.

    Raises:
        InputError: a model has no start token.
    """
    totals = []
    for label, model in zip(ensemble.labels, ensemble.models("empty"), strict=True):
        start = model.tokenizer.start_ids
        if not start:
            raise InputError(f"{label} has no start token, and nothing stands before a whole text", "use models that have one")
        ids = model.tokenizer.encode(Document.plain(text)).ids[len(start) :].tolist()
        pairs = list(windows(start[-1], ids, model.context))
        totals.append(
            math.fsum(score.log_prob for at in range(0, len(pairs), batch) for score in score_tokens(model, pairs[at : at + batch]))
        )
    return _mean(ensemble, np.array(totals)[:, None])[0]


def _mean(ensemble: Ensemble, log_probs: Float[np.ndarray, "S N"]) -> list[float]:
    """Return the weighted mean over the models that have a weight."""
    share = np.array(ensemble.weights, np.float64)
    counted = log_probs[share > 0] * share[share > 0, None]
    return (counted.sum(0) / share.sum()).tolist()


# ── several ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def fitted(ensemble: Ensemble, context: Context, rooms: Sequence[int]) -> Context:
    """Return a context without so much of its beginning as does not fit in front of ``rooms`` tokens for each model.

    Raises:
        InputError: a conversation does not fit: its beginning cannot be left out; or nothing fits.
    """
    models = ensemble.models("chat" if context.messages else "plain")
    for label, model, room in zip(ensemble.labels, models, rooms, strict=True):
        if room >= model.context:
            raise InputError(
                f"{room:,} tokens to read behind a prompt, {label} reads at most {model.context:,}", "use another task, or model"
            )
        if context.messages:
            size = len(model.tokenizer.render_prompt(context.messages)) + len(model.tokenizer.pieces([context.text.encode()])[0])
            if size + room > model.context:
                raise InputError(
                    f"a conversation of {size:,} tokens and {room:,} to follow, {label} reads at most {model.context:,}",
                    "--num_fewshot fewer",
                )
        elif context.text:
            context = Context(cut_left(model, context.text, model.context - room))
    return context


def score_continuations(ensemble: Ensemble, groups: Sequence[tuple[Context, Sequence[str]]]) -> list[list[Score]]:
    """Return for each context the scores of what may follow it; the models read it once, and all contexts side by side.

    Raises:
        InputError, TokenizerError, ResourceError: see ``fitted`` and ``Writer.write``.
    """
    works = []
    for context, continuations in groups:
        data = [each.encode() for each in continuations]
        models = ensemble.models("chat" if context.messages else "plain")
        room = [max(map(len, model.tokenizer.pieces(data))) + SLACK for model in models]
        works.append(partial(_scores, ensemble, fitted(ensemble, context, room), data))
    return ensemble.together(works)


def _scores(ensemble: Ensemble, context: Context, data: Sequence[bytes], seats: Sequence[Seat]) -> list[Score]:
    with ensemble.reading(context, seats=seats) as crew:
        return (_by_bytes if ensemble.by_bytes else _by_judges)(ensemble, crew, data)


def _by_judges(ensemble: Ensemble, crew: Crew, data: Sequence[bytes]) -> list[Score]:
    firsts = crew.each(lambda index: _first_bytes(crew.sessions[index]))
    verdicts = crew.each(lambda index: crew.sessions[index].judge([each for each in data if each]))
    nll = iter(np.array([[verdict.nll_nats for verdict in line] for line in verdicts]).T)
    found = []
    for text in data:
        log_prob = _mean(ensemble, -next(nll)[:, None])[0] if text else 0.0
        near = any(first and (text.startswith(first) or first.startswith(text)) for first in firsts)
        found.append(Score(log_prob, not text or ((near or isinstance(ensemble.method, Unite)) and _writes(ensemble, crew, text))))
    return found


def _first_bytes(session: Session) -> bytes:
    """Return what a model writes first, alone and greedily; empty for the end."""
    token_id = session.chooser(session.prediction, b"")
    written = b"" if token_id == END else session.model.tokenizer.vocabulary.bytes_of(token_id)
    return written[1:] if session.spelling.dummy and written[:1] == b" " else written


def _writes(ensemble: Ensemble, crew: Crew, text: bytes) -> bool:
    """Return whether the models together, each taking the likeliest, would write exactly these bytes next."""
    crew.each(lambda index: crew.sessions[index].restart())
    written = ensemble.continued(crew, WritingSettings(max_bytes=len(text)))
    return "".join(each.text for each in written if isinstance(each, Passage)).encode() == text


def _by_bytes(ensemble: Ensemble, crew: Crew, data: Sequence[bytes]) -> list[Score]:
    mixture, found = _mixture(ensemble, crew), []
    for text in data:
        crew.each(lambda index: crew.sessions[index].restart())
        readers = _readers(ensemble, crew)
        costs, greedy, pending = list[float](), True, b""
        for place, byte in enumerate(text):
            mixed = mixture(_next_bytes(crew, readers))
            costs.append(float(mixed[byte]))
            greedy = greedy and int(np.argmax(np.where(allowed_symbols(pending), mixed, -np.inf))) == byte
            pending = unfinished(pending + bytes([byte])) or b""
            if place < len(text) - 1:
                _push(crew, readers, byte)
        found.append(Score(math.fsum(costs), greedy))
    return found


def _readers(ensemble: Ensemble, crew: Crew) -> list[ByteReader]:
    return crew.each(lambda index: ByteReader(crew.sessions[index], ensemble.sorted_tokens(crew.sessions[index])))


def _next_bytes(crew: Crew, readers: Sequence[ByteReader]) -> Float[np.ndarray, "S 257"]:
    return np.array(crew.each(lambda index: readers[index].log_probs()))


def _push(crew: Crew, readers: Sequence[ByteReader], byte: int) -> None:
    crew.each(lambda index: readers[index].push(byte))


def _mixture(ensemble: Ensemble, crew: Crew) -> Mix:
    if isinstance(ensemble.method, PackLLM):
        nats = np.array(crew.each(lambda index: prompt_nats_per_byte(crew.sessions[index].model, crew.prompt)))
        weights = ensemble.method(nats).tolist()
        return lambda log_probs: mix(log_probs, weights)
    assert isinstance(ensemble.method, ByteMixture)
    return ensemble.method


def roll_bytes(ensemble: Ensemble, text: str) -> float:
    """Return the log-likelihood of a whole text under the mixture over bytes.

    Where a model can read no more, all begin again behind the last half of what they can read, if possible between two words.

    Raises:
        InputError, TokenizerError, ResourceError: see ``Writer.write``.
    """
    costs: list[float] = []
    data = text.encode()
    while len(costs) < len(data):
        before = data[: len(costs)].decode()
        context = fitted(ensemble, Context(before), [model.context // 2 for model in ensemble.models("plain")])
        with ensemble.reading(context) as crew:
            costs += _roll_on(ensemble, crew, data[len(costs) :])
    return math.fsum(costs)


def _roll_on(ensemble: Ensemble, crew: Crew, data: bytes) -> list[float]:
    """Return what bytes cost, up to where a model's context is full."""
    mixture, costs = _mixture(ensemble, crew), list[float]()
    readers = _readers(ensemble, crew)
    for place, byte in enumerate(data):
        room = min(reader.session.room - reader.num_tokens + reader.session.num_tokens for reader in readers)
        between = byte & 0xC0 != 0x80
        if place and between and (room <= SLACK or (room <= 4 * SLACK and byte == 0x20)):
            break
        costs.append(float(mixture(_next_bytes(crew, readers))[byte]))
        _push(crew, readers, byte)
    return costs
