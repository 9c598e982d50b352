import pytest
import torch

from lmfuse.evolution.bench import Bench
from lmfuse.evolution.controls import Controls, average, random_draw, task_vectors
from lmfuse.evolution.express import Expression
from lmfuse.evolution.journal import Journal
from lmfuse.evolution.judge import Task
from lmfuse.evolution.settings import SearchSettings
from lmfuse.evolve.genome import Cross, Numbers, Parent, mixed
from lmfuse.merge.linear import Linear
from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.merge.whole import merge_models
from tests.evolution.toys import SPLITS, Quadratic, corners

PARENTS = corners(4, base=True)
SCALAR = Expression("scalar", PARENTS.names, 4)


def test_oracle_average_and_task_arithmetic_are_the_merge_methods():
    models = list(PARENTS.models.values())
    for genome, method in ((average(4), Linear()), (task_vectors(4, 0.3), TaskArithmetic(weights=0.3))):
        found, merged = PARENTS.made(SCALAR, genome), merge_models(method, models, PARENTS.base)
        assert all(torch.allclose(found[name], merged[name], atol=1e-6) for name in merged)


@pytest.mark.parametrize("target", [(0.5, 0.5, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.4, 0.3, 0.2, 0.1)])
def test_oracle_a_greedy_soup_as_one_would_write_it_down(target, tmp_path):
    fitness = Quadratic(target)
    with Bench(Task(PARENTS, SCALAR, fitness, tmp_path), Journal(tmp_path / "j", "x")) as bench:
        found = Controls(SearchSettings(), SCALAR, bench, SPLITS.evolve).greedy_soup()

    def score(members):
        made = PARENTS.made(SCALAR, mixed([(1 / len(members), Parent(n)) for n in members]))
        return sum(each.value for each in fitness(made, SPLITS.evolve))

    order = sorted(range(4), key=lambda n: -score([n]))
    soup = order[:1]
    for number in order[1:]:
        if score([*soup, number]) >= score(soup):
            soup.append(number)
    assert found == mixed([(1 / len(soup), Parent(n)) for n in soup])


def test_the_best_scale_of_task_arithmetic_is_taken(tmp_path):
    with Bench(Task(PARENTS, SCALAR, Quadratic((0.5,) * 4), tmp_path), Journal(tmp_path / "j", "x")) as bench:
        settings = SearchSettings(task_arithmetic_scales=(0.1, 0.5, 0.9))
        assert Controls(settings, SCALAR, bench, SPLITS.evolve).task_arithmetic() == task_vectors(4, 0.5)


def test_random_draws_have_the_room_of_the_search():
    layer = Expression("layer", PARENTS.names, 4, low=-1.0, high=2.0)
    draws = [random_draw(layer, n, seed=1) for n in range(50)]
    assert len(set(draws)) == 50
    assert all(isinstance(draw, Numbers) and all(-1 <= value <= 2 for value in draw.values) for draw in draws)
    scalar = [random_draw(SCALAR, n, seed=1) for n in range(50)]
    assert all(isinstance(draw, Cross) and draw.inside for draw in scalar)
    assert scalar == [random_draw(SCALAR, n, seed=1) for n in range(50)] != [random_draw(SCALAR, n, seed=2) for n in range(50)]
