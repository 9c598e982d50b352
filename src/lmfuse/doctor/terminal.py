"""What the doctor found, on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lmfuse.report.visible import plain, visible


def show(found: Mapping[str, Any]) -> None:
    """Print findings."""
    from rich.markup import escape
    from rich.table import Table

    from lmfuse.console import Console

    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for what, value in summary(found):
        table.add_row(escape(what), escape(value))
    console = Console()
    console.table(table)
    for note in notes(found):
        console.warn(note)


def summary(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield pairs of what was looked at and what was found; every string from outside made visible."""
    text, coverage, sides = found["text"], found["coverage"], [found["target"], found["source"]]
    yield "target, source", ", ".join(plain(side["name"]) for side in sides)
    yield (
        "text",
        f"documents: {text['documents']:,}, bytes: {text['bytes']:,}" + (" (the first of a longer text)" if text.get("cut") else ""),
    )
    yield "tokens", ", ".join(f"{side['tokens']:,}" for side in sides)
    yield "bytes per token", ", ".join(f"{side['bytes_per_token']:.2f}" for side in sides)
    yield from _coverage(coverage)
    yield "target tokens (and bytes) by kind", _kinds(found["kinds"])
    overlap = found["overlap"]
    yield "target ids that the source spells", f"{overlap['target_ids']:.1%}; by use {overlap['target_use']:.1%}"
    yield "source ids that the target spells", f"{overlap['source_ids']:.1%}; by use {overlap['source_use']:.1%}"
    yield "source tokens that a map sends on", ", ".join(f"{m['name']} {m['tokens']:.1%}" for m in found["maps"])
    for side, values in zip(("target", "source"), sides, strict=True):
        yield f"{side} tokenizer", (f"{plain(values['lossy'])}; {values['masked_bytes']:,} bytes masked" if values["lossy"] else "exact")
        yield f"{side} digits", f"{values['digits']['scheme']}: {_pieces(values['digits'])}"
        yield (
            f"{side} whitespace in one token",
            "; ".join(f"{kind} {values['whitespace'][kind]}" for kind in ("spaces", "tabs", "newlines")),
        )
        yield f"{side} writes before a text", " ".join(visible(token["string"]) for token in values["start"]) or "nothing"
    if found.get("turns"):
        yield from _turns(found["turns"])
    if found.get("rows"):
        yield from _rows(found["rows"])


def _turns(turns: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "trained turns", f"{turns['turns']:,}"
    for side in ("target", "source"):
        found = turns[side]
        end = f"{visible(found['end'])} ends a turn" if found["end"] else "no single token ends a turn: that byte is masked"
        masked = ", ".join(f"{found[f'masked_{part}']:,} {part}" for part in ("first", "last", "end"))
        yield f"  {side}", f"{end}; masked bytes at turns: {masked}; {found['prefixed']:,} begin with the template's space"


def _coverage(coverage: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    sample = coverage["fusellm"]
    yield "target tokens with a row: byte law", f"{coverage['byte_law']:.1%}"
    yield "  plain join: both start there", f"{coverage['join']:.1%}"
    yield "  inside (the byte law conditions)", f"{max(coverage['byte_law'] - coverage['join'], 0):.1%}"
    yield "  the same stretch of text", f"{coverage['same']:.1%}"
    yield (
        "  FuseLLM (DTW and MinED)",
        f"{sample['coverage']:.1%} of a sample of {sample['tokens']:,} tokens; one-hot {sample['one_hot']:.1%}",
    )


def _kinds(kinds: list[dict[str, Any]]) -> str:
    tokens, num_bytes = (max(sum(kind[name] for kind in kinds), 1) for name in ("target_tokens", "bytes"))
    return ", ".join(f"{kind['kind']} {kind['target_tokens'] / tokens:.1%} ({kind['bytes'] / num_bytes:.1%})" for kind in kinds)


def _pieces(probe: Mapping[str, Any]) -> str:
    return "|".join(visible(bytes.fromhex(piece)) for piece in probe["pieces"])


def _rows(rows: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "rows",
        f"{rows['documents']:,} of {rows['of']:,} documents, {rows['bytes']:,} bytes, k {rows['k']}; {rows['passed_over']:,} passed over",
    )
    for method in rows["methods"]:
        yield (
            f"  {method['name'].replace('_', ' ') if method['name'] == 'byte_law' else 'join, ' + method['name']}",
            f"coverage {method['coverage']:.1%}, lost mass {method['lost_mass']:.2%}, "
            f"{method['bits_per_byte']:.4f} bits per byte (the source's own there: {method['own_bits_per_byte']:.4f})",
        )


def notes(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a reader should not miss."""
    target, source = found["target"], found["source"]
    if target["digits"]["longest"] != source["digits"]["longest"]:
        yield f"numbers are cut differently: target {target['digits']['scheme']}, source {source['digits']['scheme']}"
    masked = found["text"]["masked_bytes"] / max(found["text"]["bytes"], 1)
    if masked > 0.01:
        yield f"{masked:.1%} of the text cannot be represented by one of the two: nothing is taught there"
    if found["coverage"]["byte_law"] < 0.9:
        yield f"only {found['coverage']['byte_law']:.1%} of the target's tokens get a row"
