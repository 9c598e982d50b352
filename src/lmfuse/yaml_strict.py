"""YAML for recipes: plain scalars, lists and mappings, and no value that silently changes meaning.

Against YAML 1.1 as PyYAML reads it: ``1e-5`` is a number (there a string); ``no``, ``on``, ``12:30:45`` and ``2024-01-01`` are strings
(there a boolean, a number in base 60, a date); tags, anchors and aliases, merge keys and duplicate keys are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lmfuse.errors import RecipeError

_SCALARS = (
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), "tTfF"),
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?)$"),
        "-+.0123456789",
    ),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with its own table of scalars and no shared nodes."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's name and shape)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, "anchors and aliases are not accepted", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, f"tags are not accepted: {event.tag}", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"a key must be text, got {key!r}", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper; it quotes text that this loader or any YAML 1.1 reader would take for something else."""


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))


def load_yaml(text: str, name: str) -> Any:
    """Parse YAML text strictly.

    Raises:
        RecipeError: naming ``name``, the line and what is not accepted there.

    >>> load_yaml("rate: 1e-5\\nanswer: no\\n", "recipe")
    {'rate': 1e-05, 'answer': 'no'}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark is not None else name
        what = getattr(error, "problem", None) or "not valid YAML"
        raise RecipeError(f"{where}: {what}", hint="a recipe is plain YAML: mappings, lists, text, numbers, true and false") from None
    except RecursionError:
        raise RecipeError(f"{name}: nested too deeply", hint="a recipe needs four levels at most") from None


def dump_yaml(value: Any) -> str:
    """Write plain values so that ``load_yaml`` and any YAML 1.1 reader get the same ones back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_yaml(path: Path, missing: str = "give the path of a .yaml file") -> Any:
    """Read plain values from a file; ``missing`` is the hint where there is none.

    Raises:
        RecipeError: the file is missing, not UTF-8, or not plain YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {path}", hint=missing) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}", hint="save the recipe as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}", hint="give the path of a .yaml file") from None
    return load_yaml(text, str(path))
