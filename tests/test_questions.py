import pytest

from lmfuse.bytes import ByteTokenizer
from lmfuse.questions import elected_documents, question_of, questions_key, questions_of
from lmfuse.types import Document, Segment
from tests import chat_runs, chat_templates, fakes


def talk(*turns, domain="sums", system=None):
    return Document(chat_templates.talk(*turns, system=system).segments, domain)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    fakes.save_model(folder, fakes.byte_bpe())
    (folder / "chat_template.jinja").write_text(chat_runs.TEMPLATE)
    return ByteTokenizer.load(folder, chat_template="own", model="chat")


def test_the_question_is_what_stands_before_the_last_answer_and_nothing_of_it_is_trained():
    case = question_of(talk("1 + 1?", "2", "And 1 more?", "3", system="Be brief."))
    assert [(s.text, s.role, s.trained) for s in case.prompt] == [
        ("Be brief.", "system", False), ("1 + 1?", "user", False), ("2", "assistant", False), ("And 1 more?", "user", False),
    ]  # fmt: skip
    assert case.truth == "3"


def test_text_without_a_question_has_none():
    assert question_of(Document.plain("1 + 1 = 2")) is None
    context = Document((Segment("Hi", "user", False), Segment("Hello", "assistant", False)))
    assert question_of(context) is None


def test_the_truth_is_told_in_the_domains_that_are_named():
    windows = [talk("a?", "1"), talk("b?", "2", domain="chat"), Document.plain("c", "sums")]
    assert [case.truth for case in questions_of(windows)] == ["1", "2"]
    assert [case.truth for case in questions_of(windows, ["sums"])] == ["1", ""]


def test_what_is_asked_has_an_identity_whatever_the_truth():
    windows = [talk("a?", "1"), talk("b?", "2")]
    assert questions_key(questions_of(windows)) == questions_key(questions_of(windows, ["other"]))
    assert questions_key(questions_of(windows)) != questions_key(questions_of(windows[::-1]))


def test_elected_answers_become_texts_of_the_same_samples_and_what_is_not_read_is_counted(tokenizer):
    windows = [talk("a?", "1", "b?", "2"), Document.plain("plain", "sums"), talk("c?", "3"), talk("d?", "4"), talk("e?", "5")]
    winners = {
        windows[0].id: ("a", "It is 9."),
        windows[2].id: ("b", "3"),
        windows[4].id: ("b", "very long indeed " * 40),
    }  # fmt: skip
    found = elected_documents(windows, winners, [tokenizer], [120])
    first, plain, same, none, long = found.documents
    assert [(s.text, s.trained) for s in first.segments] == [("a?", False), ("1", False), ("b?", False), ("It is 9.", True)]
    assert (first.domain, plain, none, long) == ("sums", None, None, None)
    assert same == windows[2]
    assert found.producers == {first.id: "a", same.id: "b"}
    assert (found.winners, found.won_by("a"), found.won_by("b"), found.won_by("c")) == (("a", "b"), (first,), (same,), ())
    assert found.counters == {
        "answers_equal_truth": 1, "answers_read": 2, "elected_answers_too_long": 1, "elected_answers_unfit": 0,
        "questions_without_winner": 1, "windows_without_question": 1,
    }  # fmt: skip


def test_another_author_is_another_training(tokenizer):
    windows = [talk("a?", "1")]
    keys = {elected_documents(windows, {windows[0].id: (label, "2")}, [tokenizer], [120]).key for label in ("a", "b")}
    assert len(keys) == 2
