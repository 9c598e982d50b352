"""The files of a tokenizer in a model folder; no code of the folder is ever run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from lmfuse.bytes_ids import check_ids
from lmfuse.bytes_trial import try_parts
from lmfuse.bytes_turns import end_of_turn
from lmfuse.errors import TokenizerError
from lmfuse.folder_files import once, parse_object, read_object, read_text

NAMED = ("bos", "eos", "pad", "unk")
GAVE_UP = ("tokenizer: the tokenizers library gave up on a text", "use a model whose tokenizer has a well-known pattern")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
FIELDS = (  # what the library says when it refuses a file, and where the fault lies
    ("out of vocabulary", "model.merges: "),
    ("MergeType", "model.merges: "),
    ("Missing vocab/merges", "model.merges: "),
    ("UnkIdNotInVocabulary", "model.unk_id: "),
    ("ModelUntagged", "model: "),
    ("DecoderWrapper", "decoder: "),
    ("NormalizerWrapper", "normalizer: "),
    ("NormalizerTypeWrapper", "normalizer: "),
    ("PreTokenizer", "pre_tokenizer: "),
    ("PostProcessor", "post_processor: "),
)
SURROGATE = re.compile(r"[\ud800-\udfff]")  # JSON can write half a character, no token can
SLOW_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class TokenizerFolder:
    """What a folder says of its tokenizer.

    Attributes:
        tokenizer: with the tokens that only the configuration knows.
        named: the strings of ``bos``, ``eos``, ``pad``, ``unk`` and ``end_of_turn``, as far as they are named and exist.
        add_bos: whether the configuration wants bos before every text.
    """

    tokenizer: Tokenizer
    named: dict[str, str]
    add_bos: bool


def read_folder(folder: Path) -> TokenizerFolder:
    """Read the tokenizer of a model folder; whatever a stranger put there is judged before the library sees it.

    The names come from tokenizer_config.json, else from special_tokens_map.json; ``end_of_turn`` is explained in ``bytes_turns``.

    Raises:
        TokenizerError: no tokenizer.json, or a file that cannot be read, has unfit ids, or a part that does not end.
    """
    config = read_object(folder, "tokenizer_config.json", TokenizerError) or {}
    listed = sorted(_listed(config.get("added_tokens_decoder"), folder / "tokenizer_config.json"))
    tokenizer = _read_tokenizer(folder, tuple(content for _, content, _ in listed))
    _add_missing(tokenizer, listed, folder / "tokenizer_config.json")
    older = read_object(folder, "special_tokens_map.json", TokenizerError) or {}
    found = {name: _text(config.get(f"{name}_token")) or _text(older.get(f"{name}_token")) for name in NAMED}
    named = {name: text for name, text in found.items() if text and tokenizer.token_to_id(text) is not None}
    control = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    eos = named.get("eos")
    eos_id = None if eos is None else tokenizer.token_to_id(eos)
    if eos is not None and eos_id is not None:
        control[eos_id] = eos
    turn = end_of_turn(folder, config, control, eos)
    return TokenizerFolder(tokenizer, named | ({"end_of_turn": turn} if turn else {}), config.get("add_bos_token") is True)


def _read_tokenizer(folder: Path, more: tuple[str, ...]) -> Tokenizer:
    """Return the tokenizer of tokenizer.json, which will be given some tokens more."""
    path = folder / "tokenizer.json"
    text = read_text(folder, path.name, TokenizerError)
    if text is None:
        raise _missing(folder)
    state = parse_object(text, path, TokenizerError, hook=once)
    check_ids(state, path)
    try_parts(state, path, more)
    try:
        with library_errors("not a tokenizer.json", "download the file again"):
            return Tokenizer.from_str(text)
    except TokenizerError as error:
        field = next((field for words, field in FIELDS if words in str(error)), "")
        raise TokenizerError(f"{path}: {field}{error}", error.hint) from error


@contextmanager
def library_errors(what: str, hint: str) -> Iterator[None]:
    """Turn what the tokenizers library raises into one line: plain exceptions, and panics, which are no exceptions at all to Python.

    Raises:
        TokenizerError: the library failed; the message begins with ``what``.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is Exception or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{what}: {one_line(error)}", hint) from error
        raise


def one_line(error: BaseException) -> str:
    """Return what an exception says, on one line of moderate length that changes no terminal."""
    words = " ".join(str(error).split())[:200] or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def _missing(folder: Path) -> TokenizerError:
    slow = next((name for name in SLOW_FILES if (folder / name).is_file()), None)
    if slow is None:
        what = "no tokenizer.json in it" if folder.is_dir() else "no such folder"
        return TokenizerError(f"{folder}: {what}", hint="give a model folder that holds tokenizer.json")
    return TokenizerError(
        f"{folder}: slow tokenizer: it has {slow} but no tokenizer.json",
        hint='convert it: pip install sentencepiece tiktoken; python -c "import transformers as t, sys; '
        't.AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])" FOLDER',
    )


def _text(token: object) -> str | None:
    """Return a token's string; older files hold an object with its content."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and not SURROGATE.search(content) else None


Listed = tuple[int, str, tuple[tuple[str, bool], ...]]  # id, string and flags of a token


def _add_missing(tokenizer: Tokenizer, listed: list[Listed], path: Path) -> None:
    """Add the tokens of ``added_tokens_decoder`` that tokenizer.json does not have, under the ids that the configuration gives them."""
    for token_id, content, flags in listed:
        if tokenizer.token_to_id(content) is not None:
            continue
        with library_errors(f"{path}: added token {content[:80]!r}", "save the tokenizer again with transformers"):
            tokenizer.add_tokens([AddedToken(content, **dict(flags))])
        if tokenizer.token_to_id(content) != token_id:
            raise TokenizerError(
                f"{path}: added token {content[:80]!r} has id {token_id}, but tokenizer.json would give it {tokenizer.token_to_id(content)}",
                hint="save the tokenizer again with transformers",
            )


def _listed(tokens: object, path: Path) -> Iterator[Listed]:
    """Yield the tokens that ``added_tokens_decoder`` lists; entries without a string are left out."""
    if not isinstance(tokens, (dict, type(None))):
        raise TokenizerError(f"{path}: added_tokens_decoder is a {type(tokens).__name__}, expected an object", "download the file again")
    for key, token in (tokens or {}).items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise TokenizerError(f"{path}: added_tokens_decoder: {key[:40]!r} is no id", "download the file again")
        content = _text(token)
        flags = {name: token[name] for name in FLAGS if name in token} if isinstance(token, dict) else {}
        wrong = next((name for name, value in flags.items() if not isinstance(value, bool)), None)
        if wrong:
            raise TokenizerError(
                f"{path}: added_tokens_decoder: {wrong} of {content!r} is no flag: {flags[wrong]!r}", "download the file again"
            )
        if content:
            yield int(key), content, tuple(flags.items())
