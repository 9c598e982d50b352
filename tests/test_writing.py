"""The nouns of writing."""

import pytest
from pydantic import ValidationError

from lmfuse.types import Segment
from lmfuse.writing import Writer, WritingSettings, prompt_bytes


def test_bytes_of_prompts():
    assert prompt_bytes("東京") == 6
    assert prompt_bytes([Segment("be brief", "system"), Segment("né", "user")]) == 11
    assert prompt_bytes([]) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_bytes": 0},
        {"max_tokens": 0},
        {"stop": ("",)},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": 3},
    ],
)
def test_settings_refuse_what_makes_no_sense(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        WritingSettings(**wrong)


def test_a_writer_is_known_by_what_it_can_do():
    class Parrot:
        name, models = "parrot", ("parrot",)

        def write(self, prompt, settings, cancelled=lambda: False):
            yield from ()

    assert isinstance(Parrot(), Writer)
    assert not isinstance(object(), Writer)
