import pytest

from lmfuse import catalogue
from lmfuse.errors import InputError


def test_every_method_is_listed_once_with_a_summary_and_its_parameters():
    names = [entry.name for entry in catalogue.entries()]
    assert len(set(names)) == len(names)
    assert {
        "byte_law",
        "join",
        "dtw",
        "min_ce",
        "avg_ce",
        "uniform",
        "kl",
        "cross_entropy",
        "chunk_likelihood",
        "uld",
        "projected_kl",
        "linear",
        "varm",
        "sce",
    } <= set(names)
    assert all(entry.summary and len(entry.summary) < 200 for entry in catalogue.entries())
    assert "unit" in [parameter.name for parameter in catalogue.find("min_ce").parameters]


def test_published_methods_name_their_paper():
    assert "arXiv:2401.10491" in catalogue.find("min_ce").papers


def test_an_unknown_method_is_suggested():
    with pytest.raises(InputError, match="did you mean 'avg_ce'"):
        catalogue.find("avgce")
