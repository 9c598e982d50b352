"""Conversations from ShareGPT's, OpenAI's and anybody's records: cleaned as published, refused by record where they are none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lmfuse.conversations import COUNTERS, ROLES, UnfitError, clean, read_turns, turns_field
from lmfuse.errors import TextError
from lmfuse.text import TextSpec, read_documents, reads_conversations
from lmfuse.types import Document, Segment
from tests.fakes import shared

Said = list[tuple[str, str, bool]]


def share_gpt(*turns: tuple[str, object]) -> dict[str, object]:
    return {"id": "x", "conversations": [{"from": role, "value": text} for role, text in turns]}


def open_ai(*turns: tuple[str, object], **more: object) -> dict[str, object]:
    return {"messages": [{"role": role, "content": text, **more} for role, text in turns]}


def said(document: Document) -> Said:
    return [(segment.role, segment.text, segment.trained) for segment in document.segments]


def read(base: Path, *records: object, name: str = "talks.json", counters: dict[str, int] | None = None, **spec: object) -> list[Document]:
    """Write records as a list (.json) or as lines, and read them as documents."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (base / name).write_text("[\n" + ",\n".join(lines) + "\n]\n" if name.endswith(".json") else "\n".join(lines))
    unfit = spec.pop("unfit", "stop")
    return list(read_documents(TextSpec(domain="chat", path=name, **spec), base, counters=counters, unfit=unfit))


TALK = share_gpt(("human", " Hi "), ("gpt", " Hello.\n"), ("human", "Why?"), ("gpt", "So."))
WANTED = [("user", " Hi ", False), ("assistant", "Hello.", True), ("user", "Why?", False), ("assistant", "So.", True)]


# ------------------------------------------------------------------------------------------------------------------ by hand


@pytest.mark.parametrize("name", ["talks.json", "talks.jsonl", "talks.ndjson"])
def test_share_gpt_and_open_ai_records_by_hand(tmp_path, name):
    system = open_ai(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."))
    first, second = read(tmp_path, TALK, system, name=name)
    assert said(first) == WANTED
    assert said(second) == [("system", "Be brief.", False), ("user", "Hi", False), ("assistant", "Hello.", True)]
    assert first.trained_bytes == b"Hello.\xffSo.\xff"
    assert first.num_bytes == len(b" Hi " + b"Why?" + first.trained_bytes)
    assert (first.origin, second.origin) == (f"{name}:1", f"{name}:2")
    assert first.domain == "chat"


def test_two_fields_become_a_question_and_an_answer(tmp_path):
    spec = {"user": "Q: {question}", "assistant": "{answer} ({unit})", "system": "Do {{sums}}.{system}"}
    (document,) = read(tmp_path, {"question": "1+1?", "answer": " 2", "unit": "one", "system": ""}, name="q.jsonl", **spec)
    assert said(document) == [("system", "Do {sums}.", False), ("user", "Q: 1+1?", False), ("assistant", "2 (one)", True)]


def test_cleaning_as_published_is_counted(tmp_path):
    counters: dict[str, int] = {}
    (document,) = read(
        tmp_path, share_gpt(("system", "s"), ("gpt", "Welcome!"), ("human", "Hi"), ("gpt", "Hello. "), ("human", "Bye"), ("human", "!")),
        counters=counters,
    )  # fmt: skip
    assert said(document) == [("system", "s", False), ("user", "Hi", False), ("assistant", "Hello.", True)]
    assert counters == {
        "read": 1, "blank": 0, "short": 0, "leading_turns_dropped": 1, "trailing_turns_dropped": 2, "answers_stripped": 1, "unfit": 0,
    }  # fmt: skip


def test_an_answer_of_weight_zero_is_context(tmp_path):
    record = {
        "messages": [
            {"role": r, "content": r, "weight": w} for r, w in [("user", None), ("assistant", 0), ("user", None), ("assistant", 1)]
        ]
    }
    (document,) = read(tmp_path, record)
    assert [segment.trained for segment in document.segments] == [False, False, False, True]
    assert document.trained_bytes == b"assistant\xff"


def test_conversations_without_an_answer_are_blank(tmp_path):
    counters: dict[str, int] = {}
    empty = [share_gpt(), share_gpt(("human", "Hi")), share_gpt(("gpt", "Hi")), share_gpt(("human", "Hi"), ("gpt", " \n"))]
    assert len(read(tmp_path, *empty, TALK, counters=counters)) == 1
    assert (counters["read"], counters["blank"]) == (5, 4)
    with pytest.raises(TextError, match="no document is left"):
        read(tmp_path, *empty)


def test_limits_count_trained_bytes(tmp_path):
    talks = [share_gpt(("human", "a long question" * 9), ("gpt", "x" * n)) for n in (3, 4, 5)]
    assert [len(d.trained_bytes) for d in read(tmp_path, *talks, min_bytes=5)] == [5, 6]
    assert [len(d.trained_bytes) for d in read(tmp_path, *talks, limit_bytes=9)] == [4, 5]


def test_both_kinds_of_turns_under_both_names(tmp_path):
    record = {"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert said(read(tmp_path, record)[0]) == [("user", "a", False), ("assistant", "b", True)]


def test_a_field_that_is_null_gives_way_to_the_other_name(tmp_path):
    turns = [{"from": None, "role": "user", "value": "a", "content": None}, {"from": "gpt", "role": None, "value": None, "content": "b"}]
    assert said(read(tmp_path, {"conversations": turns})[0]) == [("user", "a", False), ("assistant", "b", True)]


def test_weights_of_one_and_null_are_training_text(tmp_path):
    for weight in (None, 1, 1.0):
        assert read(tmp_path, open_ai(("user", "a"), ("assistant", "b"), weight=weight))[0].segments[1].trained


def test_parquet_holds_turns_as_structs(tmp_path):
    turns = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    pq.write_table(pa.table({"messages": turns, "other": [1]}), tmp_path / "t.parquet")
    spec = TextSpec(domain="d", path="t.parquet")
    assert reads_conversations(spec, tmp_path)
    (document,) = read_documents(spec, tmp_path)
    assert (said(document), document.origin) == ([("user", "a", False), ("assistant", "b", True)], "t.parquet:1")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "t.parquet")
    with pytest.raises(TextError, match=r"t\.parquet: no column conversations and none messages"):
        list(read_documents(TextSpec(domain="d", path="t.parquet", format="conversations"), tmp_path))


def test_a_dataset_of_the_hub_has_to_be_called_conversations(monkeypatch, tmp_path):
    import datasets

    rows = [
        {"conversations": {"from": ["human", "gpt"], "value": ["a", "b"]}},
        {"conversations": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]},
    ]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter(rows))
    spec = TextSpec(domain="d", dataset="some/talks", format="conversations")
    assert reads_conversations(spec, tmp_path)
    assert [said(d)[1] for d in read_documents(spec, tmp_path)] == [("assistant", "b", True), ("assistant", "d", True)]
    assert not reads_conversations(TextSpec(domain="d", dataset="some/talks"), tmp_path)
    with pytest.raises(TextError, match="row 1: field unknown 'text'"):
        list(read_documents(TextSpec(domain="d", dataset="some/talks"), tmp_path))


# --------------------------------------------------------------------------------------------------------- what is recognised


@pytest.mark.parametrize(
    ("record", "spec", "expected"),
    [
        (TALK, {}, True),
        (open_ai(("user", "a"), ("assistant", "b")), {}, True),
        ({"text": "x", "messages": []}, {}, False),  # has always been text
        ({"text": "x"}, {}, False),
        ({"messages": "x", "y": "z"}, {"text": "{messages}"}, False),
        ({"q": "a", "a": "b"}, {"user": "{q}", "assistant": "{a}"}, True),
    ],
)
@pytest.mark.parametrize("name", ["r.json", "r.jsonl", "r.jsonl.gz"])
def test_a_record_tells_what_it_is(tmp_path, record, spec, expected, name):
    data = json.dumps([record] if name == "r.json" else record).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    wanted = TextSpec(domain="d", path=name, **spec)
    assert reads_conversations(wanted, tmp_path) is expected
    assert [document.is_conversation for document in read_documents(wanted, tmp_path)] == [expected]


def test_plain_texts_hold_no_conversations(tmp_path):
    (tmp_path / "a.txt").write_text(json.dumps([TALK]))
    assert not reads_conversations(TextSpec(domain="d", path="a.txt"), tmp_path)
    (tmp_path / "a.json").write_text("[]")
    assert not reads_conversations(TextSpec(domain="d", path="a.json"), tmp_path)


def test_plain_documents_keep_their_bytes_and_ids():
    assert Document.plain("café").trained_bytes == "café".encode()
    assert Document.plain("a").id == "ecfc6d5bb245dbb3e1c1e5ee8628fbed"  # as before there were conversations: caches stay valid
    assert Document.plain("a").id != Document((Segment("a", "assistant"),)).id


# ------------------------------------------------------------------------------------------------------------------ oracles


def test_the_published_file_is_read_as_its_publishers_read_it():
    path = shared("assets", "data", "fastchat", "dummy_conversation.json")
    documents = list(read_documents(TextSpec(domain="chat", path=path.name), path.parent))
    records = json.loads(path.read_text())
    assert len(documents) == len(records) == 500
    for document, record in zip(documents, records, strict=True):
        source = record["conversations"]
        if source[0]["from"] != "human":
            source = source[1:]
        assert [(turn["from"] == "gpt", turn["value"].strip()) for turn in source] == [
            (s.trained, s.text.strip()) for s in document.segments
        ]


Turn = st.tuples(st.sampled_from(["system", "user", "assistant"]), st.sampled_from(["", " ", "a", " b\n"]), st.booleans())


@given(st.lists(Turn, max_size=6))
def test_what_is_cleaned_always_alternates_and_ends_with_an_answer(turns):
    turns = [(role, text, trained and role == "assistant") for role, text, trained in turns]
    counts = dict.fromkeys(COUNTERS, 0)
    try:
        found = clean(turns, "here", counts)
    except UnfitError:
        return
    roles = [segment.role for segment in found]
    body = roles[1:] if roles[:1] == ["system"] else roles
    assert body == ["user", "assistant"] * (len(body) // 2)
    assert not found or (found[-1].trained and all(s.text for s in found if s.trained))
    kept = [text.strip() for role, text, _ in turns if role == "assistant"]
    assert all(segment.text in kept for segment in found if segment.role == "assistant")
    assert len(found) + counts["leading_turns_dropped"] + counts["trailing_turns_dropped"] in (
        len(turns),
        *([] if found else range(len(turns) + 1)),
    )


# -------------------------------------------------------------------------------------------------------------- wrong input


UNFIT = [
    (share_gpt(("human", "a"), ("narrator", "b")), r"turn 2: role unknown 'narrator'"),
    (share_gpt(("human", "a"), ("gp", "b")), r"did you mean 'gpt'"),
    (share_gpt(("human", "a"), ("human", "b"), ("gpt", "c")), r"two turns of the user behind each other"),
    (share_gpt(("gpt", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")), r"the assistant speaks first"),
    (share_gpt(("human", "a"), ("gpt", "b"), ("system", "c"), ("human", "d"), ("gpt", "e")), r"a system message behind another turn"),
    (share_gpt(("human", "a"), ("gpt", " "), ("human", "d"), ("gpt", "e")), r"answer in turn 2 is empty"),
    (open_ai(("user", "a"), ("tool", "b")), r"turn 2 is of a tool \('tool'\)"),
    (open_ai(("user", "a"), ("assistant", None), tool_calls=[{"id": 1}]), r"turn 1 is of a tool \('tool_calls'\)"),
    (
        open_ai(("user", [{"type": "text", "text": "a"}, {"type": "image_url"}]), ("assistant", "b")),
        r"turn 1: its content is a list of image_url, text",
    ),
    (open_ai(("user", "a"), ("assistant", 7)), r"turn 2: its content is int, expected a string"),
    (open_ai(("user", None), ("assistant", "b")), r"turn 1: its content is NoneType"),
    (share_gpt(("system", "a"), ("system", "b"), ("human", "c"), ("gpt", "d")), r"a system message behind another turn, expected one"),
    (open_ai(("user", "a"), ("assistant", "b"), weight=2), r"turn 1: its weight is '2', expected 0 or 1"),
    (open_ai(("user", "a"), ("assistant", "b"), weight="0"), r"turn 1: its weight is '0', expected 0 or 1"),
    (open_ai(("user", "a"), ("assistant", "b"), weight=True), r"turn 1: its weight is 'True'"),
    (open_ai(("user", "a"), ("assistant", "b"), weight=[0]), r"turn 1: its weight is '\[0\]'"),
    ({"conversations": {"from": ["human"], "value": []}}, r": conversations is an object \(from: 1, value: 0\), expected a list of turns"),
    ({"conversations": {"from": 5, "value": 6}}, r": conversations is an object \(from: int, value: int\)"),
    ({"messages": {"role": "user", "content": "x"}}, r": messages is an object \(role: str, content: str\)"),
]


@pytest.mark.parametrize(("record", "message"), UNFIT)
@pytest.mark.parametrize("name", ["talks.json", "talks.jsonl"])
def test_what_is_no_conversation_is_refused_by_record(tmp_path, record, message, name):
    with pytest.raises(TextError, match=message) as caught:
        read(tmp_path, TALK, record, name=name)
    where = "record 2" if name == "talks.json" else "line 2"
    assert str(caught.value).startswith(f"{name}, {where}: ")
    assert "leave_out" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_or_left_out_and_counted(tmp_path):
    counters: dict[str, int] = {}
    found = read(tmp_path, *(record for record, _ in UNFIT), TALK, counters=counters, unfit="leave_out")
    assert [said(document) for document in found] == [WANTED]
    assert (counters["read"], counters["unfit"]) == (len(UNFIT) + 1, len(UNFIT))
    with pytest.raises(TextError, match=rf"no document is left \({len(UNFIT)} read.*, {len(UNFIT)} unfit\)"):
        read(tmp_path, *(record for record, _ in UNFIT), unfit="leave_out")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"conversations": ["Hi", "Hello"]}, r"record 1: turn 1 is str, expected an object"),
        ({"conversations": [{"value": "a"}]}, r"record 1: turn 1: who speaks is missing \('from'\)"),
        ({"messages": [{"role": 3, "content": "a"}]}, r"record 1: turn 1: who speaks is missing \('role'\)"),
        ({"other": []}, r"record 1: no conversations and no messages in it"),
    ],
)
def test_broken_records_stop_everything(tmp_path, record, message):
    with pytest.raises(TextError, match=message):
        read(tmp_path, record, format="conversations", unfit="leave_out")


def test_half_a_character_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"messages": [{"role": "user", "content": "\\ud800"}]}')
    with pytest.raises(TextError, match=r"line 1: turn 1: holds \\ud800"):
        list(read_documents(TextSpec(domain="d", path="t.jsonl"), tmp_path))


def test_a_conversation_too_long_for_memory_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"q": "x" * 40, "a": "y"}))
    spec = TextSpec(domain="d", path="t.jsonl", user="{q}{q}", assistant="{a}")
    with pytest.raises(TextError, match=r"t\.jsonl:1: a document of 82 bytes, at most 81"):
        list(read_documents(spec, tmp_path, max_document_bytes=81))
    assert len(list(read_documents(spec, tmp_path, max_document_bytes=82))) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"user": "{q}"}, "give both"),
        ({"assistant": "{q}"}, "give both"),
        ({"system": "{q}"}, "give both"),
        ({"user": "{q}", "assistant": "x"}, "names no field"),
        ({"user": "{q}", "assistant": "{a}", "text": "{b}"}, "a text or a conversation"),
        ({"format": "conversations", "text": "{b}"}, "a text or a conversation"),
        ({"format": "conversations", "user": "{q}", "assistant": "{a}"}, "has no fields"),
        ({"format": "txt", "user": "{q}", "assistant": "{a}"}, "has no fields"),
    ],
)
def test_impossible_specifications_are_refused(spec, message):
    with pytest.raises(ValidationError, match=message):
        TextSpec(domain="d", path="x", **spec)


def test_a_separator_or_plain_text_is_no_conversation(tmp_path):
    with pytest.raises(TextError, match="records are documents already"):
        read(tmp_path, TALK, separator="\n\n")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(TextError, match=r"plain text has no fields for '\{q\}'"):
        list(read_documents(TextSpec(domain="d", path="a.txt", user="{q}", assistant="{a}"), tmp_path))


def test_roles_are_known_by_any_case():
    assert read_turns(share_gpt(("Human", "a"), ("GPT", "b")), "here") == [("user", "a", False), ("assistant", "b", True)]
    assert set(ROLES.values()) == {"system", "user", "assistant"}
    assert turns_field({"messages": "text"}) is None
