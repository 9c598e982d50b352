"""Cool-Fusion: every model writes a segment, all models judge all segments, the best is appended, and so on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.decode.boundaries import Unit
from lmfuse.decode.judging import Judging

SEGMENT_TOKENS = {"word": 16, "sentence": 128, "paragraph": 512, "answer": 1 << 30}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Cool(Judging):
    """Append the segment that all models together find least perplexing.  Cool-Fusion, arXiv:2407.19807, section 3

    - ``segment`` and ``length``: a segment is at least so many words, sentences or paragraphs; ``answer``: everything up to the end. A
      segment also ends with a stop string, and where the text is as long as it may be.
    - ``aligned``: it ends where every model's tokenizer ends a token. Without (published as "Cool - align") its author's suffices.
    - ``max_segment_tokens``: of its author; a segment that meets it ends behind the last word that its author's tokens end, aligned or not,
      else behind its last whole character. Default: 16 for each word of ``length``, 128 for each sentence, 512 for each paragraph.
    - ``score``: the mean of the judges' perplexities, as published, of their nats per token, or per byte (no matter how fine a judge's tokens
      are), or of their votes by rank.
    - ``weights``: of the judges, in the order of the models; by default all equal.

    The end of the text is a candidate like any other. Every judge counts its tokenizer's own tokens for a candidate, also for what it wrote
    itself; the tokens that it wrote stay in its context. Of equally good candidates that of the last segment's author is taken, then that
    of the model named first.

    >>> import numpy as np; from lmfuse.decode.judging import Judged
    >>> judged = Judged(np.log([[2.0, 4.0], [9.0, 4.0]]), np.ones((2, 2), int), np.array([3, 5]))  # perplexities 2 and 9, 4 and 4
    >>> Cool()(judged, authors=[[0], [1]]).index, Cool(weights=(3, 1))(judged, authors=[[0], [1]]).index
    (1, 0)
    """

    name: Literal["cool"] = "cool"
    segment: Unit = "word"
    length: Annotated[int, Field(ge=1)] = 1
    aligned: bool = True
    max_segment_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def segment_tokens(self) -> int:
        """Return how many tokens its author may write for a segment."""
        return self.max_segment_tokens or SEGMENT_TOKENS[self.segment] * self.length
