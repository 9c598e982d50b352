"""Bad tokenizers: one error of one line each, soon, through every command that reads one, and nothing lost that was there before."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmfuse import cli
from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import LmfuseError
from lmfuse.models import ModelSpec, inspect_model, load_model, load_tokenizer
from lmfuse.types import Document
from tests import fakes, runs
from tests.bad_tokenizers import CASES, Case, added, configured, edited, linked, listed, pipe, spent, token, vocab
from tests.model_folders import edit_config, edit_weights, float32

SECONDS = 5.0
BY_NAME = {case.name: case for case in CASES}
THROUGH_COMMANDS = (
    "duplicate ids in model.vocab",
    "id of 4*10**9",
    "empty vocabulary",
    "(a+)+$ in Split",
    "a normalizer that doubles 48 times",
    "tokenizer.json is a FIFO",
    "tokenizer.json is a link out of the folder",
    "10,000 balanced brackets",
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A whole model of each kind that the cases start from."""
    folder = tmp_path_factory.mktemp("good")
    return {kind: fakes.save_model(folder / kind, fakes.KINDS[kind]()) for kind in {case.kind for case in CASES}}


@pytest.fixture
def bad(good, tmp_path):
    """The function that makes the folder of a case."""

    def make(case: Case) -> Path:
        folder = Path(shutil.copytree(good[case.kind], tmp_path / "bad"))
        case.spoil(folder)
        return folder

    return make


def told_soon(read, words: tuple[str, ...]) -> None:
    """Check that reading ends within seconds in an error of one line that holds all words."""
    begin = spent()
    with pytest.raises(LmfuseError) as caught:
        read()
    assert spent() - begin < SECONDS
    message = f"{caught.value}"
    assert caught.value.exit_code == 2
    assert all(word in message for word in words), message
    assert "\n" not in message + caught.value.hint
    assert message.isprintable()
    assert caught.value.hint
    assert len(message) < 600, message


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_is_one_clear_error(case, bad):
    folder = bad(case)
    told_soon(lambda: load_tokenizer(ModelSpec(str(folder))), case.words)
    told_soon(lambda: inspect_model(ModelSpec(str(folder))), case.words)


def files_of(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"}


def lmfuse(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert isinstance(found.exception, LmfuseError), found.output
    return found.exception.exit_code, str(found.exception)


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("laid-out")
    runs.lay_out(folder)
    return folder


@pytest.mark.parametrize("name", THROUGH_COMMANDS)
def test_every_command_says_so_and_loses_nothing(name, laid_out, good, tmp_path):
    here, case = Path(shutil.copytree(laid_out, tmp_path / "here")), BY_NAME[name]
    shutil.rmtree(here / "models" / "b")
    shutil.copytree(good[case.kind], here / "models" / "b")
    case.spoil(here / "models" / "b")
    for old in ("run/report/index.html", "run/model/model.safetensors", "cache/rows/0123/manifest.json"):
        (here / old).parent.mkdir(parents=True)
        (here / old).write_text(old)
    before = files_of(here / "run", here / "cache")
    commands = (
        ("plan", here / "recipe.yaml", "--cache", here / "cache"),
        ("run", here / "recipe.yaml", "--cache", here / "cache", "--out", here / "run"),
        ("align", here / "models" / "target", here / "models" / "b", "--text", here / "x-eval.jsonl"),
    )
    for command in commands:
        begin = spent()
        code, message = lmfuse(*command)
        assert spent() - begin < SECONDS
        assert (code, "\n" in message) == (2, False)
        assert all(word in message for word in case.words), message
    after = files_of(here / "run", here / "cache")
    assert after.items() >= before.items()
    assert {path.name for path in after.keys() - before.keys()} <= {"plan.json", "events.jsonl", "recipe.yaml"}


def test_the_command_line_itself_ends_within_five_seconds_in_exit_code_2(laid_out, good, tmp_path):
    case = BY_NAME["cubic pattern in Split"]
    folder = Path(shutil.copytree(good[case.kind], tmp_path / "bad"))
    case.spoil(folder)
    command = ["-m", "lmfuse.cli", "align", str(laid_out / "models" / "target"), str(folder), "--text", str(laid_out / "x-eval.jsonl")]
    begin = spent()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, check=False)
    seconds = spent() - begin
    error, remedy = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert error.startswith("error: ")
    assert "pre_tokenizer" in error
    assert remedy.startswith("  try: ")
    assert seconds < SECONDS * max(1.0, os.getloadavg()[0]), "a busy machine may take longer"


# Tokens beyond the embedding ------------------------------------------------------------------------------------------------------------


def test_a_control_token_beyond_the_embedding_is_left_out_and_named(folder):
    before = load_model(float32(folder))
    added(token("<image>", 409), token("<|spare|>", 410))(folder)
    configured(pad_token="<|spare|>")(folder)
    facts, model = inspect_model(float32(folder)), load_model(float32(folder))
    assert (facts.tokens_left_out, facts.tokenizer_size) == (("<image>", "<|spare|>"), 409)
    assert model.tokenizer.left_out == ("<image>", "<|spare|>")
    assert model.tokenizer.vocabulary.strings == before.tokenizer.vocabulary.strings
    assert "pad" not in model.tokenizer.vocabulary.control
    assert load_tokenizer(float32(folder)).key == model.tokenizer.key
    text = "a<image>b <|spare|>"
    ids = model.tokenizer.encode(Document.plain(text)).ids
    assert ids.tolist() == before.tokenizer.encode(Document.plain(text)).ids.tolist()
    assert ids.max() < 409


def test_the_plan_names_what_is_left_out(laid_out, tmp_path):
    here = Path(shutil.copytree(laid_out, tmp_path / "here"))
    added(token("<image>", 409))(here / "models" / "target")
    found = CliRunner().invoke(cli.app, ["plan", str(here / "recipe.yaml"), "--cache", str(here / "cache")])
    assert found.exit_code == 0, found.output
    assert "target: 1 control tokens without a row in the model are left out, first '<image>'" in " ".join(found.output.split())


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (added(token("<image>", 409), token("zebra", 410, special=False)), "'zebra'"),
        (lambda f: (added(token("<end>", 409))(f), configured(eos_token="<end>")(f)), "'<end>'"),
        (lambda f: (added(token("<begin>", 409))(f), configured(bos_token="<begin>", add_bos_token=True)(f)), "'<begin>'"),
        (listed("409", special=False), "'<x>'"),
        (vocab(zebra=409), "'zebra'"),
        (vocab(zebra=500), "'zebra'"),
    ],
)
def test_a_token_beyond_the_embedding_that_is_needed_is_an_error(folder, spoil, word):
    spoil(folder)
    for read in (load_tokenizer, inspect_model, load_model):
        told_soon(lambda read=read: read(float32(folder)), (word, "the model only 409 rows"))


def test_without_a_model_nothing_is_beyond(folder):
    added(token("<image>", 409))(folder)
    for path in folder.iterdir():
        if not path.name.startswith("tokenizer"):
            path.unlink()
    tokenizer = load_tokenizer(ModelSpec(str(folder)))
    assert (tokenizer.vocabulary.size, tokenizer.left_out) == (410, ())


def test_rows_are_found_inside_a_text_config_and_by_default(folder):
    from lmfuse.model_facts import rows_of

    assert rows_of(folder) == 409
    edit_config(folder, text_config={"vocab_size": 77})
    assert rows_of(folder) == 77
    edit_config(folder, text_config=..., vocab_size=...)
    assert rows_of(folder) == 32000, "Llama's default"


def test_an_embedding_with_other_rows_than_the_configuration_is_refused_before_weights_are_read(folder, monkeypatch):
    edit_weights(folder, lambda tensors: tensors.update({"model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:400].clone()}))
    monkeypatch.setattr("lmfuse.models._load_module", lambda *_: pytest.fail("weights were read"))
    for read in (inspect_model, load_model):
        told_soon(lambda read=read: read(float32(folder)), ("model.embed_tokens.weight has 400 rows, config.json says 409",))


# What must keep working -----------------------------------------------------------------------------------------------------------------


def test_links_inside_the_folder_and_into_the_hubs_blobs_are_followed(folder, tmp_path):
    (folder / "tokenizer.json").rename(folder / "real.json")
    (folder / "tokenizer.json").symlink_to("real.json")
    size = load_tokenizer(ModelSpec(str(folder))).vocabulary.size
    hub = tmp_path / "models--a--b"
    (hub / "blobs").mkdir(parents=True)
    (hub / "snapshots").mkdir()
    shutil.move(folder / "real.json", hub / "blobs" / "0123")
    moved = folder.rename(hub / "snapshots" / "main")
    (moved / "tokenizer.json").unlink()
    (moved / "tokenizer.json").symlink_to("../../blobs/0123")
    assert load_tokenizer(ModelSpec(str(moved))).vocabulary.size == size
    (tmp_path / "alias").symlink_to(moved)
    assert load_tokenizer(ModelSpec(str(tmp_path / "alias"))).vocabulary.size == size
    linked("tokenizer_config.json")(moved)
    (moved.parent / "outside-main-tokenizer_config.json").rename(tmp_path / "elsewhere.json")
    (moved / "tokenizer_config.json").unlink()
    (moved / "tokenizer_config.json").symlink_to(tmp_path / "elsewhere.json")
    told_soon(lambda: load_tokenizer(ModelSpec(str(moved))), ("outside its folder",))


def test_small_gaps_between_ids_are_rows_that_nothing_writes(folder):
    vocab(zebra=500)(folder)
    tokenizer = ByteTokenizer.load(folder)
    assert tokenizer.vocabulary.size == 501
    assert (tokenizer.vocabulary.bytes_of(450), tokenizer.vocabulary.bytes_of(500)) == (b"", b"zebra")


def test_half_characters_and_terminal_codes_in_names_do_no_harm(folder):
    configured(bos_token="\ud800", eos_token="\x1b[31m")(folder)
    edited(lambda state: state["model"]["merges"].append(["\x1b[2J", "a"]))(folder)
    told_soon(lambda: ByteTokenizer.load(folder), ("model.merges", "?[2J"))


def test_a_panic_of_the_library_on_a_text_is_our_error(folder, monkeypatch):
    monkeypatch.setattr("lmfuse.bytes_files.try_parts", lambda *_: None)
    BY_NAME["(x|x)*y in Split"].spoil(folder)
    tokenizer = ByteTokenizer.load(folder)
    told_soon(lambda: tokenizer.encode(Document.plain("x" * 60 + "- y")), ("gave up on a text", "retry-limit"))
    told_soon(lambda: tokenizer.first_pieces([b"x" * 60 + b"- y"]), ("gave up on a text",))


def test_every_known_tokenizer_loads_without_a_trial(monkeypatch):
    monkeypatch.setattr("lmfuse.bytes_trial._verdict", lambda _: pytest.fail("tried"))
    for name in ("gpt2", "gpt_neox", "qwen2_5", "llama2", "mistral", "t5", "bert_uncased"):
        assert ByteTokenizer.load(fakes.shared("assets", "tokenizers", name)).left_out == ()


def test_pipes_that_nobody_needs_block_nothing(folder):
    for name in ("README.md", "LICENSE"):
        pipe(name)(folder)
    assert inspect_model(float32(folder)).licence == ""


def test_the_configuration_may_be_read_only_and_absent(folder):
    for name in ("tokenizer_config.json", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    assert json.loads((folder / "tokenizer.json").read_text())
    assert ByteTokenizer.load(folder).vocabulary.size == 409
