"""Fixtures that several rooms need."""

import shutil
from pathlib import Path

import pytest

from tests.fakes import byte_bpe, save_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A small model's folder, only to look at."""
    return save_model(tmp_path_factory.mktemp("models") / "whole", byte_bpe())


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "model"))
