import pytest

from lmfuse.errors import InputError
from lmfuse.evolution.splits import Exam, Splits


def test_a_split_is_drawn_by_name_and_not_by_order():
    units = [str(n) for n in range(40)]
    drawn = Splits.drawn(units, seed=1)
    assert drawn == Splits.drawn(units[::-1], seed=1) != Splits.drawn(units, seed=2)
    assert [len(part) for part in (drawn.evolve, drawn.select, drawn.report)] == [20, 10, 10]
    assert sorted((*drawn.evolve, *drawn.select, *drawn.report)) == sorted(units)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((["a"], [], ["b"]), "splits: select is empty"),
        (([], ["a"], ["b"]), "splits: evolve is empty"),
        ((["a"], ["b"], ["c", "a"]), "splits: 'a' is in evolve and report"),
        ((["a", "a"], ["b"], ["c"]), "splits: 'a' is twice in evolve"),
    ],
)
def test_empty_and_overlapping_splits_are_refused(parts, message):
    with pytest.raises(InputError, match=message):
        Splits.checked(*parts)
    with pytest.raises(InputError, match=message):
        Exam(Splits(*map(tuple, parts)))  # however it was made


def test_equal_documents_in_two_parts_are_refused():
    splits = Splits.checked(["a", "b"], ["c"], ["d"])
    splits.check_contents({"a": ("1", "2"), "b": ("2",), "c": ("3",), "d": ("4",)})  # within a part they do no harm
    splits.check_contents({})
    with pytest.raises(InputError, match="splits: 'd' of report and 'b' of evolve hold the same document"):
        splits.check_contents({"a": ("1",), "b": ("2",), "c": ("3",), "d": ("4", "2")})


def test_too_few_units_and_units_twice():
    with pytest.raises(InputError, match="is empty"):
        Splits.drawn(["a", "b"])
    with pytest.raises(InputError, match="1 units stand twice"):
        Splits.drawn(["a", "b", "c", "a"])


def test_a_split_can_only_be_seen_in_its_phase():
    exam = Exam(Splits.checked(["a"], ["b"], ["c"]))
    assert exam.units("evolve") == ("a",)
    with pytest.raises(InputError, match="report was asked for before the search is over"):
        exam.units("report")
    with pytest.raises(InputError, match="report cannot follow evolve"):
        exam.advance("report")
    exam.advance("select")
    with pytest.raises(InputError, match="evolve was asked for after it was left for select"):
        exam.units("evolve")
    assert exam.units("select") == ("b",)
    exam.advance("report")
    assert exam.units("report") == ("c",)
    for phase in ("evolve", "select"):
        with pytest.raises(InputError, match="after it was left"):
            exam.units(phase)
        with pytest.raises(InputError, match="cannot follow"):
            exam.advance(phase)
