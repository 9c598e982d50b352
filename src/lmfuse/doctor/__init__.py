"""How well two tokenizers fit each other on a text: ``lmfuse align``. No weights are read.

``examine`` returns plain values; ``terminal.show`` prints them and ``report.doctor`` makes a page of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from lmfuse import __version__
from lmfuse.align.exact import exact_map, token_bytes
from lmfuse.bytes import ByteTokenizer
from lmfuse.doctor.axis import Axis
from lmfuse.doctor.lines import Finder
from lmfuse.doctor.rows import measure
from lmfuse.doctor.samples import maps_by_use, published
from lmfuse.doctor.tokenizers import describe, has_chat_template, shared_vocabulary, token
from lmfuse.doctor.turns import boundaries
from lmfuse.errors import InputError
from lmfuse.model_files import local_folder
from lmfuse.models import ModelSpec, load_tokenizer
from lmfuse.text import TextSpec, read_documents, reads_conversations
from lmfuse.types import Document, Vocabulary

TEXT_BYTES = 1 << 23  # of the text that are looked at


def examine(
    target: str,
    source: str,
    text: Path,
    *,
    field: str = "{text}",
    lines: int = 20,
    rows: Path | None = None,
    chat_template: str = "own",
) -> dict[str, Any]:
    """Compare two models' tokenizers on a text file, and on collected rows of the source where there are any.

    Args:
        target: folder or hub name of the model that would learn.
        source: of the model that would teach.
        text: a file of text or of conversations; the first ``TEXT_BYTES`` of it are looked at.
        field: template of a record's text.
        lines: excerpts to choose.
        rows: folder of the source's rows.
        chat_template: how both read conversations, see ``chat_template.choose_template``.

    Raises:
        InputError: a model folder, the text or the rows cannot be used.
    """
    if lines < 1:
        raise InputError(f"lines is {lines}, expected 1 or more", hint="20 is usual")
    wanted = _spec(text, field)
    template = chat_template if reads_conversations(wanted, Path()) else "none"
    specs = [ModelSpec(model=name, chat_template=template) for name in (target, source)]
    tokenizers = [load_tokenizer(spec) for spec in specs]
    names = [spec.label for spec in specs] if specs[0].label != specs[1].label else [target, source]
    documents, cut = _read(wanted)
    found = compare(names, tokenizers, documents, lines)
    found["text"] |= {"name": text.name, "cut": cut}
    if rows is not None:
        found["rows"] = measure(rows, *tokenizers)
    for side, spec in zip(("target", "source"), specs, strict=True):
        found[side]["chat_template"] = has_chat_template(local_folder(spec, weights=False))
    return found


def compare(names: Sequence[str], tokenizers: Sequence[ByteTokenizer], documents: Sequence[Document], lines: int = 20) -> dict[str, Any]:
    """Return everything that two tokenizers and a text tell, as plain values; bytes as hex digits, shares between 0 and 1."""
    target, source = tokenizers
    axis = Axis.of(documents, target, source)
    finder = Finder(axis, documents, target.vocabulary, source.vocabulary)
    sides = {
        side: describe(name, tokenizer) | {"tokens": len(tokens.ids), "masked_bytes": tokens.masked_bytes,
                                           "bytes_per_token": (axis.num_bytes - tokens.masked_bytes) / max(len(tokens.ids), 1)}
        for side, name, tokenizer, tokens in zip(("target", "source"), names, tokenizers, (axis.target, axis.source), strict=True)
    }  # fmt: skip
    num_tokens = max(len(axis.target.ids), 1)
    return {
        "schema": 1, "version": __version__, **sides,
        "text": {"documents": len(documents), "bytes": axis.num_bytes, "masked_bytes": axis.lost_bytes, "name": "", "cut": False},
        "coverage": {
            "byte_law": float(axis.lawful.sum() / num_tokens), "join": float(axis.joined.sum() / num_tokens),
            "same": float(axis.same.sum() / num_tokens), "fusellm": published(documents, target, source),
        },
        "kinds": axis.spans.by_kind(), "spans": finder.spans(), "lines": finder.lines(lines),
        "overlap": _overlap(axis, target.vocabulary, source.vocabulary),
        "maps": maps_by_use(target, source, axis.source.ids), "control": _control(target.vocabulary, source.vocabulary), "rows": None,
        "turns": boundaries(axis, target.vocabulary, source.vocabulary),
    }  # fmt: skip


def _spec(text: Path, field: str) -> TextSpec:
    try:
        return TextSpec(domain="text", path=str(text.absolute()), text=field if "{" in field else f"{{{field}}}")
    except ValidationError as error:
        what = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise InputError(f"--field {field!r}: {what}", hint="name a field, or write a template such as '{question} {answer}'") from None


def _read(spec: TextSpec) -> tuple[list[Document], bool]:
    """Return the first documents of a file, and whether there was more; one plain document alone is cut to what is looked at."""
    found: list[Document] = []
    room = TEXT_BYTES
    for document in read_documents(spec, Path()):
        if room <= 0:
            return found, True
        data = document.trained_bytes
        if len(data) > room and document.is_conversation and found:
            return found, True
        if len(data) > room and not document.is_conversation:
            found.append(Document.plain(data[:room].decode(errors="ignore"), document.domain, document.origin))
            return found, True
        found.append(document)
        room -= len(data)
    return found, False


def _overlap(axis: Axis, target: Vocabulary, source: Vocabulary) -> dict[str, float]:
    """Return how much of each vocabulary the other one spells the same, by ids and by their use in the text."""
    ours, theirs = (token_bytes(vocabulary) for vocabulary in (target, source))
    shared = (set(ours) & set(theirs)) - {b""}
    by_use = [
        float(np.fromiter((written in shared for written in spelled), bool, len(spelled))[ids].sum() / max(len(ids), 1))
        for spelled, ids in ((ours, axis.target.ids), (theirs, axis.source.ids))
    ]
    return {
        "target_ids": shared_vocabulary(target, source), "source_ids": shared_vocabulary(source, target),
        "target_use": by_use[0], "source_use": by_use[1],
    }  # fmt: skip


def _control(target: Vocabulary, source: Vocabulary) -> list[dict[str, Any]]:
    """Return what each named control token of the source maps to."""
    onto = exact_map(source, target).single()
    return [
        {"class": kind, "source": token(source, token_id), "target": token(target, int(onto[token_id])) if onto[token_id] >= 0 else None}
        for kind, token_id in sorted(source.control.items())
    ]
