"""How the sandbox's child executes a stranger's program and its tests: locked in already, and with nothing in reach that is worth stealing.

The child of ``sandbox.py`` executes this file's source after ``sandbox_child.py`` has locked it in. The tests are not there yet: they come through a
pipe once the program has run to its end, and behind them the word that only a run to the end of the tests reads. What this file needs of Python is
bound before the program runs, so that a program that puts functions of its own in their place changes nothing here; that it did is a failure.
"""

import builtins
import json
import os
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LONGEST_REASON = 500


def executor(report: int, token: int) -> Callable[[str], None]:
    """Return what executes a program, asks for its tests, executes these, and reports; everything that it needs is bound here."""
    execute, translate, read, write, encode = exec, compile, os.read, os.write, json.JSONEncoder().encode
    number, silently, tell_error, any_error, flush = int.from_bytes, suppress, describe, BaseException, sys.stdout.flush
    own, originals, replaced = vars(builtins), dict(vars(builtins)), which_differ
    module = types.ModuleType("answer")
    space = module.__dict__
    sys.modules["answer"] = module

    def tell(name: str, value: Any) -> None:
        write(report, encode({name: value}).encode() + b"\n")

    def exactly(size: int) -> bytes:
        found = b""
        while len(found) < size and (part := read(token, size - len(found))):
            found += part
        return found

    def run(answer: str) -> None:
        try:
            execute(translate(answer, "answer.py", "exec"), space)
            if changed := replaced(originals, own, space):
                tell("failed", f"answer.py: puts something of its own in the place of {changed}")
                return
            tell("answered", True)
            tests = exactly(number(exactly(8), "big")).decode("utf-8", "surrogatepass")
            execute(translate(tests, "tests.py", "exec"), space)
        except any_error as error:
            with silently(any_error):
                flush()
            tell("failed", tell_error(error))
            return
        with silently(any_error):
            flush()
        tell("passed", exactly(32).decode())

    return run


def which_differ(originals: dict[str, Any], now: dict[str, Any], space: dict[str, Any]) -> str:
    """Return a name among Python's own that stands for something else by now, ``""`` where there is none."""
    for name, value in originals.items():
        if name not in now or now[name] is not value:
            return name
    return "" if space.get("__builtins__") is now else "__builtins__"


def describe(error: BaseException) -> str:
    """Return an error's name, text and line."""
    place, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in ("answer.py", "tests.py"):
            place = f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}: "
        trace = trace.tb_next
    text = ""
    with suppress(BaseException):
        text = str(error)[:LONGEST_REASON]
    return f"{place}{type(error).__name__}{': ' if text else ''}{text}"
