"""What one tokenizer does: digits, whitespace, control tokens, ids that write the same bytes, text that it cannot write back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lmfuse.align.exact import token_bytes
from lmfuse.bytes import ByteTokenizer
from lmfuse.bytes_turns import chat_template
from lmfuse.errors import TokenizerError
from lmfuse.folder_files import read_object
from lmfuse.types import Document, Vocabulary

DIGIT_PROBES = ("1234567", "2024", "100000", "31415926535897932384")
WHITESPACE_PROBE = "if a:\n        b = 1\n\n\tc\r\n   \n"
LOSS_PROBES = ("The Cat", "cafe\u0301", "caf\u00e9", "\ufb01ne \u2460", "  a  b\n\tc\n", "a\u200bb\x01c", "\U0001f642 \u6771\u4eac")
SHOWN = 8  # examples of anything


def describe(name: str, tokenizer: ByteTokenizer) -> dict[str, Any]:
    """Return what a reader should know of a tokenizer, as plain values; bytes as hex digits."""
    vocabulary = tokenizer.vocabulary
    written = token_bytes(vocabulary)
    return {
        "name": name,
        "vocabulary": vocabulary.size,
        "digits": digit_scheme(tokenizer, written),
        "whitespace": whitespace_scheme(tokenizer, written),
        "control": {kind: token(vocabulary, token_id) for kind, token_id in sorted(vocabulary.control.items())},
        "other_control": _other_control(vocabulary),
        "start": [token(vocabulary, token_id) for token_id in tokenizer.start_ids],
        "chat_template": False,  # a folder knows
        "duplicates": duplicates(written),
        "lossy": tokenizer.lossy,
        "probes": lost_in_probes(tokenizer) if tokenizer.lossy else [],
    }


def token(vocabulary: Vocabulary, token_id: int) -> dict[str, Any]:
    """Return an id with its spelling."""
    return {"id": int(token_id), "string": vocabulary.strings[token_id]}


def shared_vocabulary(target: Vocabulary, source: Vocabulary) -> float:
    """Return the share of the target's byte strings that are tokens of the source, too.

    >>> shared_vocabulary(Vocabulary.from_tokens([b"", b"a", b"b"]), Vocabulary.from_tokens([b"b", b"c"]))
    0.5
    """
    ours, theirs = (set(token_bytes(vocabulary)) - {b""} for vocabulary in (target, source))
    return len(ours & theirs) / max(len(ours), 1)


def pieces(tokenizer: ByteTokenizer, texts: Sequence[str]) -> list[list[bytes]]:
    """Return the bytes of each text that each token covers; bytes that no token covers are left out."""
    found = tokenizer.encode_many([Document.plain(text) for text in texts])
    return [
        [text.encode()[start:end] for start, end in zip(encoding.starts.tolist(), encoding.ends.tolist(), strict=True) if end > start]
        for text, encoding in zip(texts, found, strict=True)
    ]


def digit_scheme(tokenizer: ByteTokenizer, written: Iterable[bytes]) -> dict[str, Any]:
    """Return how numbers are cut: what the vocabulary has, and what the tokenizer really writes."""
    tokens = sorted({token for token in written if token.isdigit()}, key=lambda token: (-len(token), token))
    probes = [*DIGIT_PROBES, *(token.decode() for token in tokens[:100])]
    runs = pieces(tokenizer, probes)
    longest = max((len(piece) for run in runs for piece in run if piece.strip().isdigit()), default=0)
    scheme = {0: "no digits", 1: "single digits", 2: "up to 2 digits", 3: "up to 3 digits"}.get(
        longest, f"any length (up to {longest} seen)"
    )
    return {
        "scheme": scheme, "longest": longest, "in_vocabulary": len(tokens[0]) if tokens else 0, "tokens": len(tokens),
        "probe": DIGIT_PROBES[0], "pieces": [piece.hex() for piece in runs[0]],
    }  # fmt: skip


def whitespace_scheme(tokenizer: ByteTokenizer, written: Iterable[bytes]) -> dict[str, Any]:
    """Return which runs of whitespace are single tokens, and how an indented text is cut."""
    blank = {token for token in written if token and not token.strip(b" \t\r\n")}
    runs = {
        name: ranges(len(token) for token in blank if token == sign * len(token))
        for name, sign in (("spaces", b" "), ("tabs", b"\t"), ("newlines", b"\n"))
    }
    indented = sum(token.startswith(b"\n") and token.endswith((b" ", b"\t")) for token in blank)
    mixed = sum(len(set(token)) > 1 for token in blank)
    probe = pieces(tokenizer, [WHITESPACE_PROBE])[0]
    return {**runs, "mixed": mixed, "newline_and_indentation": indented, "probe": WHITESPACE_PROBE, "pieces": [p.hex() for p in probe]}


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as ranges.

    >>> ranges([3, 1, 2, 8, 16, 17])
    '1-3, 8, 16-17'
    """
    ordered = sorted(set(numbers))
    breaks = [i for i, (low, high) in enumerate(pairwise(ordered), start=1) if high > low + 1]
    parts = [ordered[first:last] for first, last in pairwise([0, *breaks, len(ordered)])] if ordered else []
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts) or "none"


def duplicates(written: Sequence[bytes]) -> dict[str, Any]:
    """Return which ids write the same bytes.

    >>> duplicates([b"", b"a", b"b", b"a"])
    {'ids': 2, 'strings': 1, 'examples': [{'bytes': '61', 'ids': [1, 3]}]}
    """
    count = Counter(written)
    twice = [token for token in count if token and count[token] > 1]
    shown = {token: [] for token in twice[:SHOWN]}  # type: dict[bytes, list[int]]
    for token_id, token in enumerate(written):
        if token in shown:
            shown[token].append(token_id)
    examples = [{"bytes": token.hex(), "ids": ids[:SHOWN]} for token, ids in shown.items()]
    return {"ids": sum(count[token] for token in twice), "strings": len(twice), "examples": examples}


def lost_in_probes(tokenizer: ByteTokenizer) -> list[dict[str, str]]:
    """Return probe texts of which the tokenizer cannot write something back, and the bytes that it loses."""
    found = []
    for text in LOSS_PROBES:
        data, (encoding,) = text.encode(), tokenizer.encode_many([Document.plain(text)])
        kept = {place for s, e in zip(encoding.starts.tolist(), encoding.ends.tolist(), strict=True) if s >= 0 for place in range(s, e)}
        lost = bytes(byte for place, byte in enumerate(data) if place not in kept)
        if lost:
            found.append({"text": data.hex(), "lost": lost.hex()})
    return found


def has_chat_template(folder: Path) -> bool:
    """Return whether a model's folder holds a chat template; nothing of it is run.

    Raises:
        TokenizerError: a file of it is broken or no regular file.
    """
    if chat_template(folder, {}):
        return True
    return bool(chat_template(folder, read_object(folder, "tokenizer_config.json", TokenizerError) or {}))


def _other_control(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the tokens that write nothing and have no part that we know."""
    known = set(vocabulary.control.values())
    ids = [
        token_id for token_id in (vocabulary.lengths == 0).nonzero()[0].tolist() if token_id not in known and vocabulary.strings[token_id]
    ]
    return {"count": len(ids), "examples": [token(vocabulary, token_id) for token_id in ids[:SHOWN]]}
