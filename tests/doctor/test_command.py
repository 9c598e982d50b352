"""``lmfuse align``: from folders to the terminal and the page."""

import json
import shutil
import time

import pytest

from lmfuse.doctor import TEXT_BYTES, compare, examine
from lmfuse.doctor.terminal import notes, show, summary
from lmfuse.errors import InputError, TokenizerError
from tests import fakes
from tests.doctor.build import ODD, documents, tokenizer
from tests.doctor.test_rows import TEXTS, store
from tests.runs import lmfuse


def align(*arguments: object) -> tuple[int, str]:
    return lmfuse("align", *arguments, columns=200)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Folders that hold nothing but a tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("align")
    for name in ("byte_bpe", "metaspace_bpe", "wordpiece"):
        (folder / name).mkdir()
        fakes.KINDS[name]().save(str(folder / name / "tokenizer.json"))
    (folder / "text.txt").write_text("".join([*fakes.TEXT, *ODD]), encoding="utf-8")
    return folder


def test_the_terminal_shows_every_figure(here):
    code, text = align(here / "byte_bpe", here / "metaspace_bpe", "--text", here / "text.txt")
    assert code == 0, text
    for words in ("byte law", "the byte law conditions", "FuseLLM", "1:1", "masked", "by use", "digits", "whitespace", "bytes per token"):
        assert words in text, words


def test_a_page_is_written_where_it_is_asked_for(here, tmp_path):
    code, text = align(here / "byte_bpe", here / "wordpiece", "--text", here / "text.txt", "--html", tmp_path / "x.html", "--lines", 3)
    assert (code, str(tmp_path / "x.html") in text.replace("\n", "")) == (0, True), text
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert 1 <= page.count("<figure>") <= 3
    assert "wordpiece → byte_bpe" in page


def test_rows_add_what_was_really_lost(here, tmp_path):
    rows = store(tmp_path / "rows", TEXTS)
    code, text = align(
        here / "byte_bpe", here / "metaspace_bpe", "--text", here / "text.txt", "--rows", rows, "--html", tmp_path / "x.html"
    )
    assert (code, "lost mass" in text) == (0, True), text
    assert "What the source really said" in (tmp_path / "x.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("byte_bpe", "nothing", "--text", "text.txt"), "neither a folder nor a hub name"),
        (("byte_bpe", "metaspace_bpe", "--text", "none.txt"), "none.txt"),
        (("byte_bpe", "metaspace_bpe", "--text", "text.txt", "--field", "{question}"), "plain text has no fields"),
        (("byte_bpe", "metaspace_bpe", "--text", "text.txt", "--field", "question"), "plain text has no fields"),
        (("byte_bpe", "metaspace_bpe", "--text", "text.txt", "--field", "{"), "--field '{'"),
        (("byte_bpe", "metaspace_bpe", "--text", "text.txt", "--lines", "0"), "lines is 0"),
        (("byte_bpe", "metaspace_bpe", "--text", "text.txt", "--rows", "byte_bpe"), "byte_bpe"),
    ],
)
def test_what_cannot_be_used_is_one_line(here, monkeypatch, arguments, message):
    monkeypatch.chdir(here)
    code, text = align(*(f"./{part}" if part in ("byte_bpe", "nothing", "metaspace_bpe") else part for part in arguments))
    assert code in (2, 4)
    assert message in text
    assert "\n" not in text.strip()


def test_findings_are_plain_values_and_always_the_same(here):
    found = [examine(str(here / "byte_bpe"), str(here / "metaspace_bpe"), here / "text.txt", lines=4) for _ in range(2)]
    assert json.loads(json.dumps(found[0])) == found[0] == found[1]
    assert str(here) not in json.dumps({key: value for key, value in found[0].items() if key != "lines"}), (
        "nothing of this machine's folders"
    )


def test_two_folders_of_one_name_are_told_apart(here, tmp_path):
    shutil.copytree(here / "metaspace_bpe", tmp_path / "byte_bpe")
    found = examine(str(here / "byte_bpe"), str(tmp_path / "byte_bpe"), here / "text.txt", lines=1)
    assert found["target"]["name"] != found["source"]["name"]


def test_a_longer_text_is_cut_and_said_so(here, tmp_path, monkeypatch):
    monkeypatch.setattr("lmfuse.doctor.TEXT_BYTES", 1001)
    (tmp_path / "long.txt").write_text("東京 the dog " * 1000, encoding="utf-8")
    found = examine(str(here / "byte_bpe"), str(here / "metaspace_bpe"), tmp_path / "long.txt", lines=1)
    assert 998 <= found["text"]["bytes"] <= 1001
    assert found["text"]["cut"]
    assert "longer text" in dict(summary(found))["text"]
    assert TEXT_BYTES == 1 << 23


def test_hostile_names_and_strings_do_not_reach_the_terminal(capsys):
    found = compare(["evil\x1b[2J[red]", "b"], [tokenizer("byte_bpe"), tokenizer("wordpiece")], documents(*ODD), 2)
    show(found)
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert "[red]" in shown


def test_notes_name_what_a_reader_should_not_miss():
    found = compare(["a", "b"], [tokenizer("byte_bpe"), tokenizer("wordpiece")], documents(*ODD), 1)
    assert any("cannot be represented" in note for note in notes(found))
    same = compare(["a", "b"], [tokenizer("byte_bpe")] * 2, documents(*ODD), 1)
    assert not list(notes(same))


def test_a_megabyte_takes_seconds(here, tmp_path):
    (tmp_path / "text.txt").write_text("".join(fakes.TEXT) * 3200, encoding="utf-8")
    started = time.monotonic()
    found = examine(str(here / "byte_bpe"), str(here / "metaspace_bpe"), tmp_path / "text.txt")
    assert found["text"]["bytes"] > 1_000_000
    assert time.monotonic() - started < 30, "seconds on an idle machine"


def test_a_broken_folder_is_refused(tmp_path):
    with pytest.raises((InputError, TokenizerError)):
        examine(str(tmp_path), str(tmp_path), tmp_path / "text.txt")
