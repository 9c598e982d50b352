"""Development data in three parts that are never mixed: one to evolve on, one to select the winner on, one to report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.errors import InputError

Phase = Literal["evolve", "select", "report"]
PHASES: tuple[Phase, ...] = ("evolve", "select", "report")
DISTINCT = "give each unit to one of evolve, select and report"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Splits:
    """Names of units, such as ids of documents, by what they serve. No part is empty and no unit is in two of them.

    Raises:
        InputError: they are not so; made by :meth:`checked`.
    """

    evolve: tuple[str, ...]
    select: tuple[str, ...]
    report: tuple[str, ...]

    @classmethod
    def checked(cls, evolve: Sequence[str], select: Sequence[str], report: Sequence[str]) -> Splits:
        """Return splits that can be trusted.

        Raises:
            InputError: a part is empty, or a unit stands twice; names it.
        """
        seen: dict[str, str] = {}
        for phase, units in zip(PHASES, (evolve, select, report), strict=True):
            if not units:
                raise InputError(f"splits: {phase} is empty, expected at least one unit", DISTINCT)
            for unit in units:
                if unit in seen:
                    other = "twice in" if seen[unit] == phase else f"in {seen[unit]} and"
                    raise InputError(f"splits: {unit!r} is {other} {phase}", DISTINCT)
                seen[unit] = phase
        return cls(tuple(evolve), tuple(select), tuple(report))

    def check_contents(self, contents: Mapping[str, Sequence[str]]) -> None:
        """Refuse a text that stands in two parts under different names.

        Args:
            contents: of each unit, the ids of what it holds, such as hashes of documents.

        Raises:
            InputError: two parts hold the same; names the units.
        """
        seen: dict[str, tuple[str, str]] = {}
        for phase, units in zip(PHASES, (self.evolve, self.select, self.report), strict=True):
            for unit in units:
                for each in contents.get(unit, ()):
                    before, where = seen.setdefault(each, (unit, phase))
                    if where != phase:
                        raise InputError(f"splits: {unit!r} of {phase} and {before!r} of {where} hold the same document", DISTINCT)

    @classmethod
    def drawn(cls, units: Sequence[str], shares: tuple[float, float, float] = (0.5, 0.25, 0.25), *, seed: int = 0) -> Splits:
        """Return splits by the hash of each unit's name; the order of units does not matter.

        Raises:
            InputError: there are too few units for three parts, or one stands twice.
        """
        if len(set(units)) != len(units):
            raise InputError(f"splits: {len(units) - len(set(units))} units stand twice", DISTINCT)
        order = sorted(units, key=lambda unit: hashlib.sha256(f"{seed}\0{unit}".encode()).digest())
        first = round(len(order) * shares[0] / sum(shares))
        second = first + round(len(order) * shares[1] / sum(shares))
        return cls.checked(order[:first], order[first:second], order[second:])


class Exam:
    """Splits that give out only what may be seen now: first ``evolve``, then ``select``, at last ``report``. There is no way back."""

    def __init__(self, splits: Splits) -> None:
        self._splits = Splits.checked(splits.evolve, splits.select, splits.report)
        self._phase = 0

    @property
    def phase(self) -> Phase:
        """Return what may be seen now."""
        return PHASES[self._phase]

    def units(self, phase: Phase) -> tuple[str, ...]:
        """Return the units of the phase that it is now.

        Raises:
            InputError: it is another phase.
        """
        if phase != self.phase:
            early = PHASES.index(phase) > self._phase
            when = f"before the search is over (it is at {self.phase})" if early else f"after it was left for {self.phase}"
            raise InputError(f"splits: {phase} was asked for {when}", "evolve, then select, then report; each once")
        return {"evolve": self._splits.evolve, "select": self._splits.select, "report": self._splits.report}[phase]

    def advance(self, phase: Phase) -> None:
        """Go on to the next phase.

        Raises:
            InputError: it is not the next one.
        """
        if PHASES.index(phase) != self._phase + 1:
            raise InputError(f"splits: {phase} cannot follow {self.phase}", "evolve, then select, then report; each once")
        self._phase += 1
