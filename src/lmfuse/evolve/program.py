"""A genome as a list of instructions: each part once, after what it is made of; for files, and for whoever computes the weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

from lmfuse.evolve.genome import Base, Cross, Genome, Jitter, Joined, Mix, Numbers, Parent, Within

Line: TypeAlias = tuple[Any, ...]
_KINDS: dict[str, type[Genome]] = {kind.__name__.lower(): kind for kind in (Parent, Base, Mix, Cross, Within, Jitter, Joined, Numbers)}


def program(genome: Genome, known: Collection[str] = ()) -> tuple[Line, ...]:
    """Return the instructions; the last one is the genome. A part is named by the number of its instruction, in a tuple ``("at", n)``.

    Args:
        genome: whose instructions.
        known: keys of genomes whose weights are at hand: they are not taken apart, but stand there as ``("held", key)``.

    >>> from lmfuse.evolve.genome import mixed
    >>> for line in program(mixed([(0.25, Parent(0)), (0.75, Parent(2))])):
    ...     print(line)
    ('parent', 0)
    ('parent', 2)
    ('mix', (('at', 0), ('at', 1)), (0.25, 0.75))
    """
    lines: list[Line] = []
    numbers: dict[str, int] = {}
    waiting: list[tuple[Genome, bool]] = [(genome, False)]
    while waiting:  # no recursion: a lineage may be longer than Python's stack
        each, ready = waiting.pop()
        if each.key in numbers:
            continue
        if each.key in known:
            numbers[each.key] = len(lines)
            lines.append(("held", each.key))
        elif ready:
            numbers[each.key] = len(lines)
            lines.append((type(each).__name__.lower(), *(_named(getattr(each, f.name), numbers) for f in fields(each))))
        else:
            waiting += [(each, True), *((part, False) for part in reversed(parts_of(each)))]
    return tuple(lines)


def parts_of(genome: Genome) -> tuple[Genome, ...]:
    """Return what a genome is directly made of.

    >>> parts_of(Cross(Parent(0), Parent(1), 0.5, 7))
    (Parent(index=0), Parent(index=1))
    """
    found: list[Genome] = []
    for field in fields(genome):
        value = getattr(genome, field.name)
        found += [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, Genome)]
    return tuple(found)


def _named(value: Any, numbers: dict[str, int]) -> Any:
    if isinstance(value, Genome):
        return ("at", numbers[value.key])
    return tuple(_named(each, numbers) for each in value) if isinstance(value, tuple) else value


def from_program(lines: Sequence[Sequence[Any]]) -> Genome:
    """Return the genome of some instructions, as ``program`` gave them or as JSON gave them back.

    Raises:
        ValueError: they are none.

    >>> from_program([["parent", 0], ["jitter", ["at", 0], 0.05, 3]])
    Jitter(inner=Parent(index=0), size=0.05, seed=3)
    """
    made: list[Genome] = []
    for number, (kind, *values) in enumerate(lines):
        try:
            made.append(_KINDS[kind](*(_found(value, made) for value in values)))
            _ = made[-1].key  # from below, so that the key of a long lineage is never a long recursion
        except (KeyError, IndexError, TypeError) as reason:
            raise ValueError(f"instruction {number} of a genome: {kind!r} {values!r:.60}: {reason}") from reason
    if not made:
        raise ValueError("a genome without instructions")
    return made[-1]


def _found(value: Any, made: Sequence[Genome]) -> Any:
    if isinstance(value, list | tuple):
        if len(value) == 2 and value[0] == "at":
            return made[value[1]]
        return tuple(_found(each, made) for each in value)
    return value
