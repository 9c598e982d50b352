"""``lmfuse generate`` and ``lmfuse chat``: names of models in, a text on the terminal or a file of texts out."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model
from rich.console import Console as RichConsole
from rich.text import Text

from lmfuse.catalogue import DecodeMethod
from lmfuse.console import Console
from lmfuse.errors import InputError, ResourceError
from lmfuse.generate import FusedWriter
from lmfuse.generate_batch import BATCH_PROMPTS, read_tasks, write_batch
from lmfuse.named_models import NamedModels
from lmfuse.schema_errors import problems
from lmfuse.types import Segment
from lmfuse.writing import Finish, Passage, Prompt, Writer, WritingSettings
from lmfuse.yaml_strict import load_yaml

COLOURS = ("green", "cyan", "magenta", "yellow", "blue", "red")
TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")  # set the direction of what follows


class _Method(BaseModel):
    method: DecodeMethod


def parse_method(name: str, parameters: Sequence[str]) -> Any:
    """Return a method of the ``decode`` family.

    >>> parse_method("cool", ["length=3", "weights=[2, 1]"]).weights
    (2.0, 1.0)

    Raises:
        InputError: no such method or parameter, or an impossible value.
    """
    values: dict[str, Any] = {"name": name}
    for parameter in parameters:
        key, equals, text = parameter.partition("=")
        if not equals or not key:
            raise InputError(f"--set {parameter}: expected name=value", "for example --set length=8, --set weights=[2, 1]")
        values[key] = load_yaml(text, f"--set {key}")
    try:
        return _Method.model_validate({"method": values}).method
    except ValidationError as error:
        raise InputError(problems(error, _Method), "`lmfuse methods` lists methods, `lmfuse methods NAME` their parameters") from None


def make_settings(**values: Any) -> WritingSettings:
    """Return settings.

    Raises:
        InputError: an impossible value.
    """
    try:
        return WritingSettings(**values)
    except ValidationError as error:
        raise InputError(problems(error, create_model("Settings", settings=(WritingSettings, ...)))) from None


class Printer:
    """Shows passages as they come: coloured by author on a terminal, the bare text elsewhere."""

    def __init__(self, labels: Sequence[str], *, explain: bool, file: Any = None) -> None:
        """Prepare; with ``explain`` every passage has a line of its own, with all proposals and scores."""
        self.colours = {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(labels)}
        self.explain, self.file = explain, file or sys.stdout
        self.rich = RichConsole(file=self.file, highlight=False, soft_wrap=True)

    def show(self, written: Iterable[Passage | Finish]) -> str:
        """Print a text; return it."""
        said = ""
        for each in written:
            if isinstance(each, Finish):
                self._end(each)
            else:
                said += each.text
                self._passage(each)
        return said

    def say(self, line: str) -> None:
        """Print a line that nobody wrote."""
        self.rich.print(Text(visible(line), style="yellow"))

    def _passage(self, passage: Passage) -> None:
        colour = self.colours.get(passage.author, "default")
        if not self.explain:
            if self.rich.is_terminal:
                self.rich.print(Text(visible(passage.text), style=colour), end="")
            else:
                self.file.write(passage.text)
            self.file.flush()
            return
        line = Text(f"{passage.author:>16}  ", style=colour) + Text(repr(visible(passage.text)), style=colour)
        proposals = []
        for label in dict.fromkeys([*passage.candidates, *passage.scores]):
            said = [repr(visible(passage.candidates[label]))] if label in passage.candidates else []
            proposals.append(" ".join([label, *said, *([f"{passage.scores[label]:.3f}"] if label in passage.scores else [])]))
        self.rich.print(line + Text(("   " + "; ".join(proposals)) if passage.scores else "", style="dim"))

    def _end(self, finish: Finish) -> None:
        if not self.explain:
            self.rich.print()
        if self.explain or self.rich.is_terminal:
            line = Text("  ").join(Text(label, style=colour) for label, colour in self.colours.items())
            tokens = ", ".join(f"{count:,}" for count in finish.usage.tokens.values())
            self.rich.print(line + Text(f"   {finish.reason}; {finish.usage.text_bytes:,} bytes; tokens: {tokens}", style="dim"))


def visible(text: str) -> str:
    r"""Return a text without characters that steer a terminal: a model may write anything.

    >>> visible("a\x1b[31mb\tc\n")
    'a�[31mb\tc\n'
    """
    return "".join("�" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def prompt_of(text: str, system: str, chat_template: str) -> Prompt:
    """Return a prompt: plain text where there is no chat template, else a user's message.

    Raises:
        InputError: a system message without a chat template.
    """
    if chat_template == "none":
        if system:
            raise InputError("--system: a system message needs a chat template", "add --chat-template own")
        return text
    return [*([Segment(system, "system", trained=False)] if system else []), Segment(text, "user", trained=False)]


def generate(
    named: NamedModels,
    method: object,
    settings: WritingSettings,
    *,
    prompt: str | None,
    file: Path | None,
    out: Path | None,
    system: str,
    explain: bool,
    batch_prompts: int = BATCH_PROMPTS,
) -> None:
    """Write one text to the terminal, or one for each line of a file, ``batch_prompts`` at the same time.

    Raises:
        InputError: not exactly one of ``prompt`` and ``file``, ``file`` without ``out`` or the reverse; or see ``load_model``.
        BusyError, ResourceError: see ``write_batch``.
    """
    if (prompt is None) == (file is None) or (file is None) != (out is None):
        raise InputError("generate: give --prompt, or --file and --out")
    if file is None or out is None:
        said = prompt_of(prompt or "", system, named.chat_template)
        if isinstance(said, str) and said.endswith(" "):
            Console().warn(
                "the prompt ends in a space: most models write the space together with the next word, and go on badly behind one"
            )
        writer = FusedWriter(named.load(), named.labels, method)
        Printer(writer.models, explain=explain).show(writer.write(said, settings))
        return
    tasks = read_tasks(file, chat=named.chat_template != "none", system=system)
    writer, console = FusedWriter(named.load(), named.labels, method), Console()
    with console.task(f"{len(tasks):,} texts by {', '.join(writer.models)}", len(tasks), "texts") as advance:
        counters = write_batch(writer, tasks, settings, out, advance, batch_prompts)
    console.say(", ".join(f"{name} {count:,}" for name, count in counters.items()) + f"; written to {out}")


def chat(named: NamedModels, method: object, settings: WritingSettings, *, system: str, explain: bool) -> None:
    """Talk on the terminal until the input ends.

    Raises:
        InputError: no chat template; or see ``load_model``.
    """
    if named.chat_template == "none":
        raise InputError("chat: a conversation needs a chat template", "--chat-template own or openchat")
    writer = FusedWriter(named.load(), named.labels, method)

    def ask() -> str | None:
        try:
            return input("> ")
        except EOFError:
            return None

    converse(writer, settings, Printer(writer.models, explain=explain), system, ask)


def converse(writer: Writer, settings: WritingSettings, printer: Printer, system: str, ask: Callable[[], str | None]) -> list[Segment]:
    """Talk: ask for a message, print the answer, and so on until there is none; ``/new`` begins again. Return the conversation.

    An interrupt ends the answer, what was said of it stays. A message that cannot be answered is taken back.
    """
    first = [Segment(system, "system", trained=False)] if system else []
    messages = list(first)
    while (said := ask()) is not None:
        if said.strip() == "/new":
            messages = list(first)
        elif said.strip():
            asked = [*messages, Segment(said, "user", trained=False)]
            try:
                answer = _answer(writer, asked, settings, printer)
            except (InputError, ResourceError) as problem:
                printer.say(f"{problem}; {problem.hint}, or begin again with /new" if problem.hint else str(problem))
                continue
            if answer:
                messages = [*asked, Segment(answer, "assistant", trained=False)]
    return messages


def _answer(writer: Writer, messages: list[Segment], settings: WritingSettings, printer: Printer) -> str:
    heard: list[str] = []

    def listened() -> Iterator[Passage | Finish]:
        for each in writer.write(messages, settings, lambda: False):
            heard.extend([each.text] if isinstance(each, Passage) else [])
            yield each

    try:
        printer.show(listened())
    except KeyboardInterrupt:
        printer.rich.print()
    return "".join(heard)
