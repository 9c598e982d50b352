"""Several models write one text by what they expect next: byte by byte, or string by string. Nobody writes ahead and nobody judges."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

from lmfuse.decode.boundaries import word_ends
from lmfuse.decode.byte_mixture import END_SYMBOL, ByteMixture, mix
from lmfuse.decode.pack_llm import PackLLM
from lmfuse.decode.unite import Unite
from lmfuse.errors import TokenizerError
from lmfuse.forward import RowPlan, row_logits
from lmfuse.generate.byte_reader import ByteReader, SortedTokens, allowed_symbols
from lmfuse.generate.crew import Crew
from lmfuse.generate.draft import Written
from lmfuse.generate.release import Reason
from lmfuse.generate.segments import NO_LIMIT, commit, fitting, tokens_left
from lmfuse.generate.session import Session
from lmfuse.generate.tokens import unfinished
from lmfuse.models import LanguageModel
from lmfuse.types import Document
from lmfuse.writing import Passage, Prompt, WritingSettings

Mix = Callable[[Float[np.ndarray, "S 257"]], Float[np.ndarray, "257"]]
PROMPT_BATCH_TOKENS = 4096


class Picker:
    """Takes the likeliest of some things, or draws one."""

    def __init__(self, settings: WritingSettings, crew: Crew) -> None:
        digest = hashlib.sha256(f"{settings.seed} {crew.sessions[0].ids}".encode()).digest()
        self.settings, self._random = settings, np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def __call__(self, log_probs: Float[np.ndarray, "N"]) -> int:
        """Return an index; at equal probabilities the lowest."""
        if not self.settings.temperature:
            return int(np.argmax(log_probs))
        with np.errstate(over="ignore"):  # a small temperature makes all but the likeliest impossible
            scaled = np.exp((log_probs - log_probs.max()) / self.settings.temperature)
        order = np.argsort(-scaled, kind="stable")
        probs = scaled[order] / scaled.sum()
        probs = np.where(np.cumsum(probs) - probs < self.settings.top_p, probs, 0.0)
        return int(order[self._random.choice(len(order), p=probs / probs.sum())])


# ── byte by byte ────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_mixture(crew: Crew, method: ByteMixture, settings: WritingSettings) -> Iterator[Passage | Reason]:
    """Yield words of the models' mixture; the author of a word is the model that found it likeliest, scores are nats per byte."""
    yield from _write_bytes(crew, method, settings)


def write_packed(crew: Crew, method: PackLLM, settings: WritingSettings) -> Iterator[Passage | Reason]:
    """Yield words of the mixture with weights by the prompt's likelihood."""
    weights = method(np.array(crew.each(lambda index: prompt_nats_per_byte(crew.sessions[index].model, crew.prompt)))).tolist()
    yield from _write_bytes(crew, lambda log_probs: mix(log_probs, weights), settings)


def prompt_nats_per_byte(model: LanguageModel, prompt: Prompt) -> float:
    """Return a model's cross-entropy of a prompt, read as plain text; ``nan`` where nothing of it can be judged."""
    said = prompt if isinstance(prompt, str) else "\n".join(segment.text for segment in prompt)
    encoding = model.tokenizer.encode(Document.plain(said))
    plan = RowPlan.of([encoding])
    nll = 0.0
    for chunk in row_logits(model, [encoding], plan, batch_tokens=PROMPT_BATCH_TOKENS):
        nll += float(-chunk.logits.log_softmax(-1).gather(1, chunk.next_ids[:, None]).sum())
    place = plan.positions[0]
    num_bytes = int((encoding.ends[place] - encoding.starts[place]).sum())
    return nll / num_bytes if num_bytes else float("nan")


def byte_readers(crew: Crew) -> list[ByteReader]:
    """Return each model's view of the next byte."""
    return crew.each(lambda index: _byte_reader(crew.sessions[index]))


def _byte_reader(session: Session) -> ByteReader:
    vocabulary = session.model.tokenizer.vocabulary
    return ByteReader(session, SortedTokens.of(vocabulary, session.chooser.ends))


def _write_bytes(crew: Crew, mixture: Mix, settings: WritingSettings) -> Iterator[Passage | Reason]:
    readers, pick, most = byte_readers(crew), Picker(settings, crew), settings.max_tokens or NO_LIMIT
    word, costs = b"", list[Float[np.ndarray, "S"]]()  # the bytes of a word that may go on, and what each cost each model
    begin, reason = 0, "length"  # the byte at which the word begins
    while readers[0].session.num_tokens <= most and all(reader.room > 0 for reader in readers):
        crew.go_on()
        log_probs = np.array(crew.each(lambda index: readers[index].log_probs()))
        mixed = np.where(allowed_symbols(_pending(word)), mixture(log_probs), -np.inf)
        if np.isneginf(mixed).all():
            raise TokenizerError(f"no model can go on behind {word!r}", "use models whose tokenizers can represent every text")
        symbol = pick(mixed)
        if symbol == END_SYMBOL:
            reason = "stop"
            break
        word, costs = word + bytes([symbol]), [*costs, -log_probs[:, symbol]]
        end = _end_before_last(word)
        if end:
            if readers[0].fitting(begin + end, most) < begin + end:
                word = word[:end]
                break
            yield _word(crew, word[:end], costs[:end])
            word, costs, begin = word[end:], costs[end:], begin + end
        _push(crew, readers, symbol)
    whole = begin + len(word) - len(_pending(word))
    end = readers[0].fitting(whole, most)
    if end > begin:
        yield _word(crew, word[: end - begin], costs[: end - begin])
    crew.each(lambda index: readers[index].finish(end))
    yield "stop" if reason == "stop" and end == whole else "length"


def _push(crew: Crew, readers: list[ByteReader], symbol: int) -> None:
    crew.each(lambda index: readers[index].push(symbol))


def _pending(data: bytes) -> bytes:
    return unfinished(data) or b""


def _end_before_last(data: bytes) -> int:
    """Return the byte at which a word ends right before the last character; 0 where none does, or that is not whole."""
    text = "" if _pending(data) else data.decode()
    return len(text[:-1].encode()) if len(text) - 1 in word_ends(text, False) else 0


def _word(crew: Crew, word: bytes, costs: list[Float[np.ndarray, "S"]]) -> Passage:
    by_label = dict(zip(crew.labels, np.mean(costs, axis=0).tolist(), strict=True))
    return Passage(word.decode(), min(by_label, key=by_label.__getitem__), by_label)


# ── string by string ────────────────────────────────────────────────────────────────────────────────────────────────────


def write_union(crew: Crew, method: Unite, settings: WritingSettings) -> Iterator[Passage | Reason]:
    """Yield strings of about a token's length, each the best on average.

    A string's author is, of the models that named it, the one that finds it likeliest. Scores are those of each model's own likeliest string.
    """
    pick, leader = Picker(settings, crew), None
    while tokens_left(crew, settings) > 0:
        crew.go_on()
        named = crew.each(lambda index: _likeliest(crew.sessions[index], method.top_k))
        authors: dict[bytes, list[int]] = {}
        for index, strings in enumerate(named):
            for string in strings:
                authors.setdefault(string, []).append(index)
        union = list(authors)
        log_probs = np.array(_next_log_probs(crew, union))
        choice = method(log_probs, list(authors.values()), leader)
        if not np.isfinite(choice.scores).any():
            raise TokenizerError(f"no model can write any of {len(union)} strings", "use models whose tokenizers can represent every text")
        best = choice.index if not settings.temperature else pick(-choice.scores)
        if not union[best]:
            yield "stop"
            return
        text = union[best][: fitting(crew, union[best], settings)]
        if not text:
            break
        commit(crew, text)
        leader = max(authors[union[best]], key=log_probs[:, best].__getitem__)
        first = {crew.labels[index]: strings[0] for index, strings in enumerate(named) if strings}
        scores = {label: float(choice.scores[union.index(string)]) for label, string in first.items()}
        yield Passage(text.decode(), crew.labels[leader], scores, {label: string.decode() for label, string in first.items()})
    yield "length"


def _next_log_probs(crew: Crew, union: list[bytes]) -> list[list[float]]:
    return crew.each(lambda index: next_string_log_probs(crew.sessions[index], union))


def _likeliest(session: Session, top_k: int) -> list[bytes]:
    """Return the strings of a model's likeliest tokens, the likeliest first; tokens that are no whole characters are no strings.

    The likeliest of all is written on until its last character is whole. An empty string stands for the end.
    """

    def rule(written: Written) -> int | None:
        return len(written.data) if written.ended or not _pending(written.data) else None

    draft = session.propose(rule, session.room, greedy=True)
    vocabulary, dummy = session.model.tokenizer.vocabulary, session.spelling.dummy and not session.text
    found = [draft.text] if draft.text is not None else []
    for token_id in session.prediction.topk(min(top_k, vocabulary.size)).indices.tolist():
        token = vocabulary.bytes_of(token_id)
        token = token[1:] if dummy and token[:1] == b" " else token
        if token_id in session.chooser.ends:
            found.append(b"")
        elif token and unfinished(token) == b"":
            found.append(token)
    return list(dict.fromkeys(found))[:top_k]


def next_string_log_probs(session: Session, strings: list[bytes]) -> list[float]:
    """Return a model's log-probability of each string as its next token, or of the first token that it would write for it."""
    lead = b" " if session.spelling.dummy and not session.text else b""
    first = session.model.tokenizer.first_pieces([lead + string for string in strings]).tolist()
    end = -session.chooser.end_nll(session.prediction)
    found = [float(session.prediction[token_id]) if token_id >= 0 else -np.inf for token_id in first]
    return [value if string else (end if end == end else -np.inf) for string, value in zip(strings, found, strict=True)]
