"""One self-contained HTML page from what ``lmfuse align`` found: lines of the text on a byte axis, then all figures."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lmfuse.disk import write_atomic
from lmfuse.report.visible import COMBINING, DOTTED_CIRCLE, parts, plain, visible

SHOWN = 24  # tokens of a span in a table
COLUMNS = 96  # bytes of a strip; a span is never broken
KINDS: Mapping[str, tuple[str, str, str]] = {  # class, sign, meaning
    "1:1": ("same", "=", "one target token, one source token: the same stretch of text"),
    "1:n": ("wide", "<", "one target token, several source tokens"),
    "n:1": ("fine", ">", "several target tokens, one source token"),
    "n:m": ("cross", "×", "several of both that cross: no common boundary inside"),
    "masked": ("masked", "!", "text that one of the two cannot represent: nothing is taught here"),
}


def render(found: Mapping[str, Any]) -> str:
    """Return the page. Everything that came from outside is made visible and escaped."""
    environment = Environment(
        loader=PackageLoader("lmfuse.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": lambda share: f"{share:.1%}", "visible": visible, "plain": plain, "shown": _from_hex}
    return environment.get_template("doctor.html").render(
        found=found, sides=[found["target"], found["source"]], legend=KINDS, lines=[_line(line) for line in found["lines"]],
        spans={name: [_span(span) for span in spans] for name, spans in found["spans"].items()}, kinds=_shares(found["kinds"]),
    )  # fmt: skip


def write_page(found: Mapping[str, Any], path: Path) -> Path:
    """Write the page of findings.

    Raises:
        ResourceError: the disk is full.
    """
    write_atomic(path, render(found).encode())
    return path


def _from_hex(digits: str, most: int = 80) -> str:
    return visible(bytes.fromhex(digits), most)


def _shares(kinds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each kind of span its class and its shares."""
    total = {name: max(sum(kind[name] for kind in kinds), 1) for name in ("target_tokens", "source_tokens", "bytes")}
    return [
        kind | {"css": KINDS[kind["kind"]][0], "sign": KINDS[kind["kind"]][1], "meaning": KINDS[kind["kind"]][2],
                "shares": {name: kind[name] / total[name] for name in total}}
        for kind in kinds
    ]  # fmt: skip


def _line(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return an excerpt as strips of two rows of blocks."""
    first, last = line["chunks"][0], line["chunks"][-1]
    place = f"{plain(Path(line['origin']).name)}, bytes {first['start']:,} to {last['end']:,}"
    text = visible(bytes.fromhex("".join(chunk["bytes"] for chunk in line["chunks"])), 200)
    return {"why": line["why"], "place": place, "text": text, "before": line["before"], "after": line["after"],
            "strips": [_strip(chunks) for chunks in _strips(line["chunks"])]}  # fmt: skip


def _strips(chunks: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    strip: list[dict[str, Any]] = []
    width = 0
    for chunk in chunks:
        size = chunk["shown_end"] - chunk["start"]
        if strip and width + size > COLUMNS:
            yield strip
            strip, width = [], 0
        strip.append(chunk)
        width += size
    yield strip


def _strip(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    origin = chunks[0]["start"]
    blocks = [block for chunk in chunks for row, side in ((1, "target"), (3, "source")) for block in _blocks(chunk, side, row, origin)]
    links = [
        {"first": chunk["start"] - origin + 1, "last": chunk["shown_end"] - origin + 1, "css": KINDS[chunk["kind"]][0],
         "text": _link(chunk), "title": _counts(chunk)}
        for chunk in chunks
    ]  # fmt: skip
    return {"columns": chunks[-1]["shown_end"] - origin, "blocks": blocks, "links": links}


def _link(chunk: Mapping[str, Any]) -> str:
    """Return the sign of a span, with its numbers of tokens where there is room."""
    sign = KINDS[chunk["kind"]][1]
    counts = f"{chunk['num_target']}:{chunk['num_source']}"
    crowded = chunk["kind"] in ("1:1", "masked") or chunk["shown_end"] - chunk["start"] < len(counts) + 1
    return sign if crowded else f"{sign}{counts}"


def _counts(chunk: Mapping[str, Any]) -> str:
    left_out = chunk["end"] - chunk["shown_end"]
    more = f"; {left_out:,} bytes are not shown" if left_out else ""
    counts = f"{chunk['num_target']} target and {chunk['num_source']} source tokens"
    return f"span {chunk['kind']}: {counts}, bytes {chunk['start']:,} to {chunk['end']:,}{more}"


def _blocks(chunk: Mapping[str, Any], side: str, row: int, origin: int) -> Iterator[dict[str, Any]]:
    """Yield the blocks of one side of a span: its tokens, and the text between them that it cannot represent."""
    data, at, empty = bytes.fromhex(chunk["bytes"]), chunk["start"], ""
    css, counts = KINDS[chunk["kind"]][0], _counts(chunk)

    def block(start: int, end: int, title: str, kind: str) -> dict[str, Any]:
        cells = _cells(data[start - chunk["start"] : end - chunk["start"]])
        return {"row": row, "first": start - origin + 1, "last": end - origin + 1, "css": kind, "cells": cells, "title": title}

    for token in chunk[side]:
        about = f"{side} token {token['id']} {visible(token['string'])}"
        if token["start"] == token["end"]:
            empty += f"before it {about}, a dummy prefix without text; "
            continue
        start, end = token["start"], min(token["end"], chunk["shown_end"])
        if start > at:
            yield block(at, start, f"{start - at} bytes that the {side} cannot represent\n{counts}", "lost")
        written = data[start - chunk["start"] : end - chunk["start"]].hex(" ")
        prefix = f", after a dummy prefix of {token['prefix']} bytes" if token["prefix"] else ""
        cut = "…" if len(written) > 96 else ""
        yield block(start, end, f"{about}\n{empty}bytes {start:,} to {token['end']:,}{prefix}: {written[:96]}{cut}\n{counts}", css)
        at, empty = end, ""
    if at < chunk["shown_end"]:
        yield block(at, chunk["shown_end"], f"{chunk['shown_end'] - at} bytes that the {side} cannot represent\n{counts}", "lost")


def _cells(data: bytes) -> list[dict[str, Any]]:
    """Return what a block shows, cut into cells that are as many columns wide as they have bytes; wide characters have their own."""
    cells: list[dict[str, Any]] = []
    for kind, text in parts(data):
        if kind == "text":
            for wide, run in groupby(text, key=_is_wide):
                characters = "".join(run)
                cells += [{"css": "t", "text": cell, "width": _columns(cell)} for cell in (characters if wide else [characters])]
        elif kind == "mark":
            cells.append({"css": "m", "text": text, "width": len(text)})
        else:
            cells += [{"css": "h", "text": text[i : i + 2], "width": 1} for i in range(0, len(text), 2)]
    return cells


def _columns(text: str) -> int:
    """Return the bytes of a text; a dotted circle before a combining character is ours."""
    added = text[:1] == DOTTED_CIRCLE and unicodedata.category(text[1:2] or "x") in COMBINING
    return len(text.encode()) - (len(DOTTED_CIRCLE.encode()) if added else 0)


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _span(span: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of a table of spans."""
    sides = {side: [_written(span, token) for token in span[side][:SHOWN]] for side in ("target", "source")}
    return {"css": KINDS[span["kind"]][0], "kind": span["kind"], "sign": KINDS[span["kind"]][1], "times": span["times"],
            "bytes": span["end"] - span["start"], "text": _from_hex(span["bytes"], 60), "target": sides["target"], "source": sides["source"],
            "num_target": span["num_target"], "num_source": span["num_source"]}  # fmt: skip


def _written(span: Mapping[str, Any], token: Mapping[str, Any]) -> str:
    data = bytes.fromhex(span["bytes"])
    return visible(data[token["start"] - span["start"] : token["end"] - span["start"]], 40) or "(prefix)"
