import pytest

from lmfuse.errors import InputError
from lmfuse.evolution.journal import Journal
from lmfuse.evolution.scores import UnitScore

SCORES = {"a": UnitScore(0.1 + 0.2, 3, "x"), "b": UnitScore(-1e-300)}


def test_what_is_written_is_read_again_to_the_last_digit(tmp_path):
    journal = Journal(tmp_path / "j", "mine")
    journal.judged("g1", SCORES, 1.5)
    journal.judged("g1", {"c": UnitScore(2.0)}, 2.5)
    journal.failure("g2", "a", "raised", "no\nluck", 3.0)
    journal.ended(7, 4.0)
    journal.close()
    again = Journal(tmp_path / "j", "mine")
    assert again.known == journal.known == {"g1": {**SCORES, "c": UnitScore(2.0)}}
    assert again.failed == {("g2", "a"): ("raised", "no\nluck")}
    assert (again.over, again.elapsed) == (7, 4.0)
    again.close()


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_that_was_not_finished_is_cut_off_wherever_it_ends(tmp_path, cut):
    path = tmp_path / "j"
    journal = Journal(path, "mine")
    journal.judged("g1", SCORES, 1.0)
    journal.judged("g2", SCORES, 1.0)
    journal.close()
    data = path.read_bytes()
    path.write_bytes(data[: -cut * 5])
    again = Journal(path, "mine")
    again.judged("g3", SCORES, 1.0)
    again.close()
    known = Journal(path, "mine").known
    assert "g3" in known
    assert known["g1"] == SCORES
    assert "g2" not in known


def test_wrong_input(tmp_path):
    path = tmp_path / "j"
    Journal(path, "yours").close()
    journal = Journal(path, "mine")  # yours had not begun
    journal.judged("g", SCORES, 1.0)
    journal.close()
    with pytest.raises(InputError, match="is of another search"):
        Journal(path, "yours")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="cannot be opened for writing"):
        Journal(tmp_path / "link", "mine")
    path.write_bytes(b'{"search": "mine"}\n{]\n')
    with pytest.raises(InputError, match="is damaged"):
        Journal(path, "mine")
    path.write_bytes(b"")
    Journal(path, "mine").close()  # killed before the first line
    assert path.read_bytes().startswith(b'{"search"')
