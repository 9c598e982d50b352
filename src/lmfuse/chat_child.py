"""What the child process of ``chat_sandbox.py`` runs: a stranger's chat template, with little memory, little time and no files.

Its first line of standard input is ``{"library": folder, "source": template, "variables": {...}, "seconds": n, "bytes": n}``; it answers
``ready``. Each further line is ``{"messages": [...], "prompt": bool, "most": characters}``; it answers each with one line of JSON: ``text``, or
``problem`` (the template refuses these messages), or ``fault`` (the template itself is at fault), with ``always`` where no message can help. A
template that does not end kills it.
"""

import datetime
import json
import re
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]{6,}>")  # how Python writes functions and objects without a text of their own
LONGEST_REASON = 300  # characters of a problem or fault that are passed on
TODAY = datetime.datetime(2024, 7, 26)  # the day that Llama 3.1's template takes where it knows none: every run renders the same


def limit(num_bytes: int, open_files: int) -> None:
    """Refuse this process more memory, new files and sockets, writing to files, and a core dump."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the only limit
        return
    wanted = (("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 0), ("RLIMIT_NOFILE", open_files), ("RLIMIT_AS", num_bytes))
    for name, most in wanted:
        with suppress(ValueError, OSError, AttributeError):  # a system that knows no such limit, or has a lower one
            resource.setrlimit(getattr(resource, name), (most, most))


def renew(seconds: int) -> None:
    """Let the system end this process after so much more processor time."""
    with suppress(ImportError, ValueError, OSError, AttributeError):
        import resource

        used, hard = resource.getrusage(resource.RUSAGE_SELF), resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 1, hard))


def environment() -> Any:
    """Return the environment that transformers gives to chat templates, as far as text alone needs it."""
    import jinja2
    from jinja2 import ext, nodes, sandbox, utils

    class Generation(ext.Extension):
        """Accept ``{% generation %}``, which marks what the assistant says and writes nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("write"), [], [], body).set_lineno(line)

        def write(self, caller: Any) -> str:
            return str(caller())

    class Namespace(utils.Namespace):
        """Refuse underscored names, the first step of most escapes."""

        def __init__(*args: Any, **values: Any) -> None:
            named = dict(*args[1:], **values)
            for name in named:
                Namespace.check(name)
            utils.Namespace.__init__(args[0], named)

        def __setitem__(self, name: str, value: Any) -> None:
            Namespace.check(name)
            super().__setitem__(name, value)

        @staticmethod
        def check(name: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace holds no {name[:40]!r}")

    def refuse(message: Any) -> None:
        raise jinja2.exceptions.TemplateError(str(message))

    def to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return TODAY.strftime(form)

    found = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    del found.filters["random"], found.globals["lipsum"]  # every run renders the same
    found.filters["tojson"] = to_json
    found.globals |= {"raise_exception": refuse, "strftime_now": strftime_now, "namespace": Namespace, "dict": lambda **values: values}
    return found


def warm_up(jinja: Any) -> None:
    """Run what the library imports late, before it can open no file any more."""
    import_module("jinja2.debug")
    for source in ("{{ raise_exception('') }}", "{{ 1/0 }}", "{{ strftime_now('%d %b %Y') }}{{ [{'a': 'é'}]|tojson }}{{ 1.5|round }}"):
        with suppress(Exception):
            jinja.from_string(source).render()
    with suppress(Exception):
        jinja.from_string("{% for %}")


def answer(template: Any, variables: dict[str, str], asked: dict[str, Any]) -> dict[str, str]:
    """Return what the template makes of some messages, or why it makes nothing of them."""
    import jinja2

    size, parts = 0, []
    try:
        given = {**variables, "messages": asked["messages"], "tools": None, "documents": None, "add_generation_prompt": asked["prompt"]}
        for part in template.generate(**given):
            size += len(part)
            if size > asked["most"]:
                return {"fault": f"writes more than {asked['most']:,} characters"}
            parts.append(part)
        return check("".join(parts), asked["messages"])
    except MemoryError:
        return {"fault": "needs too much memory"}
    except jinja2.exceptions.SecurityError as error:
        return {"fault": f"does what a template may not: {str(error)[:LONGEST_REASON]}"}
    except jinja2.exceptions.TemplateError as error:
        return {"problem": str(error)[:LONGEST_REASON] or type(error).__name__}
    except Exception as error:
        return {"problem": f"{type(error).__name__}: {str(error)[:LONGEST_REASON]}"}


def check(text: str, messages: list[dict[str, str]]) -> dict[str, str]:
    """Return what a template wrote, or why that is no text that every run would write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return {"problem": f"it writes {ascii(text[error.start])[1:-1]}, half a character"}
    for found in ADDRESS.findall(text):
        if not any(found in message["content"] for message in messages):
            return {"problem": "it writes an address in memory, another one in every run"}
    return {"text": text}


def main() -> None:
    """Compile the template and serve until standard input ends."""
    given = json.loads(sys.stdin.buffer.readline())
    sys.path.append(given["library"])
    jinja = environment()
    warm_up(jinja)
    limit(given["bytes"], open_files=3)
    print("ready", flush=True)
    template, broken = None, ""
    for line in sys.stdin.buffer:
        renew(given["seconds"])
        asked = json.loads(line)
        try:
            template = template or jinja.from_string(given["source"])
        except MemoryError:
            broken = "needs too much memory"
        except Exception as error:  # syntax, and nesting too deep for the compiler
            broken = f"cannot be read: {str(error)[:LONGEST_REASON]} (line {getattr(error, 'lineno', 0)})"
        try:
            found = {"fault": broken, "always": "yes"} if template is None else answer(template, given["variables"], asked)
        except MemoryError:  # while it was told why
            found = {"fault": "needs too much memory"}
        del asked, line
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
