"""Lists of records read as a stream: the same values as json, wherever the reader happens to stop."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmfuse import text_records
from lmfuse.errors import TextError
from lmfuse.text_files import BYTE_ORDER_MARK
from lmfuse.text_records import Record, json_records

Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def records(path, data: bytes, max_bytes: int = 1 << 20) -> list[Record]:
    path.write_bytes(data)
    return list(json_records(path, path.name, max_bytes))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "r.json"


# ------------------------------------------------------------------------------------------------------------------ by hand


def test_records_know_where_they_stand(path):
    assert records(path, b' [ {"a": 1} ,\n{"a": [2, {"b": "]"}]}]\n') == [
        Record({"a": 1}, "r.json, record 1", "r.json:1"),
        Record({"a": [2, {"b": "]"}]}, "r.json, record 2", "r.json:2"),
    ]
    assert records(path, BYTE_ORDER_MARK + b"[]") == []
    assert records(path, b"") == []


def test_a_file_that_begins_with_a_brace_is_one_record_a_line(path):
    assert [record.origin for record in records(path, b'\n{"a": 1}\n\n{"a": 2}\n')] == ["r.json:2", "r.json:4"]


def test_packed_lists(tmp_path):
    path = tmp_path / "r.json.gz"
    assert [record.values for record in records(path, gzip.compress(b'[{"a": "\xc3\xa9"}]'))] == [{"a": "é"}]


# ------------------------------------------------------------------------------------------------------------------ oracles


@given(
    st.lists(st.dictionaries(st.text(max_size=4), Json, max_size=4), max_size=5),
    st.integers(1, 30),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_any_list_is_read_as_json_reads_it(tmp_path_factory, values, chunk, ascii_only, indent):
    path = tmp_path_factory.getbasetemp() / "any.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_records, "CHUNK_BYTES", chunk)
        found = records(path, json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass"))
    assert [record.values for record in found] == values


@given(st.data(), st.integers(1, 30))
def test_a_file_that_is_cut_off_is_refused_wherever_it_is_cut(tmp_path_factory, data, chunk):
    path = tmp_path_factory.getbasetemp() / "cut.json"
    whole = '[{"é": "\\u00e9 \\"x\\"", "b": [1.5e3, true, null]}, {"c": {}}]'.encode()
    stop = data.draw(st.integers(2, len(whole) - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_records, "CHUNK_BYTES", chunk)
        with pytest.raises(TextError, match=r"^cut\.json, record [123]: "):
            records(path, whole[:stop])


def test_a_long_list_is_never_held_whole(path):
    record = json.dumps({"messages": [{"role": "user", "content": "x" * 10_000}]})
    path.write_text("[" + ",\n".join([record] * 3000) + "]")  # 30 MB
    tracemalloc.start()
    assert sum(1 for _ in json_records(path, "r.json", 1 << 20)) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6


# -------------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"a": 1} {"b": 2}]', r"record 2: not JSON: got '\{', expected ','"),
        (b'[{"a": 1},]', r"record 2: not JSON: a comma behind the last record"),
        (b'[{"a" 1, "bbbbbbbbbbbbbbbbbbbbbbbbbbbb": 1}]', r"record 1: not JSON: Expecting ':' delimiter"),
        (b"[1, 2]", r"record 1: got a int, expected an object"),
        (b'[{"a": 1}', r"record 2: not JSON: the file ends in the middle"),
        (b'[{"a": "x', r"record 1: not JSON: the file ends in the middle"),
        (b'[{"a": 1}] {"b": 1}', r"record 2: not JSON: '\{' behind the end of the list"),
        (b'[{"a": "\xff"}]', r"record 1: byte 0xff near offset 8 is not UTF-8"),
        (b'[{"a": "\xc3', r"record 1: byte 0xc3 near offset"),
        (b'[{"a": ' + b"[" * 100_000, r"record 1: JSON that no one should write: maximum recursion"),
        (b'[{"a": ' + b"1" * 5000 + b"}]", r"record 1: JSON that no one should write: Exceeds the limit"),
        (b'[{"a": "' + b"x" * (3 << 20) + b'"}]', r"record 1: more than 1,048,576 bytes"),
        (b"{\n}", r"line 1: not JSON"),
        (b'"text"', r"line 1: got a str, expected an object"),
    ],
)
def test_malformed_lists_are_refused_by_record(path, data, message):
    with pytest.raises(TextError, match=rf"^r\.json, {message}") as caught:
        records(path, data)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
