"""How a record's fields become text: a template names them in braces, and nothing else is ever evaluated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

from lmfuse.errors import TextError, did_you_mean

PLAIN = "{text}"


def template_fields(template: str) -> list[str]:
    """Return the fields that a template names, in order; ``{{`` and ``}}`` stand for braces.

    Raises:
        ValueError: no field, or more than a plain name between braces: no attribute, index, conversion or format is ever evaluated.

    >>> template_fields("Q: {question}\\nA: {answer}")
    ['question', 'answer']
    """
    parts = list(Formatter().parse(template))
    fields = [field for _, field, _, _ in parts if field is not None]
    for _, field, spec, conversion in parts:
        if field is not None and (not field.strip() or re.search(r"[.\[\]{}]", field) or spec or conversion):
            raise ValueError(f"text: {{{field}}} is no plain field name; write {{name}}, and double a brace that is meant as one")
    if not fields:
        raise ValueError("text: names no field; write for example '{question}\\n{answer}'")
    return fields


def fill(template: str, record: Mapping[str, Any], where: str) -> str:
    """Return a template with a record's fields in it; braces inside the fields mean nothing.

    Raises:
        TextError: a field is missing, is no string, or holds half of a surrogate pair; names ``where``.

    >>> fill("{a}: {b}", {"a": "one", "b": "{two}"}, "here")
    'one: {two}'
    """
    parts: list[str] = []
    for literal, field, _, _ in Formatter().parse(template):
        parts.append(literal)
        if field is None:
            continue
        if field not in record:
            raise TextError(f"{where}: field {did_you_mean(field, map(str, record))}", hint="`text` names the fields in braces")
        value = record[field]
        if not isinstance(value, str):
            got = type(value).__name__
            raise TextError(f"{where}: field {field!r} is {got}, expected a string", hint="name another field, or convert it")
        parts.append(value)
    text = "".join(parts)
    refuse_surrogates(text, where)
    return text


def refuse_surrogates(text: str, where: str) -> None:
    """Refuse what JSON can write and UTF-8 cannot.

    Raises:
        TextError: half of a surrogate pair.
    """
    if not text.isascii() and (half := re.search(r"[\ud800-\udfff]", text)):
        raise TextError(f"{where}: holds \\u{ord(half[0]):04x}, half of a surrogate pair", hint="no UTF-8 can hold it: remove the escape")
