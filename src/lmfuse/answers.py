"""A model answers questions with its own chat template: batched, turn by turn, resumable.

The result is a file of conversations (OpenAI's form, one a line) that a recipe can train on and measure with. An answer that met the
limit of tokens is context only (``"weight": 0``): it does not show how a turn ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Int
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.artefacts import content_key, lock
from lmfuse.console import Console
from lmfuse.disk import full_disk_is_an_error, write_atomic
from lmfuse.errors import InputError, TokenizerError
from lmfuse.models import LanguageModel, ModelSpec, load_model, pick_device
from lmfuse.types import END_OF_TURN, Segment

HEADER = "key"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Answering:
    """How answers are written.

    Attributes:
        max_new_tokens: of one answer; one that is longer is cut and counted.
        temperature: 0 takes the likeliest token each time; else tokens are drawn.
        batch_prompts: prompts that are answered together; those of similar length.
        seed: of what is drawn.
    """

    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    batch_prompts: Annotated[int, Field(ge=1)] = 8
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model said: its text without surrounding whitespace, whether it ended by itself, and the tokens that it took."""

    text: str
    finished: bool
    num_tokens: int


@dataclass(frozen=True)
class Question:
    """What a user says, turn after turn, whatever the answers; ``id`` is its identity in files."""

    id: str
    turns: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    """Read questions from JSON lines: ``{"turns": [...]}`` or ``{"question": "..."}``, with ``question_id`` or ``id`` if it has one.

    Raises:
        InputError: the file is missing, malformed or empty, or an id stands twice; names the line.
    """
    hint = 'one object a line: {"turns": ["...", "..."]} or {"question": "..."}'
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # nothing else ends a line of JSON lines
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", hint) from None
    found: dict[str, Question] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        turns: Any = None
        with suppress(ValueError, AttributeError):
            record = json.loads(line)
            turns = record.get("turns") or [record.get("question")]
            name = next((str(record[key]) for key in ("question_id", "id") if record.get(key) is not None), str(number))
        if not isinstance(turns, list) or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise InputError(f"{path}, line {number}: no question", hint)
        if name in found:
            raise InputError(f"{path}, line {number}: the id {name!r} stands twice", "give each question an id of its own")
        found[name] = Question(name, tuple(turns))
    if not found:
        raise InputError(f"{path}: no question in it", hint)
    return list(found.values())


Rendered = Int[torch.Tensor, "_"]


def render(model: LanguageModel, prompt: Sequence[Segment], settings: Answering) -> Rendered | str:
    """Return a prompt's ids, or why the model cannot answer it: too long, or beyond its chat template."""
    try:
        ids = torch.from_numpy(model.tokenizer.render_prompt(prompt))
    except TokenizerError:
        raise
    except InputError as problem:
        return str(problem)
    if len(ids) + settings.max_new_tokens > model.context:
        return f"a prompt of {len(ids)} tokens and {settings.max_new_tokens} more exceed the context of {model.context}"
    return ids


def answer_prompts(
    model: LanguageModel, prompts: Sequence[Rendered], settings: Answering, progress: Callable[[int], None] | None = None
) -> Iterator[list[tuple[int, Answer]]]:
    """Yield prompts' places and answers, batch by batch of similar length, the shortest first."""
    order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), place))
    for begin in range(0, len(order), settings.batch_prompts):
        some = order[begin : begin + settings.batch_prompts]
        answers = _answer_batch(model, [prompts[place] for place in some], settings)
        if progress is not None:
            progress(sum(answer.num_tokens for answer in answers))
        yield list(zip(some, answers, strict=True))


@torch.inference_mode()
def _answer_batch(model: LanguageModel, prompts: Sequence[torch.Tensor], settings: Answering) -> list[Answer]:
    control = model.tokenizer.vocabulary.control
    stops = sorted({control[name] for name in ("end_of_turn", "eos") if name in control})
    longest = max(len(ids) for ids in prompts)
    input_ids = torch.zeros((len(prompts), longest), dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):
        input_ids[row, longest - len(ids) :], mask[row, longest - len(ids) :] = ids, 1
    drawn = (
        {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0} if settings.temperature else {"do_sample": False}
    )
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        digest = hashlib.sha256(input_ids.numpy().tobytes() + str(settings.seed).encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # by content: which prompts came before does not matter
        written = model.module.generate(
            input_ids.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=settings.max_new_tokens,
            eos_token_id=stops or None, pad_token_id=stops[0] if stops else 0, use_cache=True, repetition_penalty=1.0, num_beams=1, **drawn,
        )  # fmt: skip
    return [_read(model, row[longest:].tolist(), stops) for row in written.cpu()]


def _read(model: LanguageModel, ids: list[int], stops: Sequence[int]) -> Answer:
    end = next((place for place, token_id in enumerate(ids) if token_id in stops), None)
    vocabulary = model.tokenizer.vocabulary
    said = b"".join(vocabulary.bytes_of(token_id) for token_id in ids[:end] if token_id < vocabulary.size)
    text = said.replace(END_OF_TURN, b"").decode("utf-8", errors="ignore")  # a character that was cut at the limit
    return Answer(text.strip(), end is not None, len(ids) if end is None else end + 1)


def converse(
    model: LanguageModel, questions: Sequence[Question], settings: Answering, out: Path, progress: Callable[[int], None] | None = None
) -> dict[str, int]:
    """Answer questions turn by turn and write the conversations to ``out``; whole batches that an interrupted call has answered are kept.

    A conversation ends early where an answer is empty or was cut (what follows would rest on it), and where a prompt is too long for the
    model or its chat template cannot express it. Questions may be added or removed between calls.

    Returns:
        Counters: ``answers``, ``answers_cut``, ``answers_empty``, ``prompts_left_out``, ``tokens``.

    Raises:
        BusyError: another process writes the same file.
        InputError: there are unfinished answers of another model or of other settings.
        TokenizerError: the model has no chat template.
        ResourceError: the disk is full.
    """
    key = content_key(["answers", model.key, str(model.dtype), model.tokenizer.key, asdict(settings)])
    left_out = 0
    with lock(out):
        journal = _Journal(out.with_name(f"{out.name}.partial"), key)
        for turn in range(max(len(question.turns) for question in questions)):
            waiting: list[Question] = []
            prompts: list[Rendered] = []
            for question in questions:
                if len(question.turns) > turn and journal.goes_on(question, turn) and not journal.has(question, turn):
                    rendered = render(model, journal.prompt(question, turn), settings)
                    if isinstance(rendered, str):
                        left_out += 1
                        continue
                    waiting.append(question)
                    prompts.append(rendered)
            for batch in answer_prompts(model, prompts, settings, progress):
                journal.add([(waiting[place], turn, answer) for place, answer in batch])
        records = [record for question in questions if (record := journal.record(question))["messages"]]
        if not records:
            raise InputError(
                f"no question could be answered; {left_out} are too long or beyond the chat template", "allow fewer new tokens"
            )
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        write_atomic(out, ("\n".join(lines) + "\n").encode())
        journal.path.unlink()
    return journal.counters(questions) | {"prompts_left_out": left_out}


def answer_file(spec: ModelSpec, questions: Path, settings: Answering, out: Path) -> None:
    """Let a model answer a file of questions; say what it did.

    Raises:
        LmfuseError: see ``read_questions``, ``load_model`` and ``converse``.
    """
    asked = read_questions(questions)
    model, console = load_model(spec, pick_device("auto")), Console()
    with console.task(
        f"{spec.label} answers {len(asked):,} questions", sum(len(each.turns) for each in asked) * settings.max_new_tokens
    ) as advance:
        counters = converse(model, asked, settings, out, advance)
    console.say(", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counters.items()) + f"; written to {out}")


class _Journal:
    """Answers so far, on disk batch by batch; each under what was asked up to it."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        header = json.dumps({HEADER: key})
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [header]
        if lines[0] != header:
            raise InputError(f"{path} holds answers of another model or of other settings", "remove it, or name another --out")
        for line in lines[1:]:
            with suppress(ValueError, TypeError, AttributeError):  # the last line of a process that was killed
                self.answers |= {asked: Answer(**answer) for asked, answer in json.loads(line).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = [header, *([json.dumps({asked: asdict(answer) for asked, answer in self.answers.items()})] if self.answers else [])]
        write_atomic(path, ("\n".join(whole) + "\n").encode())  # only whole lines, so that the next one begins a line

    @staticmethod
    def _asked(question: Question, turn: int) -> str:
        return content_key([question.id, question.turns[: turn + 1]])

    def has(self, question: Question, turn: int) -> bool:
        return self._asked(question, turn) in self.answers

    def answer(self, question: Question, turn: int) -> Answer | None:
        return self.answers.get(self._asked(question, turn))

    def add(self, batch: Sequence[tuple[Question, int, Answer]]) -> None:
        """Keep the answers of one batch: all of them or, if the process is killed, none, so that batches are the same afterwards."""
        found = {self._asked(question, turn): answer for question, turn, answer in batch}
        self.answers |= found
        with full_disk_is_an_error(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({asked: asdict(answer) for asked, answer in found.items()}) + "\n")

    def goes_on(self, question: Question, turn: int) -> bool:
        """Return whether a turn has everything that it stands on."""
        before = [self.answer(question, earlier) for earlier in range(turn)]
        return all(answer is not None and answer.finished and answer.text for answer in before)

    def prompt(self, question: Question, turn: int) -> list[Segment]:
        said = []
        for earlier in range(turn):
            answer = self.answer(question, earlier)
            assert answer is not None, "goes_on says so"
            said += [Segment(question.turns[earlier], "user", trained=False), Segment(answer.text, "assistant")]
        return [*said, Segment(question.turns[turn], "user", trained=False)]

    def record(self, question: Question) -> dict[str, Any]:
        """Return a conversation as it is written to the file; empty answers are left out."""
        messages: list[dict[str, Any]] = []
        for turn, asked in enumerate(question.turns):
            answer = self.answer(question, turn)
            if answer is None or not answer.text:
                break
            weight = {} if answer.finished else {"weight": 0}
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer.text, **weight}]
        return {"id": question.id, "messages": messages}

    def counters(self, questions: Sequence[Question]) -> dict[str, int]:
        given = [self.answer(question, turn) for question in questions for turn in range(len(question.turns))]
        answers = [answer for answer in given if answer is not None]
        return {
            "answers": len(answers), "answers_cut": sum(not answer.finished for answer in answers),
            "answers_empty": sum(not answer.text for answer in answers), "tokens": sum(answer.num_tokens for answer in answers),
        }  # fmt: skip
