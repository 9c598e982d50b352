import os

import pytest

from lmfuse.errors import BusyError, InputError
from lmfuse.recipe import parse_recipe
from lmfuse.workspace import cache_folder, open_workspace
from tests import runs


def test_a_folder_belongs_to_its_recipe_once_it_is_claimed(tmp_path):
    first, second = parse_recipe(runs.recipe()), parse_recipe(runs.recipe(seeds=[7]))
    with open_workspace(first, tmp_path / "run", tmp_path / "cache"):
        pass
    with open_workspace(second, tmp_path / "run", tmp_path / "cache") as space:  # not claimed: a recipe may be mended
        space.claim(second)
        space.event("something", value=1)
    before = (tmp_path / "run" / "recipe.yaml").read_bytes()
    with pytest.raises(InputError, match="holds the run of another recipe"), open_workspace(first, tmp_path / "run", tmp_path / "cache"):
        pass
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == before
    with open_workspace(second, tmp_path / "run", tmp_path / "cache"):
        pass


def test_somebodys_folder_is_left_alone(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(InputError, match="holds no run"),
        open_workspace(parse_recipe(runs.recipe()), tmp_path / "precious", tmp_path / "cache"),
    ):
        pass
    assert os.listdir(tmp_path / "precious") == ["thesis.txt"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"), open_workspace(parse_recipe(runs.recipe()), tmp_path / "file", tmp_path / "cache"):
        pass


def test_one_run_at_a_time(tmp_path):
    recipe = parse_recipe(runs.recipe())
    with open_workspace(recipe, tmp_path / "run", tmp_path / "cache"), pytest.raises(BusyError, match=str(os.getpid())):
        with open_workspace(recipe, tmp_path / "run", tmp_path / "cache"):
            pass


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("LMFUSE_CACHE", str(tmp_path))
    assert cache_folder(None) == tmp_path
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
