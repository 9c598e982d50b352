"""docs/judges.md says what is really asked, and its example runs."""

import re
from pathlib import Path

import pydantic

from lmfuse.judges.endpoint import SYSTEM, USER
from lmfuse.judges.panel import Panel
from lmfuse.judges.settings import JudgeMethod
from lmfuse.yaml_strict import load_yaml

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")


def test_the_endpoints_question_is_shown_word_for_word():
    shown = re.findall(r"```text\n(.*?)\n```", PAGE, re.DOTALL)
    assert shown == [SYSTEM, USER.format(mark="==0123456789abcdef01234567==", question="{question}", answer="{answer}")]


def test_the_recipe_is_a_panel_and_the_table_names_every_judge():
    told = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert told
    panel = pydantic.TypeAdapter(Panel).validate_python(load_yaml(told[1], "judges.md"))
    assert (len(panel.judges), panel.vote.name) == (3, "first_places")
    names = pydantic.TypeAdapter(JudgeMethod).json_schema()["discriminator"]["mapping"]
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(names)


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    told = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert told
    monkeypatch.chdir(tmp_path)
    exec(compile(told[1], "judges.md", "exec"), {})
    assert capsys.readouterr().out.startswith("[1] {'abstentions': 0")
