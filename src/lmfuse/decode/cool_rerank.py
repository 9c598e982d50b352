"""Cool+R: rerank the models' own answers and the one that they wrote together."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.decode.cool import Cool


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CoolRerank(Cool):
    """Take the best of K + 1 whole answers: every model's own, and the fused one.  Cool-Fusion, arXiv:2407.19807, section 3.4

    Segments and whole answers are judged in the same way, answers as by ``rerank``; the parameters are those of ``cool``. Of equally good answers the fused one
    is taken. Published as "Cool+R", the best variant on GSM8K.

    >>> CoolRerank().segment_tokens
    16
    """

    name: Literal["cool_rerank"] = "cool_rerank"  # type: ignore[assignment]
