"""What pydantic says of a recipe, in the words of whoever wrote it: one line, with a suggestion where a name is unknown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from lmfuse.errors import did_you_mean

SPOKEN = {  # where pydantic's words name classes of ours or of Python
    **dict.fromkeys(("model_type", "model_attributes_type", "dataclass_type", "dict_type"), "must be a mapping of keys to values"),
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list"),
}


def problems(error: ValidationError, model: type[BaseModel]) -> str:
    """Return everything that stops a recipe, the first problem first, three more at most.

    >>> from pydantic import ConfigDict
    >>> class Small(BaseModel):
    ...     model_config = ConfigDict(extra="forbid")
    ...     rate: float = 1.0
    >>> try:
    ...     Small(rat=2)
    ... except ValidationError as error:
    ...     print(problems(error, Small))
    rat: unknown 'rat'; did you mean 'rate'? (known: rate)
    """
    schema = model.model_json_schema()
    found = list(dict.fromkeys(_explain(problem, schema) for problem in error.errors()))
    more = f" (and {len(found) - 1} more: {'; '.join(found[1:4])})" if len(found) > 1 else ""
    return f"{found[0]}{more}"


def _explain(problem: Any, schema: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "union_tag_invalid":
        return f"{where}.name: {did_you_mean(str(context['tag']), [tag.strip(chr(39)) for tag in context['expected_tags'].split(', ')])}"
    if kind == "union_tag_not_found":
        return f"{where}.name: is missing; name the method (`lmfuse methods` lists them)"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: {did_you_mean(str(problem['loc'][-1]), _keys_at(problem['loc'][:-1], schema))}"
    if kind in ("missing", "missing_argument"):
        return f"{where}: is missing"
    message = SPOKEN.get(kind, str(problem["msg"]).removeprefix("Value error, "))
    got = "" if isinstance(problem.get("input"), dict | list) or kind == "value_error" else f" (got {problem.get('input')!r})"
    return f"{where}: {message}{got}" if where else f"{message}{got}"


def _keys_at(location: tuple[int | str, ...], schema: Mapping[str, Any]) -> list[str]:
    """Return the keys that may stand at a location, by walking the JSON schema; in a union the branch that the location names, if any."""
    nodes = list(_branches(schema, schema))
    for part in location:
        named = [node for node in nodes if node.get("properties", {}).get("name", {}).get("const") == part]
        if named:
            nodes = named
            continue
        inner = [node["items"] if isinstance(part, int) and "items" in node else node.get("properties", {}).get(part) for node in nodes]
        nodes = [branch for node in inner if node for branch in _branches(node, schema)] or nodes
    return [key for node in nodes for key in node.get("properties", {})]


def _branches(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a node of the schema without references, or its alternatives."""
    reference = node.get("$ref")
    if reference:
        yield from _branches(schema["$defs"][reference.rsplit("/", 1)[1]], schema)
    elif "anyOf" in node or "oneOf" in node:
        for option in node.get("anyOf") or node["oneOf"]:
            yield from _branches(option, schema)
    else:
        yield node
