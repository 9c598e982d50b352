import pydantic
import pytest

from lmfuse.artefacts import content_key
from lmfuse.errors import InputError
from lmfuse.evolution.judge import Racing
from lmfuse.evolution.settings import Acceptance, Budget, SearchSettings
from lmfuse.evolve.cma_es import CmaEs
from lmfuse.evolve.de_best_1 import DeBest1
from lmfuse.evolve.de_rand_1 import DeRand1
from lmfuse.evolve.interpolation import Interpolation
from lmfuse.merge.linear import Linear
from lmfuse.merge.ties import Ties


def test_everything_that_changes_a_search_changes_its_key():
    changed = [
        {"method": DeRand1()},
        {"method": Interpolation(f=0.4)},
        {"genes": "layer"},
        {"express": Ties()},
        {"high": 2.0},
        {"size": 9},
        {"generations": 3},
        {"budget": Budget(minutes=1.0)},
        {"accept": Acceptance("bootstrap")},
        {"racing": Racing()},
        {"behind": 0},
        {"finalists": 1},
        {"threads": 2},
        {"seed": 1},
    ]
    keys = {content_key(SearchSettings(**each)) for each in ({}, *changed)}
    assert len(keys) == len(changed) + 1


@pytest.mark.parametrize(
    "fine",
    [
        {"method": DeRand1(), "express": Linear()},
        {"method": Interpolation(reference="random"), "express": Ties(), "behind": 0},
        {"method": CmaEs(), "genes": "tensor"},
        {"method": DeBest1(), "genes": "layer", "express": Ties(), "behind": 3},
    ],
)
def test_what_fits_is_let_through(fine):
    SearchSettings(**fine).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": CmaEs()}, "cma_es needs coefficients"),
        ({"method": DeBest1(), "express": Linear()}, "de_best_1 asks how good single members are"),
        ({"method": DeRand1(), "express": Linear(), "behind": 2}, "behind: 2 with a merger"),
    ],
)
def test_what_contradicts_is_refused(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        SearchSettings(**settings).check()
    assert caught.value.hint


def test_wrong_values():
    for bad in ({"genes": "bit"}, {"generations": 0}, {"size": 1}, {"behind": -1}, {"controls": ("luck",)}, {"islands": 2}):
        with pytest.raises(pydantic.ValidationError):
            SearchSettings(**bad)
    for racing in ({"first": 1.0}, {"deviations": 0}, {"fewest": 1}):
        with pytest.raises(pydantic.ValidationError):
            Racing(**racing)
    for budget in (Budget(evaluations=0), Budget(minutes=0.0), Budget(minutes=-1.0), Budget(minutes=float("nan"))):
        with pytest.raises(InputError, match="budget: "):
            budget.check(1)
