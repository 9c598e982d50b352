import pytest

from lmfuse.errors import BusyError, InputError
from lmfuse.locks import lock


def test_one_writer_and_no_file_left_behind(tmp_path):
    with lock(tmp_path / "out"):
        assert (tmp_path / "out.lock").exists()
        with pytest.raises(BusyError, match="is being written by process"), lock(tmp_path / "out"):
            pass
    assert list(tmp_path.iterdir()) == []
    with lock(tmp_path / "out"):
        pass


@pytest.mark.parametrize(
    "make", [lambda path: path.symlink_to(path.with_name("elsewhere")), lambda path: path.mkdir()], ids=["link", "folder"]
)
def test_what_is_no_file_in_the_place_of_the_lock_is_refused_and_left_alone(tmp_path, make):
    (tmp_path / "elsewhere").write_text("mine")
    make(tmp_path / "out.lock")
    with pytest.raises(InputError, match=r"out\.lock: cannot be opened for writing"), lock(tmp_path / "out"):
        pass
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert (tmp_path / "out.lock").is_symlink() or (tmp_path / "out.lock").is_dir()
