"""Rerank: every model writes its whole answer, all models judge all answers."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lmfuse.decode.judging import Judging


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Rerank(Judging):
    """Take the answer that all models together find least perplexing.  Cool-Fusion, arXiv:2407.19807, section 3.4

    The coarsest segment there is: nothing is shared while the models write. ``score`` and ``weights`` as for ``cool``. That an answer ends
    is not judged; an empty one is left out unless all are. Answers are cut to what every model can hold and to the reference model's limit
    of tokens before they are judged.

    >>> import numpy as np; from lmfuse.decode.judging import Judged
    >>> long_and_plain = Judged(np.array([[6.0, 4.0]]), np.array([[12, 4]]), np.array([30, 9]))  # 0.5 and 1 nats per token
    >>> Rerank()(long_and_plain, authors=[[0], [1]]).index
    0
    """

    name: Literal["rerank"] = "rerank"
