"""`lmfuse generate` and `lmfuse chat`."""

import ast
import io
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmfuse import generate_command as command
from lmfuse.cli import app
from lmfuse.decode.cool import Cool
from lmfuse.errors import InputError
from lmfuse.pico import model_folder
from lmfuse.types import Segment
from lmfuse.writing import Finish, Passage, Usage, WritingSettings

MATH, PROSE = str(model_folder("math")), str(model_folder("prose"))


def lmfuse(*arguments: str, **more):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False, **more)


@pytest.fixture(scope="module")
def said() -> str:
    return lmfuse("generate", "--models", MATH, "--models", PROSE, "--prompt", "Anna has 12 apples", "--max-bytes", "60").stdout


def test_a_text_and_nothing_else_goes_into_a_pipe(said):
    assert len(said.encode()) == 61
    assert said.endswith("\n")


def test_explain_shows_every_passage_with_its_author_and_scores(said):
    lines = lmfuse(
        "generate", "--models", MATH, "--models", PROSE, "--prompt", "Anna has 12 apples", "--max-bytes", "60", "--explain"
    ).stdout.splitlines()
    shown = "".join(ast.literal_eval(re.match(r"\s*\S+  ('.*?')(   |$)", line)[1]) for line in lines[:-1])
    assert shown == said[:-1]
    assert all(line.split()[0] in ("math", "prose") for line in lines)
    assert any("  math '" in line and "; prose '" in line for line in lines)
    assert "length; 60 bytes" in lines[-1]


def test_parameters_reach_the_method():
    method = command.parse_method("cool", ["segment=sentence", "length=2", "weights=[1, 3]", "aligned=false"])
    assert method == Cool(segment="sentence", length=2, weights=(1.0, 3.0), aligned=False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--prompt", "a", "--method", "coool"], "unknown 'coool'; did you mean 'cool'?"),
        (["--prompt", "a", "--set", "lenght=3"], "unknown 'lenght'; did you mean 'length'?"),
        (["--prompt", "a", "--set", "length=0"], "length: .*greater than or equal to 1"),
        (["--prompt", "a", "--set", "length"], "--set length: expected name=value"),
        (["--prompt", "a", "--set", "weights=[1, 2, 3]"], "weights: 3 numbers for 2 models"),
        (["--prompt", "a", "--dtype", "float23"], "did you mean 'float32'?"),
        (["--prompt", "a", "--top-p", "0"], "top_p: .*greater than 0"),
        (["--prompt", "a", "--device", "cpu", "--device", "cpu", "--device", "cpu"], "2 models on 3 devices"),
        (["--prompt", "a", "--system", "b"], "a system message needs a chat template"),
        (["--prompt", "a", "--models", MATH], "--models: .*math, prose, .*math"),
        ([], "give --prompt, or --file and --out"),
        (["--file", "x.jsonl"], "give --prompt, or --file and --out"),
        (["--prompt", "a", "--out", "x"], "give --prompt, or --file and --out"),
        (["--file", "missing.jsonl", "--out", "x"], "missing.jsonl: cannot be read"),
    ],
)
def test_wrong_input(arguments, expected):
    with pytest.raises(InputError, match=expected):
        lmfuse("generate", "--models", MATH, "--models", PROSE, *arguments)


def test_a_file_of_prompts(tmp_path):
    asked, out = tmp_path / "prompts.jsonl", tmp_path / "texts.jsonl"
    asked.write_text('{"id": "one", "prompt": "Anna has"}\n\n{"question": "The dog"}\n')
    result = lmfuse("generate", "--models", PROSE, "--file", str(asked), "--out", str(out), "--max-bytes", "20")
    assert result.exit_code == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["id"] for record in records] == ["one", "3"]
    assert all("".join(passage["text"] for passage in record["passages"]) == record["text"] for record in records)


@pytest.mark.parametrize(("arguments", "together"), [((), [2]), (("--batch-prompts", "1"), [1, 1])])
def test_texts_of_a_file_are_written_at_the_same_time(tmp_path, monkeypatch, arguments, together):
    asked, out, seen = tmp_path / "prompts.jsonl", tmp_path / "texts.jsonl", []
    asked.write_text('{"prompt": "Anna has"}\n{"prompt": "The dog"}\n')
    write = command.FusedWriter.write_many
    monkeypatch.setattr(
        command.FusedWriter,
        "write_many",
        lambda self, prompts, *more, **rest: seen.append(len(prompts)) or write(self, prompts, *more, **rest),
    )
    lmfuse("generate", "--models", PROSE, "--file", str(asked), "--out", str(out), "--max-bytes", "10", *arguments)
    assert seen == together


# ── printing ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_colours_and_no_control_characters(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Terminal()
    passages = [Passage("one\x1b]0;title\x07", "a"), Passage(" [two]", "b"), Finish("stop", Usage(1, 2, {"a": 3, "b": 4}))]
    text = command.Printer(["a", "b"], explain=False, file=screen).show(passages)
    assert text == "one\x1b]0;title\x07 [two]"
    shown = screen.getvalue()
    assert "\x1b]" not in shown
    assert "\x07" not in shown
    assert "\x1b[32mone" in shown
    assert "\x1b[36m [two]" in shown
    assert "stop; 2 bytes; tokens: 3, 4" in shown


class Echo:
    """Says what it was asked last, word by word."""

    name, models = "echo", ("echo",)

    def __init__(self):
        self.prompts = []

    def write(self, prompt, settings, cancelled=lambda: False):
        self.prompts.append(list(prompt))
        for word in prompt[-1].text.split():
            if word == "stop":
                raise KeyboardInterrupt
            yield Passage(f"{word} ", "echo")
        yield Finish("stop", Usage(0, 0, {}))


def test_a_conversation_remembers_until_it_begins_again():
    echo, lines = Echo(), iter(["hello you", "  ", "now stop here", "/new", "again", None])
    printer = command.Printer(["echo"], explain=False, file=io.StringIO())
    messages = command.converse(echo, WritingSettings(), printer, "Be kind.", lambda: next(lines))
    assert [[segment.text for segment in prompt] for prompt in echo.prompts] == [
        ["Be kind.", "hello you"],
        ["Be kind.", "hello you", "hello you ", "now stop here"],  # the interrupted answer: what was said of it stays
        ["Be kind.", "again"],
    ]
    assert messages == [Segment("Be kind.", "system", False), Segment("again", "user", False), Segment("again ", "assistant", False)]


def test_chat_ends_with_its_input(tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}<|endoftext|>{% endfor %}")
    arguments = ("chat", "--models", PROSE, "--chat-template", str(template), "--max-bytes", "12")
    result = lmfuse(*arguments, input="The dog\n")
    assert result.exit_code == 0
    assert result.stdout.startswith("> ")
    with pytest.raises(InputError, match="needs a chat template"):
        lmfuse("chat", "--models", PROSE, "--chat-template", "none")
    assert Path(MATH).is_dir()


def test_a_message_that_cannot_be_answered_is_taken_back_and_the_talk_goes_on(tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}<|endoftext|>{% endfor %}")
    arguments = ("chat", "--models", PROSE, "--chat-template", str(template), "--max-bytes", "12")
    result = lmfuse(*arguments, input="The dog\n\n" + 700 * "word " + "\nstill here?\n")
    assert result.exit_code == 0
    assert "the prompt has" in result.stdout
    assert "begin again with /new" in result.stdout
    assert result.stdout.count("> ") == 5  # an empty line asks again, and the end of the input is asked for, too
