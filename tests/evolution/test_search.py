"""The loop, against the published algorithm written down on whole vectors."""

import numpy as np
import pytest

from lmfuse.evolution.bench import Bench
from lmfuse.evolution.express import Expression
from lmfuse.evolution.journal import Journal
from lmfuse.evolution.judge import Task
from lmfuse.evolution.scores import UnitScore
from lmfuse.evolution.search import Search, better, shuffled
from lmfuse.evolution.settings import Acceptance, SearchSettings
from lmfuse.evolution.splits import Exam
from lmfuse.evolve.draws import derived, uniform
from lmfuse.evolve.genome import Parent
from lmfuse.evolve.interpolation import Interpolation
from tests.evolution.toys import SHAPES, SPLITS, Quadratic, corners, flat

TARGET = (0.6, 0.3, 0.1)


def search(tmp_path, settings, parents=None):
    parents = parents or corners()
    expression = Expression(settings.genes, parents.names, len(parents.labels), settings.express)
    journal = Journal(tmp_path / "journal", "x")
    with Bench(Task(parents, expression, Quadratic(TARGET), tmp_path), journal) as bench:
        found = Search(settings, expression, Exam(SPLITS), bench, journal).run([Parent(n) for n in range(len(parents.labels))])
    return found, [flat(parents.made(expression, member.genome)).numpy() for member in found.champions]


def evolver(seed, generations, f=0.5, cr=0.5):
    """Evolver without a merger (arXiv:2406.12208), on vectors in float64, one child after the other."""
    population = [flat(model).numpy().astype(np.float64) for model in corners().models.values()]
    place = np.resize(TARGET, len(population[0]))
    score = lambda x: -float(((x - place) ** 2).mean())  # noqa: E731
    scores, accepted = [score(x) for x in population], []
    for turn in range(generations * 3):
        t, i = divmod(turn, 3)
        draw = np.random.default_rng(derived(seed, "turn", turn))
        others = [j for j in range(3) if j != i]
        random = draw.random() < 0.5 + 0.5 / (generations - t)
        r = int(draw.choice(others)) if random else max(others, key=lambda j: scores[j])
        mask_seed = derived(derived(seed, "turn", turn), "mask")
        masks = [uniform(mask_seed, name, 0, int(np.prod(shape))) for name, shape in SHAPES.items()]
        child = np.where(np.concatenate(masks) < cr, (1 - f) * population[i] + f * population[r], population[i])
        if score(child) > scores[i] + 1e-12:
            population[i], scores[i] = child, score(child)
            accepted.append(turn)
    return population, scores, accepted


@pytest.mark.parametrize("seed", range(3))
def test_oracle_the_published_order_is_the_published_algorithm(tmp_path, seed):
    settings = SearchSettings(method=Interpolation(), generations=8, behind=0, seed=seed)
    found, weights = search(tmp_path, settings)
    population, scores, accepted = evolver(seed, 8)
    assert [step.turn for step in found.steps if step.accepted] == accepted
    assert np.allclose(weights, population, atol=1e-6)
    assert [member.score for member in found.champions] == pytest.approx(scores, abs=1e-6)


def test_children_know_what_is_settled_and_no_more(tmp_path):
    """With ``behind`` 2 of 3 slots, the first child that can differ from the published order is the second one."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, _ = search(tmp_path / "a", SearchSettings(generations=6, behind=0, seed=1))
    other, _ = search(tmp_path / "b", SearchSettings(generations=6, seed=1))
    assert one.steps[0] == other.steps[0]
    assert [step.genome for step in one.steps] != [step.genome for step in other.steps]


def test_units_come_in_an_order_of_their_own():
    units = [f"u{n}" for n in range(9)]
    assert shuffled(units, 0) == shuffled(units[::-1], 0)
    assert sorted(shuffled(units, 0)) == units
    assert len({shuffled(units, seed) for seed in range(9)}) > 7


def test_better_by_hand():
    def scored(*values):
        return {f"u{n}": UnitScore(float(value)) for n, value in enumerate(values)}

    level, some, all_but = scored(*[0] * 8), scored(*[0] * 7, 1), scored(*[1] * 6, 0, 0)
    for test, expected in (("strict", (False, True, True)), ("sign_test", (False, False, True)), ("bootstrap", (False, False, True))):
        assert tuple(better(child, level, Acceptance(test)) for child in (level, some, all_but)) == expected
