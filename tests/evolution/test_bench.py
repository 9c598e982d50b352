import os
import time
from dataclasses import dataclass

import pytest

from lmfuse.errors import InputError, ResourceError
from lmfuse.evolution.bench import Bench
from lmfuse.evolution.express import Expression
from lmfuse.evolution.journal import Journal
from lmfuse.evolution.judge import Task
from lmfuse.evolution.scores import UnitScore
from lmfuse.evolve.genome import Parent, mixed
from tests.evolution.toys import Quadratic, calls, corners

UNITS = ("u0", "u1", "u2")
HALF = mixed([(0.5, Parent(0)), (0.5, Parent(1))])


@dataclass(frozen=True)
class Deadly:
    """A fitness that ends its process without a word, as one that takes too much memory is ended."""

    key: str = "deadly"

    def __call__(self, model, units):
        os._exit(9)


def bench(tmp_path, fitness, workers=1):
    parents = corners()
    task = Task(parents, Expression("scalar", parents.names, 3), fitness, tmp_path)
    return Bench(task, Journal(tmp_path / "journal", "x"), workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_one_child_is_scored_once_however_often_it_is_asked_for(tmp_path, workers):
    log = tmp_path / "log"
    with bench(tmp_path, Quadratic((0.5, 0.5), log=str(log), wait=0.01), workers) as judged:
        tickets = [judged.submit(HALF, UNITS) for _ in range(3)]
        verdicts = [ticket.result() for ticket in tickets]
        assert verdicts[0].scores == verdicts[1].scores == verdicts[2].scores
        assert judged.submit(HALF, UNITS[:2]).result().scores.keys() == set(UNITS[:2])
        judged.submit(HALF, ("u7",)).result()
        assert judged.fresh == 2
    assert [units for _, units in calls(log)] == [UNITS, ("u7",)]


def test_a_failure_is_written_down_unless_it_may_be_mended(tmp_path):
    fitness = Quadratic((0.5, 0.5), trouble="raise")
    with bench(tmp_path, fitness) as judged:
        assert judged.submit(HALF, UNITS, keep_failure=False).result().failure == "raised"
        assert judged.submit(HALF, UNITS).result().failure == "raised"
        assert judged.fresh == 2
    with bench(tmp_path, fitness) as judged:
        assert judged.submit(HALF, UNITS).result().message == "RuntimeError: no such luck"
        assert judged.fresh == 0
        judged.submit(HALF, ("u9",)).result()
        assert judged.fresh == 1  # of another split nothing is known


def test_what_is_asked_for_twice_is_not_written_down_either(tmp_path):
    with bench(tmp_path, Quadratic((0.5, 0.5), trouble="raise"), 2) as judged:
        tickets = [judged.submit(HALF, UNITS, keep_failure=False) for _ in range(2)]
        assert [ticket.result().failure for ticket in tickets] == ["raised", "raised"]
    assert "failed" not in (tmp_path / "journal").read_text()


def test_a_worker_that_dies_is_one_clear_line(tmp_path):
    with pytest.raises(ResourceError, match="a worker process was ended from outside"), bench(tmp_path, Deadly(), 2) as judged:
        judged.submit(HALF, UNITS).result()


def test_time_goes_on_where_it_stopped(tmp_path):
    journal = Journal(tmp_path / "journal", "x")
    journal.judged("g", {"u0": UnitScore(1.0)}, 100.0)
    journal.close()
    with bench(tmp_path, Quadratic((0.5, 0.5))) as judged:
        before = judged.elapsed
        time.sleep(0.01)
        assert 100.0 <= before < judged.elapsed < 110.0


def test_wrong_input(tmp_path):
    with pytest.raises(InputError, match="workers: 0, expected at least 1"):
        bench(tmp_path, Quadratic((0.5, 0.5)), 0)
