import pytest

from lmfuse.errors import InputError
from lmfuse.evolution.fitness import UserFunction
from lmfuse.evolution.scores import UnitScore

SOURCE = """
calls = []
number = 3

def good(model, units):
    calls.append((model, units))
    return [len(unit) for unit in units]

def by_name(model, units):
    from lmfuse.evolution.scores import UnitScore
    return {unit: UnitScore(1.0, 2, "x") for unit in units}

def short(model, units):
    return [0.0]

def partial(model, units):
    return {}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_fitness_of_test.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "my_fitness_of_test.py"
    import sys

    sys.modules.pop("my_fitness_of_test", None)


def test_a_function_beside_the_current_folder(module):
    function = UserFunction.checked("my_fitness_of_test:good")
    assert function({}, ["a", "bb"]) == [UnitScore(1.0), UnitScore(2.0)]
    assert function.function.__globals__["calls"] == [({}, ("a", "bb"))]
    assert UserFunction("my_fitness_of_test:by_name")({}, ["a"]) == [UnitScore(1.0, 2, "x")]


def test_the_key_follows_the_file(module):
    before = UserFunction("my_fitness_of_test:good").key
    assert before != UserFunction("my_fitness_of_test:short").key
    module.write_text(SOURCE + "\n# changed\n")
    assert UserFunction("my_fitness_of_test:good").key != before


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("my_fitness_of_test", "fitness: 'my_fitness_of_test' names no function"),
        ("my_fitness_of_test:", "names no function"),
        ("no_such_module_here:f", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("my_fitness_of_test:gone", "cannot be imported: AttributeError"),
        ("my_fitness_of_test:number", "is int, expected a function"),
    ],
)
def test_wrong_references(module, reference, message):
    with pytest.raises(InputError, match=message) as caught:
        UserFunction.checked(reference)
    assert "\n" not in str(caught.value)


def test_wrong_answers(module):
    with pytest.raises(ValueError, match="gave 1 scores for 2 units"):
        UserFunction("my_fitness_of_test:short")({}, ["a", "b"])
    with pytest.raises(ValueError, match="gave no score for a"):
        UserFunction("my_fitness_of_test:partial")({}, ["a"])
