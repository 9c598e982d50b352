"""What a source must keep to for a run to be worth its cost, and the errors that stop one that does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from lmfuse.errors import LimitError

Share = Annotated[float, Field(ge=0, le=1)]


class Limits(BaseModel):
    """What a source must keep to for a run to be worth its cost; ``null`` is no limit. A source beyond a limit stops the run (exit code 2).

    They are about the recipe's own ``align``; arms with another one are not judged. The first three are read off tokenizers and training
    text, by ``lmfuse plan``; the last two off the sources' rows, when they are collected and before anything is trained on them.

    Attributes:
        min_coverage: share of the target's tokens that get a row of the source.
        max_masked: share of the text's bytes that the target's or the source's tokenizer cannot represent.
        min_shared_vocabulary: share of the target's vocabulary that the source spells the same.
        max_lost_mass: mean probability, of a row's kept candidates, that finds no target token.
        max_one_hot: share of the target's tokens that get a published one-hot fallback instead of a row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_coverage: Share | None = 0.5
    max_masked: Share | None = 0.05
    min_shared_vocabulary: Share | None = None
    max_lost_mass: Share | None = None
    max_one_hot: Share | None = None

    @property
    def need_rows(self) -> bool:
        """Return whether there is a limit that only rows can tell about."""
        return self.max_lost_mass is not None or self.max_one_hot is not None


@dataclass(frozen=True)
class Fit:
    """What tokenizers and text say of a source before a weight is read.

    Attributes:
        source: its label.
        coverage: share of the target's tokens that get a row of the source.
        masked: share of the text's bytes that the target's or the source's tokenizer cannot represent.
        shared_vocabulary: share of the target's vocabulary that the source spells the same.
        documents, bytes: how much text was looked at.
    """

    source: str
    coverage: float
    masked: float
    shared_vocabulary: float
    documents: int
    bytes: int

    @property
    def sentence(self) -> str:
        """Return all of it on one line."""
        return (
            f"{self.source}: {self.coverage:.1%} of the target's tokens get a row of it, {self.masked:.1%} of the bytes are masked, "
            f"{self.shared_vocabulary:.1%} of the target's vocabulary is shared; on {self.documents:,} training windows"
        )


def refuse_misfit(found: Fit, align: object, limits: Limits) -> None:
    """Stop a source that tokenizers and text show to be beyond a limit of the recipe.

    Raises:
        LimitError: names the source, the value, the limit, and what to do.
    """
    name, on = getattr(align, "name", "align"), f"on {found.documents:,} training windows"
    if limits.min_coverage is not None and found.coverage < limits.min_coverage:
        raise LimitError(
            f"source {found.source}: by {name} only {found.coverage:.1%} of the target's tokens get a row of it {on}; "
            f"limits.min_coverage is {limits.min_coverage:.1%}",
            hint=f"see why with `lmfuse align TARGET {found.source} --text FILE`; use `align: {{name: byte_law}}`, another source, or a lower limit",
        )
    if limits.max_masked is not None and found.masked > limits.max_masked:
        raise LimitError(
            f"source {found.source}: its tokenizer or the target's cannot represent {found.masked:.1%} of the bytes {on}; "
            f"limits.max_masked is {limits.max_masked:.1%}",
            hint="use a source whose tokenizer writes back what it reads, normalise the text, or raise the limit",
        )
    if limits.min_shared_vocabulary is not None and found.shared_vocabulary < limits.min_shared_vocabulary:
        raise LimitError(
            f"source {found.source}: it spells {found.shared_vocabulary:.1%} of the target's vocabulary the same; "
            f"limits.min_shared_vocabulary is {limits.min_shared_vocabulary:.1%}",
            hint="use a source of a nearer family, or lower the limit",
        )


def refuse_lossy(source: str, lost_mass: float, one_hot: float, limits: Limits) -> None:
    """Stop a source whose rows are beyond a limit of the recipe.

    Raises:
        LimitError: names the source, the value, the limit, and what to do.
    """
    if limits.max_lost_mass is not None and lost_mass > limits.max_lost_mass:
        raise LimitError(
            f"source {source}: {lost_mass:.2%} of the probability of its candidates finds no target token; "
            f"limits.max_lost_mass is {limits.max_lost_mass:.2%}",
            hint="use `align: {name: byte_law}` or another map, another source, or a higher limit; the rows are kept",
        )
    if limits.max_one_hot is not None and one_hot > limits.max_one_hot:
        raise LimitError(
            f"source {source}: {one_hot:.1%} of the target's tokens get a published one-hot fallback instead of a row; "
            f"limits.max_one_hot is {limits.max_one_hot:.1%}",
            hint="use `align: {name: byte_law}`, another source, or a higher limit; the rows are kept",
        )
