"""The files of a tokenizer in a model folder; no code of the folder is ever run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from lmfuse.errors import TokenizerError

NAMED = ("bos", "eos", "pad", "unk")
SLOW_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "vocab.json", "vocab.txt")


def read_folder(folder: Path) -> tuple[Tokenizer, dict[str, str], bool]:
    """Return a folder's tokenizer, the strings of its named tokens, and whether its configuration wants bos before every text.

    The names come from tokenizer_config.json, else from special_tokens_map.json; tokens that only the configuration knows are added.

    Raises:
        TokenizerError: no tokenizer.json, or a file that cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise _missing(folder)
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the Rust side raises plain exceptions
        raise TokenizerError(f"{path}: not a tokenizer.json: {one_line(error)}", hint="download the file again") from error
    config = _read_object(folder / "tokenizer_config.json")
    _add_missing(tokenizer, config, folder / "tokenizer_config.json")
    older = _read_object(folder / "special_tokens_map.json")
    found = {name: _text(config.get(f"{name}_token")) or _text(older.get(f"{name}_token")) for name in NAMED}
    return tokenizer, {name: text for name, text in found.items() if text}, config.get("add_bos_token") is True


def one_line(error: Exception) -> str:
    """Return what an exception says, on one line of moderate length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


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


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # broken JSON or broken UTF-8
        raise TokenizerError(f"{path}: not JSON: {one_line(error)}", hint="download the file again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: got a {type(value).__name__}, expected an object", hint="download the file again")
    return value


def _text(token: object) -> str | None:
    """Return a token's string; older files hold an object with its content."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _add_missing(tokenizer: Tokenizer, config: dict[str, Any], path: Path) -> None:
    """Add the tokens of ``added_tokens_decoder`` that tokenizer.json does not have, under the ids that the configuration gives them."""
    listed = config.get("added_tokens_decoder")
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for text, token in sorted(listed.items(), key=lambda item: int(item[0])) if isinstance(listed, dict) else ():
        content = _text(token)
        if content is None or tokenizer.token_to_id(content) is not None:
            continue
        tokenizer.add_tokens([AddedToken(content, **{name: token[name] for name in flags if name in token})])
        if tokenizer.token_to_id(content) != int(text):
            raise TokenizerError(
                f"{path}: added token {content!r} has id {text}, but tokenizer.json would give it {tokenizer.token_to_id(content)}",
                hint="save the tokenizer again with transformers",
            )
