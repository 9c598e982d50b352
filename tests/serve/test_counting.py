"""A text whose end the writer never saw has the tokens that it would have said."""

import pytest

from lmfuse.generate import FusedWriter
from lmfuse.models import ModelSpec, load_model
from lmfuse.pico import model_folder
from lmfuse.serve.counting import CountingWriter
from lmfuse.serve.desk import Counts
from lmfuse.types import Segment
from lmfuse.writing import Finish, Passage, WritingSettings

LABELS = ("prose", "math")
TALK = [Segment("Tell me of the sea", "user", trained=False)]


@pytest.fixture(scope="module")
def models():
    return [load_model(ModelSpec(str(model_folder(label)), dtype="float32", chat_template="openchat"), "cpu") for label in LABELS]


@pytest.mark.parametrize("prompt", ["Once upon a time", "né", TALK], ids=["text", "characters", "conversation"])
def test_it_counts_what_the_writer_counts(models, prompt):
    writer = CountingWriter(FusedWriter(models, LABELS, name="both"), [model.tokenizer for model in models])
    assert (writer.name, writer.models) == ("both", LABELS)
    *passages, finish = writer.write(prompt, WritingSettings(max_tokens=12))
    assert isinstance(finish, Finish)
    found = writer.usage(prompt, "".join(passage.text for passage in passages if isinstance(passage, Passage)))
    assert found.prompt_tokens == finish.usage.prompt_tokens
    assert (found.prompt_bytes, found.text_bytes) == (finish.usage.prompt_bytes, finish.usage.text_bytes)
    for label in LABELS:  # pieces of several authors may be cut in other places than the whole
        assert found.tokens[label] == pytest.approx(finish.usage.tokens[label], abs=4)


def test_nothing_is_no_token(models):
    writer = CountingWriter(FusedWriter(models, LABELS), [model.tokenizer for model in models])
    assert writer.usage("a", "").tokens == {"prose": 0, "math": 0}
    assert isinstance(writer, Counts)
    assert not isinstance(FusedWriter(models, LABELS), Counts)
