"""A cross-encoder that compares two answers as a judge: who wins most comparisons."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float

from lmfuse.artefacts import content_key
from lmfuse.judges.classifier import Classifier, classifier_key
from lmfuse.judges.protocol import VERSION, Case, Opinion, Scorer
from lmfuse.judges.reward_model import PairInputs, spec_of, too_long, wanted
from lmfuse.judges.settings import PairRanker, label_of
from lmfuse.memory import give_back

FIELD = re.compile(r"\{(question|first|second)\}")
SAME = 1e-6  # a probability so near to one half is a tie: in float32 the two orders do not cancel out exactly
NO_RIVAL = 0.5  # the score of an answer that has nobody to be compared with: neither won nor lost


class PairRankerScorer(Scorer):
    """The judge ``pair_ranker``."""

    def __init__(self, settings: PairRanker, device: str) -> None:
        self.settings, self.device, self.label = settings, device, label_of(settings)
        self._loaded: tuple[Classifier, PairInputs, int | None] | None = None

    @cached_property
    def key(self) -> str:
        """Return a hash of the model and of the settings that change a score."""
        said = self.settings
        forms = [said.output, said.first_text, said.second_text, said.count, said.max_tokens, said.too_long]
        return content_key(["pair_ranker", VERSION, classifier_key(spec_of(said)), forms])

    def opinions(self, cases: Sequence[Case], texts: Sequence[Sequence[str]]) -> list[list[Opinion]]:
        """Return the share of comparisons that each answer wins.

        Raises:
            LmfuseError: see ``Classifier``; with ``too_long: stop`` a pair that exceeds the limit.
        """
        self._loaded = self._loaded or self._load()
        model, inputs, column = self._loaded
        asked = [(n, i, j) for n, answers in enumerate(texts) for i, j in itertools.permutations(range(len(answers)), 2)]
        written = [self.pair(cases[n], texts[n][i], texts[n][j]) for n, i, j in asked]
        given = [inputs.pair(*pair) for pair in written]
        unfit = {n for (n, _, _), (ids, _) in zip(asked, given, strict=True) if too_long(self.settings, model, len(ids), cases[n])}
        kept = [place for place, (n, _, _) in enumerate(asked) if n not in unfit]
        logits = model.logits([given[place][0] for place in kept], [given[place][1] for place in kept], self.settings.batch_tokens)
        values = wanted(logits, column)
        first_wins = np.exp(values) if column is not None else 1 / (1 + np.exp(-np.clip(values, -700, 700)))
        table = {asked[place]: (float(p), written[place]) for place, p in zip(kept, first_wins, strict=True)}
        return [self._question(n, len(answers), table, n in unfit) for n, answers in enumerate(texts)]

    def pair(self, case: Case, first: str, second: str) -> tuple[str, str]:
        """Return the two texts that compare two answers; what looks like a field in an answer is only text."""
        fields = {"question": case.question, "first": first, "second": second}
        forms = (self.settings.first_text, self.settings.second_text)
        one, two = (FIELD.sub(lambda found: fields[found[1]], form) for form in forms)
        return one, two

    def _question(self, n: int, size: int, table: dict[tuple[int, int, int], tuple[float, tuple[str, str]]], unfit: bool) -> list[Opinion]:
        if unfit:
            return [Opinion(math.nan, problem="too_long")] * size
        said = np.full((size, size), np.nan)
        for (question, i, j), (probability, _) in table.items():
            if question == n:
                said[i, j] = probability
        if not np.isfinite(said[~np.eye(size, dtype=bool)]).all():
            return [Opinion(math.nan, problem="not_finite")] * size
        scores, quarrels = (
            win_shares(said, self.settings.count),
            int(np.triu((said > 0.5) & (said.T > 0.5) | (said < 0.5) & (said.T < 0.5), 1).sum()),
        )
        found = []
        for i in range(size):
            own = [(table[n, i, j]) for j in range(size) if j != i]
            exchanges = tuple(("\n\n----\n\n".join(pair), f"first is better: {probability!r}") for probability, pair in own)
            counters = {"orders_disagree": quarrels} if i == 0 and quarrels else {}
            found.append(Opinion(float(scores[i]), exchanges, counters=counters))
        return found

    def _load(self) -> tuple[Classifier, PairInputs, int | None]:
        model = Classifier(spec_of(self.settings), self.device)
        return model, PairInputs(model), model.column(self.settings.output)

    def close(self) -> None:
        """Give the model's memory back."""
        self._loaded = None
        give_back()


def win_shares(first_wins: Float[np.ndarray, "G G"], count: str = "wins") -> Float[np.ndarray, "G"]:
    """Return for each of G answers the share of its comparisons that it wins; a tie is half a win.

    Args:
        first_wins: entry ``i, j``: the probability that ``i``, shown first, is better than ``j``, shown second.
        count: ``wins``, or ``probability``: the mean probability of winning.

    >>> win_shares(np.array([[np.nan, 0.9, 0.4], [0.2, np.nan, 0.5], [0.7, 0.5, np.nan]])).tolist()
    [0.5, 0.25, 0.75]
    """
    size = len(first_wins)
    if size == 1:
        return np.array([NO_RIVAL])
    both = (first_wins + 1 - first_wins.T) / 2
    tie = np.isclose(both, 0.5, rtol=0, atol=SAME)
    wins = both if count == "probability" else np.where(tie, 0.5, (both > 0.5).astype(np.float64))
    shares: Float[np.ndarray, "G"] = np.where(np.eye(size, dtype=bool), 0.0, wins).sum(1) / (size - 1)
    return shares
