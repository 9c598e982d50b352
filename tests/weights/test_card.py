"""Licences of several models, and the card of their merge."""

import pytest
import yaml

from lmfuse.weights.card import licence_report, merge_card
from lmfuse.weights.plan import MergePlan, OpenedModel
from tests.weights.plans import family, opened


@pytest.mark.parametrize(
    ("licences", "shared", "words"),
    [
        ({"a": "Apache License", "b": "apache-2.0"}, "apache-2.0", []),
        ({"a": "mit", "b": "apache-2.0"}, "", ["The licences differ: apache-2.0 (b); mit (a)."]),
        ({"a": "mit", "b": ""}, "", ["No licence is named by b", "The licences differ: unknown (b); mit (a)."]),
        ({"a": "", "b": ""}, "", ["No licence is named by a, b"]),
        ({"a": "cc-by-nc-4.0", "b": "cc-by-nc-4.0"}, "cc-by-nc-4.0", ["cc-by-nc-4.0 (a, b) forbids commercial use"]),
        ({"a": "qwen-research", "b": "mit"}, "", ["qwen-research (a) forbids commercial use", "The licences differ"]),
        ({"a": "cc-by-nc-nd-4.0", "b": "mit"}, "", ["cc-by-nc-nd-4.0 (a) forbids derived works", "The licences differ"]),
        ({"a": "llama3.1", "b": "llama3.1"}, "llama3.1", ["llama3.1 (a, b) has terms of its own"]),
        ({"a": "other", "b": "gemma"}, "", ["other (a) has terms of its own", "gemma (b) has terms of its own", "The licences differ"]),
        ({"a": "gpl-3.0", "b": "mit"}, "", ["gpl-3.0 (a) wants derived works under itself", "The licences differ"]),
        (
            {"a": "gpl-3.0", "b": "cc-by-nc-4.0"},
            "",
            [
                "gpl-3.0 (a) wants",
                "cc-by-nc-4.0 (b) forbids",
                "They conflict: gpl-3.0 cannot be kept together with cc-by-nc-4.0.",
                "The licences differ",
            ],
        ),
        (
            {"a": "agpl-3.0", "b": "cc-by-sa-4.0"},
            "",
            [
                "agpl-3.0 (a) wants",
                "cc-by-sa-4.0 (b) wants",
                "They conflict: agpl-3.0 and cc-by-sa-4.0 cannot be kept together",
                "The licences differ",
            ],
        ),
    ],
)
def test_what_licences_mean_together(licences, shared, words):
    name, told = licence_report(licences)
    assert name == shared
    assert len(told) == len(words)
    for line, beginning in zip(told, words, strict=True):
        assert line.startswith(beginning)


def card_of(models: tuple[OpenedModel, ...], **more) -> str:
    plan = MergePlan(models, (), {}, recipe_text="method:\n  name: linear\n", base=0)
    return merge_card(plan, "out", **({"warnings": [], "counters": {}, "distances": {}} | more))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return opened(family(tmp_path_factory.mktemp("models")))


def test_front_matter_names_hub_models_and_a_licence_that_all_share(models):
    hub = [OpenedModel(each.label, each.folder, "0" * 40, "mit", each.key, f"owner/{each.label}") for each in models]
    card = card_of(tuple(hub))
    matter = yaml.safe_load(card.split("---")[1])
    assert matter == {
        "library_name": "transformers", "tags": ["lmfuse", "merge"], "license": "mit",
        "base_model": ["owner/base", "owner/tune-1", "owner/tune-2"], "base_model_relation": "merge",
    }  # fmt: skip
    assert "owner/tune-1 @ 000000000000" in card
    assert "base_model" not in card_of(models)


def test_the_card_tells_everything(models):
    card = card_of(models, warnings=["a\nwarning"], counters={"slerp_parallel": 3}, distances={1: 0.0123456, 2: 1.4})
    assert "- a warning" in card
    assert "- 3 units of tensors pointed the same way: averaged along the straight line, which is the same there (slerp_parallel)" in card
    rows = [line.split("|") for line in card.splitlines() if line.startswith(("| base ", "| tune"))]
    assert [row[5].strip() for row in rows] == ["the base", "0.0123", "1.4"]
    assert [row[4].strip(" `") for row in rows] == [model.key for model in models]
    assert "```yaml\nmethod:\n  name: linear\n```" in card


def test_names_and_recipes_cannot_break_the_page(models):
    evil = OpenedModel("a|b\nc", models[0].folder, "", "x\n---\ny", "k", "s|t")
    plan = MergePlan((evil,), (), {}, recipe_text="x: '```'\n# end")
    card = merge_card(plan, "out", warnings=[], counters={}, distances={})
    assert card.count("```") == 2
    assert "| a\\|b c | s\\|t | x --- y | `k` |  |" in card
    assert yaml.safe_load(card.split("---")[1]) == {"library_name": "transformers", "tags": ["lmfuse", "merge"]}
