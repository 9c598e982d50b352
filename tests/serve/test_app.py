"""The server as the openai client sees it."""

import openai
import pytest

from lmfuse.errors import PromptTooLongError, ResourceError
from lmfuse.types import Segment
from tests.serve.running import CHAT, serving
from tests.serve.writers import STORY, Failing, Forgetful, Picky, Story

TEXT = "".join(passage.text for passage in STORY)


@pytest.fixture(scope="module")
def story():
    return Story()


@pytest.fixture(scope="module")
def running(story):
    with serving(
        story, Picky("picky"), Forgetful("forgetful"), Failing(RuntimeError("secret path /home/x")), Failing(RuntimeError(), 2, "late"),
        Failing(ResourceError("no memory"), 0, "full"), Story("org/model-7b"), Story("endless", endless=True),
        Failing(PromptTooLongError("the prompt has 9 tokens, a reads at most 5"), 0, "short"), temperature=0.25,
    ) as found:  # fmt: skip
        yield found


@pytest.fixture
def client(running):
    with running.openai() as found:
        yield found


def test_a_chat_is_the_passages_laid_end_to_end(client, story):
    asked = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "é"}]},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "again"},
    ]
    found = client.chat.completions.create(model="story", messages=asked)
    assert found.choices[0].message.content == TEXT
    assert (found.choices[0].message.role, found.choices[0].finish_reason, found.object) == ("assistant", "stop", "chat.completion")
    assert story.prompts[-1] == [
        Segment("Be brief.", "system", trained=False), Segment("Hé", "user", trained=False),
        Segment("Hello", "assistant", trained=False), Segment("again", "user", trained=False),
    ]  # fmt: skip
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (22, 3, 25)


def test_the_answer_says_who_wrote_what(client):
    found = client.chat.completions.create(model="story", messages=CHAT, seed=5).lmfuse
    assert [passage["author"] for passage in found["passages"]] == ["a", "b", "a"]
    assert "".join(passage["text"] for passage in found["passages"]) == TEXT
    assert found["passages"][0]["scores"] == {"a": 0.5, "b": 0.75}
    assert found["passages"][1]["scores"] == {"a": 1.0, "b": None}  # infinity is no JSON
    assert found["passages"][1]["candidates"] == {"a": "", "b": " upon a"}
    assert (found["seed"], found["ended_by_time"], found["tokens"], found["text_bytes"]) == (5, False, {"a": 3, "b": 3}, len(TEXT.encode()))


def test_a_stream_has_the_same_text_and_authors(client):
    chunks = list(client.chat.completions.create(model="story", messages=CHAT, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks[1:-1]] == [passage.text for passage in STORY]
    assert [chunk.lmfuse["passages"][0]["author"] for chunk in chunks[1:-1]] == ["a", "b", "a"]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 4 + ["stop"]
    assert chunks[-1].choices[0].delta.content is None
    assert chunks[-1].lmfuse["tokens"] == {"a": 3, "b": 3}
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None and chunk.object == "chat.completion.chunk" for chunk in chunks)


def test_a_stream_says_its_usage_on_request(client):
    chunks = list(client.chat.completions.create(model="story", messages=CHAT, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (2, 3)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_bytes_of_a_stream(running):
    answer = running.post('{"model": "story", "messages": [{"role": "user", "content": "Hi"}], "stream": true}')
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    assert '"usage"' not in answer.text  # it was not asked for


def test_completions_whole_and_streamed(client, story):
    found = client.completions.create(model="story", prompt="Long ago", seed=1)
    assert (found.choices[0].text, found.object, found.choices[0].finish_reason) == (TEXT, "text_completion", "stop")
    assert story.prompts[-1] == "Long ago"
    assert story.settings[-1].max_tokens == 16  # OpenAI's own default
    chunks = list(client.completions.create(model="story", prompt=["Long ago"], stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 11)


def test_settings_reach_the_writer(client, story):
    client.chat.completions.create(model="story", messages=CHAT, temperature=0.5, top_p=0.9, seed=-7, max_tokens=9, stop=["x", "\n\n"])
    found = story.settings[-1]
    assert (found.temperature, found.top_p, found.seed, found.max_tokens, found.stop) == (0.5, 0.9, -7, 9, ("x", "\n\n"))
    client.chat.completions.create(model="story", messages=CHAT, max_tokens=9, max_completion_tokens=8, stop="one", top_p=0)
    found = story.settings[-1]
    assert (found.temperature, found.max_tokens, found.stop) == (0.25, 8, ("one",))  # the server's own temperature
    assert 0 < found.top_p < 1e-6
    client.chat.completions.create(model="story", messages=CHAT)
    again = story.settings[-1]
    assert (again.max_tokens, again.top_p) == (4096, 1.0)
    assert again.seed != found.seed  # made up anew, and told in the answer


def test_limits_and_stops_show_in_the_reason(client):
    found = client.chat.completions.create(model="story", messages=CHAT, max_completion_tokens=2)
    assert (found.choices[0].finish_reason, found.choices[0].message.content) == ("length", "Once upon a")
    found = client.chat.completions.create(model="story", messages=CHAT, stop=[" upon"])
    assert (found.choices[0].finish_reason, found.choices[0].message.content) == ("stop", "Once")


def test_models_are_listed_with_those_behind_them(client):
    found = {model.id: model for model in client.models.list()}
    assert found["story"].models == ["a", "b"]
    assert client.models.retrieve("org/model-7b").id == "org/model-7b"
    assert client.chat.completions.create(model="org/model-7b", messages=CHAT).model == "org/model-7b"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


def test_what_does_not_matter_is_ignored_and_what_changes_nothing_is_allowed(client):
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": [], "response_format": {"type": "text"}, "n": 1}
    neutral |= {"top_k": -1, "repetition_penalty": 1.0, "min_p": 0, "ignore_eos": False, "tool_choice": "auto"}
    found = client.chat.completions.create(model="story", messages=CHAT, user="me", store=True, metadata={"a": "b"}, extra_body=neutral)
    assert found.choices[0].message.content == TEXT


def test_an_unknown_model_is_404(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=CHAT)
    assert (caught.value.code, caught.value.param, caught.value.type) == ("model_not_found", "model", "invalid_request_error")
    assert "story" in caught.value.message


def test_a_prompt_that_the_writer_refuses_is_400_also_for_a_stream(client):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="picky", messages=CHAT, stream=stream)
        assert (caught.value.code, caught.value.param) == ("prompt_refused", "messages")
        assert "chat template" in caught.value.message
        assert "command line" not in caught.value.message


def test_a_prompt_that_a_model_cannot_read_whole_is_a_long_context(client, running):
    for ask, field in (
        (lambda: client.chat.completions.create(model="short", messages=CHAT), "messages"),
        (lambda: client.completions.create(model="short", prompt="Hi"), "prompt"),
    ):
        with pytest.raises(openai.BadRequestError, match="a reads at most 5") as caught:
            ask()
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", field)
    assert running.metric("lmfuse_texts_total", model="short", ending="refused_prompt") == 2


@pytest.mark.parametrize("model", ["failing", "forgetful"])
def test_a_writer_that_fails_is_500_and_says_nothing_of_itself(client, model):
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=model, messages=CHAT)
    assert (caught.value.status_code, caught.value.code) == (500, "internal_error")
    assert "secret" not in caught.value.message
    assert caught.value.response.headers["x-request-id"] in caught.value.message


def test_a_writer_that_fails_in_the_middle_ends_the_stream_with_an_error(client):
    seen = []
    with pytest.raises(openai.APIError) as caught:
        seen += (chunk.choices[0].delta.content for chunk in client.chat.completions.create(model="late", messages=CHAT, stream=True))
    assert caught.value.code == "internal_error"
    for chunk in client.chat.completions.create(model="story", messages=CHAT, stream=True):
        seen.append(chunk)
    assert seen  # the server goes on


def test_no_memory_is_503(client):
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="full", messages=CHAT)
    assert (caught.value.status_code, caught.value.code) == (503, "out_of_memory")


def test_two_models_of_one_name_are_our_own_mistake():
    from lmfuse.serve.desk import House

    with pytest.raises(ValueError, match="one name"):
        House((Story(), Story()), 1)
