"""Parts of a stranger's tokenizer that may run for ever or fill the memory, tried in a process that can be ended.

The library matches patterns by backtracking, in compiled code that nothing in this process can interrupt. Parts that are known, or cannot
grow or hang, are not tried and cost nothing; the others are tried on probe texts first: long runs of what the pattern is made of, with
ends that do not fit. What passes may still be slow on a text that no probe resembles: a limit that we cannot remove, only narrow. Where the
library itself gives up on such a text, that is an error like any other (``library_errors``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from lmfuse.bytes_known import KNOWN_CHARSMAPS, KNOWN_PATTERNS
from lmfuse.bytes_spelling import Node
from lmfuse.errors import TokenizerError

CPU_SECONDS = 1  # harmless patterns need a twentieth of it
WALL_SECONDS = 30 if os.name == "posix" else 4  # only a stopped process needs it where processor time is limited
MEMORY_BYTES = 1 << 30
LONGEST_PATTERN = 10_000  # characters; the longest known one has 1,700
SHORT, LONG = (12, 25, 45, 60), 3000  # of a run: enough for exponential, for cubic time; quadratic time on real text is bearable
MOST_SYMBOLS, MOST_LETTERS, MOST_TEXT = 32, 8, 200_000
MOST_PARTS = 64  # of a normalizer or pre-tokenizer that is not tried; usual ones have fewer than 20
GENERAL = ("a", "A", "0", " ", "\n", "\t", "!", "'", "_", "é", "京", "e\u0301", "ﬁ")
MISFIT = "\u2603"  # a snowman, which few patterns name
HINT = "use a model whose tokenizer has a well-known pattern, or save it with a pattern without nested repetition"
PASSED_ON = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "TEMP")  # what a process needs to start; no secrets

Part = tuple[str, str, Node, tuple[str, ...]]  # where it stands, the field it belongs to, itself, the texts to try it on


def try_parts(state: Node, path: Path, more: tuple[str, ...] = ()) -> None:
    """Try the parts of a parsed tokenizer.json that are neither known nor harmless; ``more`` are tokens that will be added to it.

    Raises:
        TokenizerError: one of them is no pattern, needs too much time or memory, makes the library fail, or cannot be tried here; or there is
            a pattern where none can be read as bytes.
    """
    for field in ("post_processor", "decoder"):
        for where, node in _walk(state.get(field), field):
            if (pattern := _pattern(node)) is not None:
                raise TokenizerError(f"{path}: {where}.pattern: {_shortened(pattern)} cannot be read as bytes: only strings can", HINT)
    parts = list(risky_parts(state, more))
    for where, _, node, _ in parts:
        if len(pattern := _pattern(node) or "") > LONGEST_PATTERN:
            raise TokenizerError(f"{path}: {where}: a pattern of {len(pattern):,} characters, expected at most {LONGEST_PATTERN:,}", HINT)
    if parts and (problem := _verdict(json.dumps(parts))):
        raise TokenizerError(f"{path}: {problem}", HINT)


def risky_parts(state: Node, more: tuple[str, ...] = ()) -> Iterator[Part]:
    """Yield the parts to try: each unknown pattern by itself, and each field that has one or can make a text grow, as a whole.

    >>> node = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    >>> state = {"model": {"vocab": {"a": 0}}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [node]}}
    >>> [part[0] for part in risky_parts(state)]
    ['pre_tokenizer.pretokenizers[0].pattern', 'pre_tokenizer']
    """
    words = (*_words(state), *more)
    for field in ("normalizer", "pre_tokenizer"):
        nodes = list(_walk(state.get(field), field))
        unknown = [(where, node) for where, node in nodes if (pattern := _pattern(node)) is not None and pattern not in KNOWN_PATTERNS]
        for where, node in unknown:
            yield f"{where}.pattern", field, node, (*probe_texts(_pattern(node) or ""), *words)
        if unknown or _may_cost([node for _, node in nodes]):
            yield field, field, state[field], (*probe_texts("".join(_literals(nodes))), *words)


def probe_texts(pattern: str) -> tuple[str, ...]:
    """Return texts on which a pattern that backtracks without end does so: runs of its own characters and of usual ones, and then a misfit.

    Behind it stands all that the pattern is made of, because the library does not even begin where a character that must occur does not.
    """
    letters = list(dict.fromkeys(re.sub(r"\\[pP]\{\^?\w*\}|\\.", "", pattern)))
    runs = list(dict.fromkeys(re.findall(r"\w{2,20}", pattern)))[:MOST_LETTERS]
    symbols = list(dict.fromkeys((*GENERAL, *letters)))[:MOST_SYMBOLS]
    words = [letter for letter in letters if letter.isalnum()][:MOST_LETTERS]
    units = [*symbols, *runs, *("".join(pair) for pair in product(words, repeat=2))]
    tail = f"{MISFIT} {''.join(symbols)}\n{pattern[:200]}"
    short = [unit * length + tail for unit in units for length in SHORT]
    return (*short, *(unit * (LONG // len(unit)) + tail for unit in (*symbols, *runs)))


def _walk(node: object, where: str) -> Iterator[tuple[str, Node]]:
    """Yield all objects of a field with the path of keys that leads to each; without recursion, however deep."""
    waiting: list[tuple[str, object]] = [(where, node)]
    while waiting:
        at, value = waiting.pop()
        if isinstance(value, dict):
            yield at, value
            waiting += [(f"{at}.{key if key.isidentifier() else '?'}", inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(f"{at}[{place}]", inner) for place, inner in reversed(list(enumerate(value)))]


def _pattern(node: Node) -> str | None:
    held = node.get("pattern")
    found = held.get("Regex") if isinstance(held, dict) else None
    return found if isinstance(found, str) else None


def _may_cost(nodes: list[Node]) -> bool:
    """Return whether there are very many parts, or one that writes more than it reads, so that a few dozen of it fill any memory."""
    bytes_as_letters = sum(node.get("type") == "ByteLevel" for node in nodes)
    return len(nodes) > MOST_PARTS or bytes_as_letters > 1 or any(map(_grows, nodes))


def _grows(node: Node) -> bool:
    match node:
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return len(new) > len(old)
        case {"type": "Replace", "content": str(new)}:
            return len(new) > 1
        case {"type": "Prepend", "prepend": str(new)}:
            return len(new) > 1
        case {"type": "Precompiled", "precompiled_charsmap": str(charsmap)}:
            return hashlib.sha256(charsmap.encode("utf-8", "replace")).hexdigest() not in KNOWN_CHARSMAPS
    return False


def _literals(nodes: Iterable[tuple[str, Node]]) -> Iterator[str]:
    """Yield what the parts of a field look for."""
    for _, node in nodes:
        held = node.get("pattern")
        yield from (value for value in held.values() if isinstance(value, str)) if isinstance(held, dict) else ()


def _words(state: Node) -> tuple[str, ...]:
    """Return texts that the tokenizer brings along itself: the added tokens that it normalizes when it is built, and its longest tokens."""
    added = [token["content"] for token in state.get("added_tokens") or () if token.get("normalized") and len(token["content"]) > 1]
    vocab: Any = state["model"]["vocab"]
    own = sorted(vocab if isinstance(vocab, dict) else (entry[0] for entry in vocab), key=len, reverse=True)[:64]
    return tuple(text[:MOST_TEXT] for text in (*added, *own))


@lru_cache(maxsize=16)
def _verdict(parts: str) -> str:
    """Return what is wrong with the first bad part, or ``""``; each tokenizer is tried once a process."""
    told = json.loads(parts)
    reason = "no Python was found"
    for python in _pythons():
        said, end = _run(python, [part[1:] for part in told])
        if not said or said[0] != "ready":
            reason = end
            continue
        if said[-1] == "done":
            return ""
        where, _, node, _ = told[[int(line) for line in said if line.isdecimal()][-1]]
        shown = f" {_shortened(pattern)}" if (pattern := _pattern(node)) is not None else ""
        failed = next((line for line in said if line.startswith(("cannot be", "fails on"))), "")
        return f"{where}:{shown} {failed or end}"
    where, _, node, _ = told[0]
    return f"{where}: {_shortened(_pattern(node) or str(node))} is not well known and cannot be tried here: {reason}"


def _run(python: str, parts: list[Any]) -> tuple[list[str], str]:
    """Return the lines that the child wrote, and in words how it ended."""
    import tokenizers

    library = str(Path(tokenizers.__file__).resolve().parents[1])
    given = {"library": library, "seconds": CPU_SECONDS, "bytes": MEMORY_BYTES, "parts": parts}
    code = files("lmfuse").joinpath("bytes_probe.py").read_text(encoding="utf-8")
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    try:
        done = subprocess.run(
            [python, "-I", "-S", "-c", code], input=json.dumps(given).encode(), capture_output=True, timeout=WALL_SECONDS,
            env={**kept, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as reason:
        return _lines(reason.stdout or b""), f"does not end on a probe text within {WALL_SECONDS} s"
    except OSError as reason:
        return [], f"{python}: {reason.strerror}"
    said = _lines(done.stdout)
    if said[:1] != ["ready"]:
        return said, f"{python} cannot import tokenizers"
    if b"memory allocation" in done.stderr:
        return said, f"needs more than {MEMORY_BYTES >> 20:,} MiB of memory on a probe text"
    if done.returncode == -getattr(signal, "SIGXCPU", 0):
        return said, f"does not end on a probe text in {CPU_SECONDS} s of processor time"
    return said, f"ends the process that reads it (status {done.returncode})"


def _pythons() -> Iterator[str]:
    """Yield the interpreters that may run the child. A program that embeds Python is not one: started again, it would do its own work."""
    names = (sys.executable, getattr(sys, "_base_executable", ""), str(Path(sys.prefix) / "bin" / "python3"), shutil.which("python3"))
    for name in dict.fromkeys(filter(None, names)):
        if re.fullmatch(r"(python|pypy)[\d.w]*(\.exe)?", Path(name).name, re.IGNORECASE) and Path(name).is_file():
            yield name


def _lines(output: bytes) -> list[str]:
    return output.decode("utf-8", "replace").splitlines()


def _shortened(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[:60])
    return f"'{shown}{'...' if len(text) > 60 else ''}'"
