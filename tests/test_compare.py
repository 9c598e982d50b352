import json
from pathlib import Path

import pytest

from lmfuse.compare import compare
from lmfuse.errors import InputError
from tests import fakes, runs
from tests.test_answers import chat_folder

TALKS = [
    {
        "messages": [
            {"role": "user", "content": f"How many apples has Anna, {n}?"},
            {"role": "assistant", "content": f"Anna has {n} apples."},
        ]
    }
    for n in range(6)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    chat_folder(folder / "a")
    fakes.save_model(folder / "b", fakes.metaspace_bpe(), seed=5)
    (folder / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in TALKS))
    return folder


def test_conversations_are_measured_on_what_the_assistant_says(folder):
    found = compare([str(folder / "a")], [folder / "talks.jsonl"], "{text}", None, 200)
    scores = found.scores[str(folder / "a")]
    assert sorted(score.num_bytes for score in scores) == [len(b"Anna has 0 apples.\xff")] * 6


def test_a_model_without_a_template_needs_one_for_all(folder):
    models = [str(folder / name) for name in "ab"]
    with pytest.raises(InputError, match="no chat template"):
        compare(models, [folder / "talks.jsonl"], "{text}", None, 200)
    found = compare(models, [folder / "talks.jsonl"], "{text}", 4, 200, "openchat")
    sizes = [sum(score.num_bytes for score in found.scores[model]) for model in models]
    assert sizes[0] == sizes[1], "both are measured on the same bytes"
    assert list(found.against_first) == models[1:]


def test_the_command_takes_the_template(folder):
    code, said = runs.lmfuse("evaluate", folder / "a", folder / "b", "--text", folder / "talks.jsonl", "--chat-template", "openchat")
    assert code == 0, said
    code, said = runs.lmfuse("evaluate", folder / "a", "--text", folder / "talks.jsonl", "--chat-template", folder / "no.jinja")
    assert (code, "no file" in said) == (2, True)
