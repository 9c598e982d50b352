import pytest
import torch

from lmfuse.errors import ModelError, ResourceError
from lmfuse.evolution.express import Expression
from lmfuse.evolution.judge import Question, Racing, Task, Unanswered, judge
from lmfuse.evolution.scores import UnitScore
from lmfuse.evolve.genome import Numbers, Parent
from lmfuse.evolve.program import program
from tests.evolution.toys import corners

UNITS = tuple(f"u{n}" for n in range(16))


class Fitness:
    key = "toy"

    def __init__(self, value=1.0, error=None):
        self.asked, self.value, self.error = [], value, error

    def __call__(self, model, units):
        self.asked.append(tuple(units))
        if self.error is not None:
            raise self.error
        return [UnitScore(self.value + int(unit[1:]) % 3) for unit in units]


def task(fitness, tmp_path, racing=None, genes="scalar"):
    parents = corners()
    return Task(parents, Expression(genes, parents.names, 3), fitness, tmp_path, racing=racing)


def question(genome=None, known=None, rival=None):
    return Question(program(genome or Parent(0)), UNITS, known or {}, rival)


def test_stops_by_hand():
    assert Racing(first=0.1, fewest=2).stops(100) == [10, 20, 40, 80, 100]
    assert Racing(first=0.25, fewest=20).stops(40) == [20, 40]
    assert Racing(first=0.5).stops(20) == [20]


def test_only_what_is_not_known_is_asked(tmp_path):
    fitness = Fitness()
    whole = judge(task(fitness, tmp_path), question())
    assert whole.new == UNITS
    assert fitness.asked == [UNITS]
    half = {unit: whole.scores[unit] for unit in UNITS[:8]}
    again = judge(task(fitness, tmp_path), question(known=half))
    assert (again.scores, again.new, fitness.asked[1]) == (whole.scores, UNITS[8:], UNITS[8:])
    assert judge(task(fitness, tmp_path), question(known=whole.scores), only_known=True).scores == whole.scores
    assert len(fitness.asked) == 2
    with pytest.raises(Unanswered):
        judge(task(fitness, tmp_path), question(known=half), only_known=True)


def test_a_race_is_the_same_however_much_was_known(tmp_path):
    rival = {unit: UnitScore(2.0 + int(unit[1:]) % 3) for unit in UNITS}
    fitness = Fitness()
    racing = task(fitness, tmp_path, Racing(first=0.25, fewest=2))
    found = judge(racing, question(rival=rival))
    assert found.stopped
    assert fitness.asked == [UNITS[:4]]
    known = judge(task(fitness, tmp_path), question()).scores
    replayed = judge(racing, question(known=known, rival=rival), only_known=True)
    assert (replayed.scores, replayed.stopped) == (found.scores, True)
    assert not judge(racing, question()).stopped  # without a rival there is no race
    better = judge(task(Fitness(3.0), tmp_path, Racing(first=0.25, fewest=2)), question(rival=rival))
    assert not better.stopped
    assert set(better.scores) == set(UNITS)


@pytest.mark.parametrize(
    ("fitness", "genes", "genome", "failure", "message"),
    [
        (Fitness(error=KeyError("x")), "scalar", None, "raised", "KeyError: 'x'"),
        (Fitness(error=ModelError("odd\nline")), "scalar", None, "raised", "odd"),
        (Fitness(float("inf")), "scalar", None, "not_finite", "u0 scored inf"),
        (Fitness(), "layer", Numbers((0.0,) * 12), "not_made", "1 validation error for Linear"),
    ],
)
def test_a_child_that_fails_is_a_verdict(tmp_path, fitness, genes, genome, failure, message):
    found = judge(task(fitness, tmp_path, genes=genes), question(genome))
    assert (found.failure, found.message, found.scores) == (failure, message, {})


def test_want_of_memory_and_too_few_scores(tmp_path):
    for error in (ResourceError("full"), MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(type(error)):
            judge(task(Fitness(error=error), tmp_path), question())

    class Short(Fitness):
        def __call__(self, model, units):
            return super().__call__(model, units)[:-1]

    assert judge(task(Short(), tmp_path), question()).failure == "raised"
