"""Every error that a user can meet, and the exit code it ends in.

::

    LmfuseError                exit 1   something that we did not foresee
    ├── InputError             exit 2   what was given cannot be used
    │   ├── RecipeError                 a recipe: unknown key or method, impossible value
    │   ├── TextError                   a text file: missing, empty, not UTF-8 (names file and line)
    │   ├── TokenizerError              a tokenizer that cannot be read as bytes
    │   ├── ModelError                  a model folder: missing or misshapen tensors, pickle, remote code, NaN
    │   ├── LimitError                  a source beyond a limit of the recipe, found by the plan or in its rows
    │   └── PromptTooLongError          a prompt that has more tokens than a model reads
    ├── BusyError              exit 3   another run holds the folder
    ├── VerificationError      exit 4   an artefact on disk is not what its manifest says
    └── ResourceError          exit 5   out of disk or memory

An interrupt (Ctrl-C) ends in 130. The message says what is wrong and where; ``hint`` says what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LmfuseError(Exception):
    """Base of all errors that we raise on purpose: one line of what, one line of what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InputError(LmfuseError):
    """What was given cannot be used."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe with an unknown key, an unknown method or an impossible value."""


class TextError(InputError):
    """A text file that is missing, empty, malformed or not UTF-8."""


class TokenizerError(InputError):
    """A tokenizer that cannot be read as bytes."""


class ModelError(InputError):
    """A model folder that cannot be trusted or does not hold a whole model."""


class LimitError(InputError):
    """A source that a recipe's ``limits`` do not let through: by its tokenizer, or by what its rows say."""


class PromptTooLongError(InputError):
    """A prompt that has more tokens than a model reads."""


class BusyError(LmfuseError):
    """Another process is writing to the same folder."""

    exit_code = 3


class VerificationError(LmfuseError):
    """An artefact whose bytes are not those its manifest promises."""

    exit_code = 4


class ResourceError(LmfuseError):
    """The disk or the memory is too small."""

    exit_code = 5


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the tail of an error message about an unknown word.

    >>> did_you_mean("min_cee", ["avg_ce", "min_ce"])
    "unknown 'min_cee'; did you mean 'min_ce'? (known: avg_ce, min_ce)"
    """
    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ";"
    return f"unknown {word!r}{guess} (known: {', '.join(names)})"
