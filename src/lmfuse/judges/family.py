"""From a judge's settings to the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmfuse.judges.protocol import Judge, Scorer
from lmfuse.judges.settings import Endpoint, JudgeMethod, Likelihood, PairRanker, RewardModel, UnitTests, Verifier, label_of
from lmfuse.model_files import ModelSpec


@dataclass(frozen=True)
class Surroundings:
    """What judges need beside their settings.

    Attributes:
        sources: the models that answered, by label, in the order of the candidates; with the chat templates that they answered with.
        device: where models run.
        cache: folder of what endpoints have replied.
    """

    sources: Mapping[str, ModelSpec]
    device: str
    cache: Path


def make_judge(settings: JudgeMethod, given: Surroundings) -> Judge:
    """Return the judge of some settings; nothing is loaded yet.

    Raises:
        InputError: the settings do not fit the sources.
    """
    if isinstance(settings, Likelihood):
        from lmfuse.judges.likelihood import LikelihoodJudge

        return LikelihoodJudge(settings, given.sources, given.device)
    return Judge(label_of(settings), [_MAKERS[type(settings)](settings, given)])


def _reward_model(settings: RewardModel, given: Surroundings) -> Scorer:
    from lmfuse.judges.reward_model import RewardModelScorer

    return RewardModelScorer(settings, given.device)


def _pair_ranker(settings: PairRanker, given: Surroundings) -> Scorer:
    from lmfuse.judges.pair_ranker import PairRankerScorer

    return PairRankerScorer(settings, given.device)


def _verifier(settings: Verifier, _: Surroundings) -> Scorer:
    from lmfuse.judges.verifier import VerifierScorer

    return VerifierScorer(settings)


def _unit_tests(settings: UnitTests, _: Surroundings) -> Scorer:
    from lmfuse.judges.unit_tests import UnitTestsScorer

    return UnitTestsScorer(settings)


def _endpoint(settings: Endpoint, given: Surroundings) -> Scorer:
    from lmfuse.judges.endpoint import EndpointScorer

    return EndpointScorer(settings, given.cache)


_MAKERS: dict[type, Callable[[Any, Surroundings], Scorer]] = {
    RewardModel: _reward_model, PairRanker: _pair_ranker, Verifier: _verifier, UnitTests: _unit_tests, Endpoint: _endpoint,
}  # fmt: skip
