"""Files of a model's folder, whoever made it: read only if they are regular files inside the folder, of a sane size, and valid JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmfuse.errors import InputError

MOST_BYTES = 100_000_000  # the largest tokenizer.json of a known model has 34 million
AGAIN = "fetch or write the file again"


def link_root(folder: Path) -> Path:
    """Return the folder that links of a model's folder may not leave: the folder itself, or a model's folder of the hub's cache.

    The cache holds a snapshot as links into the ``blobs`` beside it.
    """
    root = folder.resolve()
    return root.parents[1] if root.parent.name == "snapshots" and (root.parents[1] / "blobs").is_dir() else root


def read_text(folder: Path, name: str, error: type[InputError], *, most_bytes: int = MOST_BYTES) -> str | None:
    """Return the text of a file of a folder, or None where there is none. A pipe or a device is never opened: it could block for ever.

    Raises:
        error: it is no regular file, a link out of the folder or to nothing, too large, or not UTF-8.
    """
    path = folder / name
    if not path.exists() and not path.is_symlink():
        return None
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as reason:  # older Pythons raise RuntimeError at a circle
        raise error(f"{path} is a link to nothing or to itself", AGAIN) from reason
    if not real.is_relative_to(link_root(folder)):
        raise error(f"{path} is a link outside its folder", "copy the file into the folder if you trust it")
    if not real.is_file():
        raise error(f"{path} is no regular file", AGAIN)
    with real.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise error(f"{path} has {real.stat().st_size:,} bytes, expected at most {most_bytes:,}", AGAIN)
    try:
        return data.decode()
    except UnicodeDecodeError as reason:
        raise error(f"{path} is broken: {reason}", AGAIN) from reason


def read_object(
    folder: Path, name: str, error: type[InputError], *, hook: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None
) -> dict[str, Any] | None:
    """Return a JSON object from a file of a folder, or None where there is no such file.

    Args:
        folder: the model's folder.
        name: the file.
        error: what to raise.
        hook: makes an object of its keys and values; raises ValueError to refuse them.

    Raises:
        error: see ``read_text`` and ``parse_object``.
    """
    text = read_text(folder, name, error)
    return None if text is None else parse_object(text, folder / name, error, hook=hook)


def parse_object(
    text: str, path: Path, error: type[InputError], *, hook: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        error: it is not JSON, nested too deep, or no object.
    """
    try:
        value = json.loads(text, object_pairs_hook=hook)
    except RecursionError:
        raise error(f"{path} is broken: its JSON is nested too deep", AGAIN) from None
    except ValueError as reason:  # also: a number of too many digits
        raise error(f"{path} is broken: not JSON: {' '.join(str(reason).split())[:200]}", AGAIN) from reason
    if not isinstance(value, dict):
        raise error(f"{path} is broken: it holds a {type(value).__name__}, expected an object", AGAIN)
    return value


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these keys and values; refuse a key that stands twice, which each reader of JSON understands differently."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
    return found
