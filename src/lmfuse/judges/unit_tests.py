"""Answers with code, run with the question's tests in a sandbox."""

from __future__ import annotations

import ast
import json
import math
import re
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property

from lmfuse.artefacts import content_key
from lmfuse.errors import InputError
from lmfuse.judges.protocol import VERSION, Case, Opinion, Scorer
from lmfuse.judges.sandbox import run_python
from lmfuse.judges.settings import UnitTests, label_of

FENCE = re.compile(
    r"^[ \t]*(?P<fence>```+|~~~+)[ \t]*(?P<tag>[\w+.-]*)[^\n]*\n(?P<code>.*?)(?:^[ \t]*(?P=fence)[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
PYTHON = ("python", "python3", "py", "py3")


def code_of(answer: str, which: str = "first") -> str:
    r"""Return the code of an answer: its first or last fenced block, or all of them; without one the whole answer.

    Blocks that are called Python are taken before those without a name; those of other languages are none.

    >>> code_of("Try\n```python\nx = 1\n```\nThen:\n```\nx\n```"), code_of("x = 2"), code_of("```py\nx = 3")
    ('x = 1\n', 'x = 2', 'x = 3')
    """
    blocks = [(found["tag"].lower(), found["code"]) for found in FENCE.finditer(answer)]
    named = [code for tag, code in blocks if tag in PYTHON] or [code for tag, code in blocks if not tag]
    if not named:
        return "" if blocks else answer
    return {"first": named[0], "last": named[-1], "all": "\n".join(named)}[which]


def check_tests(case: Case) -> None:
    """Refuse tests that any answer would pass: those that only define functions or classes.

    Raises:
        InputError: neither a call nor an assertion stands outside of functions, or outside of ``if __name__ == ...``; or it is no Python.
    """
    if not case.tests.strip():
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(case.tests).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"unit_tests: the tests of question {case.id} are no Python: {error}", "correct them") from None
    if not any(_does_something(statement) for statement in body):
        raise InputError(
            f"unit_tests: the tests of question {case.id} check nothing: neither a call nor an assert stands at their top level",
            "call the test function in the last line",
        )


def _does_something(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert | ast.Call | ast.Raise):
        return True
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return False
    if isinstance(node, ast.If) and any(isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(node.test)):
        return any(_does_something(each) for each in node.orelse)  # the module is not called __main__
    return any(_does_something(each) for each in ast.iter_child_nodes(node))


class UnitTestsScorer(Scorer):
    """The judge ``unit_tests``."""

    def __init__(self, settings: UnitTests) -> None:
        self.settings, self.label = settings, label_of(settings)

    @cached_property
    def key(self) -> str:
        """Return a hash of its settings and of Python's version, whose library the answers use."""
        return content_key(["unit_tests", VERSION, sys.implementation.name, sys.version, self.settings.code, asdict(self.settings.limits)])

    def opinions(self, cases: Sequence[Case], texts: Sequence[Sequence[str]]) -> list[list[Opinion]]:
        """Return 1 where the tests pass, 0 where they do not, ``nan`` where there are none.

        Raises:
            InputError: this system cannot run a stranger's program safely; or a question's tests check nothing, or are no Python.
        """
        for case in cases:
            check_tests(case)
        pairs = [(case, text) for case, answers in zip(cases, texts, strict=True) for text in answers]
        with ThreadPoolExecutor(self.settings.at_once) as pool:
            found = iter(list(pool.map(self._opinion, *zip(*pairs, strict=True))) if pairs else [])
        return [[next(found) for _ in answers] for answers in texts]

    def _opinion(self, case: Case, text: str) -> Opinion:
        if not case.tests.strip():
            return Opinion(math.nan, problem="no_tests")
        code = code_of(text, self.settings.code)
        if not code.strip():
            return Opinion(0.0, problem="no_code")
        ran = run_python(code, case.tests, self.settings.limits)
        given = json.dumps({"answer.py": code, "tests.py": case.tests}, ensure_ascii=False)
        said = json.dumps({"outcome": ran.outcome, "detail": ran.detail, "output": ran.output, "layers": ran.layers}, ensure_ascii=False)
        counters = {} if ran.outcome in ("passed", "failed") else {f"runs_{ran.outcome}": 1}
        counters |= {"folders_left": 1} if ran.folder_left else {}
        return Opinion(float(ran.outcome == "passed"), ((given, said),), counters=counters)
