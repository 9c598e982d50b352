"""Documents from every kind of file and from the hub; every fault is one line that names file and line."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lmfuse.errors import TextError
from lmfuse.text import TextSpec, read_documents, template_fields
from lmfuse.text_files import BYTE_ORDER_MARK, read_pieces
from tests.fakes import shared


def read(base: Path, **spec: object) -> list[tuple[str, str]]:
    """Return (text, origin) of what a specification reads."""
    return [(d.segments[0].text, d.origin) for d in read_documents(TextSpec(domain="d", **spec), base)]


def texts(base: Path, **spec: object) -> list[str]:
    return [text for text, _ in read(base, **spec)]


def write_lines(path: Path, records: list[object]) -> Path:
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    data = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)(data)
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------------------------------------------------------ by hand


def test_a_plain_file_is_one_document_byte_for_byte(tmp_path):
    text = "one\r\n\r\ntwo é\t🙂\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (document,) = read_documents(TextSpec(domain="prose", path="a.txt"), tmp_path)
    assert (document.segments[0].text, document.domain, document.origin) == (text, "prose", "a.txt")
    assert document.trained_bytes == text.encode()


def test_a_separator_splits_and_origins_name_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\nmore\n\n\n\nthree")
    assert read(tmp_path, path="a.txt", separator="\n\n") == [("one", "a.txt:1"), ("two\nmore", "a.txt:3"), ("three", "a.txt:8")]


def test_a_kept_separator_begins_the_next_document(tmp_path):
    (tmp_path / "a.txt").write_text("intro\n# A\nx\n# B\ny")
    assert texts(tmp_path, path="a.txt", separator="\n# ", keep_separator=True) == ["intro", "\n# A\nx", "\n# B\ny"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson"])
def test_json_lines_plain_and_packed(tmp_path, name):
    write_lines(tmp_path / name, [{"q": "1+1?", "a": "2", "x": [0]}, {"q": "{a}", "a": "é"}])
    assert read(tmp_path, path=name, text="Q: {q}\nA: {a}") == [("Q: 1+1?\nA: 2", f"{name}:1"), ("Q: {a}\nA: é", f"{name}:2")]


def test_blank_lines_do_not_count_but_line_numbers_do(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"text": "x"}\n\n{"text": "y"}')
    assert read(tmp_path, path="a.jsonl") == [("x", "a.jsonl:2"), ("y", "a.jsonl:4")]


def test_parquet_columns_of_every_string_type(tmp_path):
    columns = {"a": pa.array(["x", "y"]), "b": pa.array(["1", "2"], pa.large_string()), "c": pa.array(["z", "z"]).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert read(tmp_path, path="t.parquet", text="{a}{b}{c}") == [("x1z", "t.parquet:1"), ("y2z", "t.parquet:2")]


def test_a_folder_and_a_pattern_are_read_in_the_order_of_names(tmp_path):
    for name in ("b/z.py", "b/c/y.py", "a.py", "note.md", ".hidden/x.py"):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_text(name)
    assert texts(tmp_path, path="src/**/*.py") == ["a.py", "b/c/y.py", "b/z.py"]
    assert read(tmp_path, path="src")[-1] == ("note.md", "src/note.md")
    assert texts(tmp_path, path=str(tmp_path / "src" / "b")) == ["b/c/y.py", "b/z.py"]


def test_a_name_with_brackets_is_a_name_first(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert texts(tmp_path, path="a[1].txt") == ["x"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(BYTE_ORDER_MARK + b'{"text": "x"}\n')
    (tmp_path / "a.txt").write_bytes(BYTE_ORDER_MARK + b"y")
    assert texts(tmp_path, path="a.*") == ["x", "y"]


# ------------------------------------------------------------------------------------------------- limits, shuffles, counts


def test_skip_limit_and_limit_bytes(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"text": letter * 10} for letter in "abcdef"])
    assert "".join(text[0] for text in texts(tmp_path, path="a.jsonl", skip=1, limit=3)) == "bcd"
    assert "".join(text[0] for text in texts(tmp_path, path="a.jsonl", limit_bytes=39)) == "abc"
    assert "".join(text[0] for text in texts(tmp_path, path="a.jsonl", limit_bytes=40)) == "abcd"


def test_blank_and_short_documents_are_counted_and_do_not_use_up_the_limit(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"text": t} for t in ["", " \n", "ab", "abcd", "é", "ééé", "wxyz"]])
    counters: dict[str, int] = {}
    found = list(read_documents(TextSpec(domain="d", path="a.jsonl", min_bytes=4, limit=2), tmp_path, counters=counters))
    assert [d.segments[0].text for d in found] == ["abcd", "ééé"]
    assert counters == {"read": 6, "blank": 2, "short": 2}


def test_a_shuffle_depends_on_seed_and_content_and_not_on_the_order_of_lines(tmp_path):
    records = [{"text": f"document {i}"} for i in range(50)]
    write_lines(tmp_path / "a.jsonl", records)
    write_lines(tmp_path / "b.jsonl", random.Random(0).sample(records, 50))
    whole = texts(tmp_path, path="a.jsonl", shuffle_seed=1)
    assert sorted(whole) == sorted(record["text"] for record in records)
    assert whole != [record["text"] for record in records]
    assert whole == texts(tmp_path, path="b.jsonl", shuffle_seed=1)
    assert whole != texts(tmp_path, path="a.jsonl", shuffle_seed=2)
    assert texts(tmp_path, path="a.jsonl", shuffle_seed=1, skip=3, limit=7) == whole[3:10]
    assert texts(tmp_path, path="a.jsonl", shuffle_seed=1, skip=3, limit_bytes=60) == whole[3 : 3 + 60 // 11]


def test_a_limit_reads_no_further(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\nbroken')
    assert texts(tmp_path, path="a.jsonl", limit=1) == ["x"]


# ------------------------------------------------------------------------------------------------------------------- oracle


@given(st.text(alphabet="ab\n", max_size=60), st.sampled_from(["\n", "\n\n", "ab", "aba"]), st.integers(1, 7))
def test_pieces_equal_a_split_of_the_whole_whatever_the_chunks(tmp_path_factory, text, separator, chunk):
    path = tmp_path_factory.mktemp("pieces") / "a.txt"
    path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmfuse.text_files.CHUNK_BYTES", chunk)
        pieces = list(read_pieces(path, "a.txt", separator.encode()))
    expected = text.split(separator)
    assert [piece.data.decode() for piece in pieces] == (expected if expected[-1] else expected[:-1])
    for piece in pieces:
        assert text.encode()[piece.offset :].startswith(piece.data)
        assert piece.line == 1 + text[: piece.offset].count("\n")


@pytest.mark.parametrize("frames", [1, 3])
def test_zstandard_of_several_frames_equals_the_plain_file(tmp_path, frames):
    lines = [json.dumps({"text": f"{i} " * 50}) + "\n" for i in range(600)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    parts = ["".join(lines[i::frames]) for i in range(frames)]
    packed = b"".join(zstandard.ZstdCompressor().compress(part.encode()) for part in parts)
    (tmp_path / "b.jsonl.zst").write_bytes(packed)
    assert sorted(texts(tmp_path, path="a.jsonl")) == sorted(texts(tmp_path, path="b.jsonl.zst"))


# -------------------------------------------------------------------------------------------------------------- wrong files


def fails(base: Path, message: str, **spec: object) -> TextError:
    with pytest.raises(TextError, match=message) as caught:
        read(base, **spec)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 2
    return caught.value


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    write_lines(tmp_path / "gsm8k.jsonl", [{"text": "x"}])
    error = fails(tmp_path, r"gsmk8\.jsonl: no such file in .*did you mean 'gsm8k\.jsonl'", path="gsmk8.jsonl")
    assert str(tmp_path) in error.hint
    (tmp_path / "data").mkdir()
    fails(tmp_path, "did you mean 'data'", path="dta/x/y.jsonl")
    fails(tmp_path, "data is empty", path="data/y.jsonl")
    fails(tmp_path, "the folder holds no file", path="data")
    fails(tmp_path, r"\*\*/\*\.py: no file matches", path="**/*.py")
    fails(tmp_path, "no such file", path="a\0b")
    fails(tmp_path, "no such file", path="x" * 5000)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.zst"])
def test_one_invalid_byte_names_line_and_offset(tmp_path, name):
    data = b'{"text": "fine"}\n{"text": "b\xfead"}\n'
    data = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(Path(name).suffix, bytes)(data)
    (tmp_path / name).write_bytes(data)
    fails(tmp_path, rf"^{name}, line 2: byte 0xfe at offset 28 is not UTF-8$", path=name)


@pytest.mark.parametrize(
    ("data", "kind"),
    [("é".encode("utf-16"), "UTF-16"), (gzip.compress(b"x", mtime=0), "gzip"), (zstandard.ZstdCompressor().compress(b"x"), "zst")],
)
def test_other_kinds_of_files_are_recognised(tmp_path, data, kind):
    (tmp_path / "a.txt").write_bytes(data)
    assert kind in fails(tmp_path, "not UTF-8", path="a.txt").hint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "not JSON: .* at column 13"),
        ("[1, 2]", "got a list, expected an object"),
        ('"text"', "got a str, expected an object"),
        ("[" * 100_000, "JSON that no one should write"),
        ("1" * 5000, "JSON that no one should write"),
        ('{"txt": "x"}', "unknown 'text'; did you mean 'txt'"),
        ("{}", "unknown 'text'"),
        ('{"text": 3}', "field 'text' is int, expected a string"),
        ('{"text": null}', "field 'text' is NoneType, expected a string"),
        ('{"text": ["x"]}', "field 'text' is list, expected a string"),
        ('{"text": "a\\ud83d"}', r"holds \\ud83d, half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n\n' + line + "\n")
    fails(tmp_path, rf"^a\.jsonl, line 3: .*{message}", path="a.jsonl")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_no_shorter_corpus(tmp_path, suffix, keep):
    noise = random.Random(0).randbytes(200_000).hex()
    path = write_lines(tmp_path / f"a.jsonl{suffix}", [{"text": noise[i : i + 100]} for i in range(0, len(noise), 100)])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    fails(tmp_path, "ends in the middle", path=path.name)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_corrupt_file_is_refused(tmp_path, suffix):
    path = write_lines(tmp_path / f"a.jsonl{suffix}", [{"text": random.Random(i).randbytes(50).hex()} for i in range(100)])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    fails(tmp_path, r"a\.jsonl", path=path.name)
    path.write_bytes(b"not packed at all")
    fails(tmp_path, "not a whole", path=path.name)


def test_a_line_without_end_is_refused_before_memory_is(tmp_path):
    import resource

    compress = zstandard.ZstdCompressor().compressobj()  # 300 megabytes of one line in some kilobytes
    packed = b"".join(compress.compress(data) for data in [b'{"text": "', *[bytes(2**20)] * 300]) + compress.flush()
    (tmp_path / "bomb.jsonl.zst").write_bytes(packed)
    assert len(packed) < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    documents = read_documents(TextSpec(domain="d", path="bomb.jsonl.zst"), tmp_path, max_document_bytes=2**22)
    with pytest.raises(TextError, match=r"^bomb\.jsonl\.zst, line 1: a document of more than 4,194,304 bytes begins here$"):
        next(documents)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_long_documents_are_refused_in_every_format(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" + "x" * 11)
    (tmp_path / "a.txt").write_text("x" * 11)
    pq.write_table(pa.table({"text": ["x" * 11]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.txt", "a.parquet"):
        documents = read_documents(TextSpec(domain="d", path=name), tmp_path, max_document_bytes=10)
        with pytest.raises(TextError, match=rf"^{name}.*: a document of (more than 10|11) bytes"):
            next(documents)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"text": "{question}"}, r"column unknown 'question'; did you mean 'questions'"),
        ({"text": "{choices}"}, r"column 'choices' holds list<.*>, expected text"),
        ({"text": "{answer}"}, "column 'answer' holds int64, expected text"),
        ({"text": "{questions}"}, r"t\.parquet, row 2: field 'questions' is NoneType, expected a string"),
    ],
)
def test_parquet_columns_are_checked(tmp_path, spec, message):
    table = pa.table({"questions": ["x", None], "choices": [["a"], ["b"]], "answer": [1, 2]})
    pq.write_table(table, tmp_path / "t.parquet")
    fails(tmp_path, message, path="t.parquet", **spec)


def test_a_broken_parquet_file_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["x" * 1000] * 100}), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    for broken in (data[: len(data) // 2], b"", b"PAR1" + bytes(100)):
        (tmp_path / "t.parquet").write_bytes(broken)
        fails(tmp_path, r"t\.parquet: not a readable Parquet file", path="t.parquet")


def test_invalid_utf8_inside_parquet_is_refused(tmp_path):
    column = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "t.parquet")
    fails(tmp_path, r"t\.parquet", path="t.parquet")


def test_an_empty_corpus_says_where_its_documents_went(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    fails(tmp_path, r"empty\.txt: no document is left \(0 read", path="empty.txt")
    write_lines(tmp_path / "a.jsonl", [{"text": " "}, {"text": "abc"}])
    fails(tmp_path, "2 read, 1 of them blank, 1 shorter than min_bytes 9", path="a.jsonl", min_bytes=9)
    fails(tmp_path, "skip 5", path="a.jsonl", skip=5)
    fails(tmp_path, "the next one has 3 bytes and limit_bytes is 2", path="a.jsonl", limit_bytes=2)


def test_options_that_do_not_fit_the_file(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.json").write_text("[]")
    write_lines(tmp_path / "a.jsonl", [{"text": "x"}])
    fails(tmp_path, "plain text has no fields", path="a.txt", text="{question}")
    fails(tmp_path, r"a\.json: no document is left", path="a.json")
    fails(tmp_path, "a separator splits plain text", path="a.jsonl", separator="\n\n")
    fails(tmp_path, "a separator splits plain text", path="a.json", separator="\n\n")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "either a path or a dataset"),
        ({"path": "x", "dataset": "y"}, "not both"),
        ({"path": "x", "split": "train"}, "belong to a dataset"),
        ({"dataset": "x", "separator": "\n"}, "belong to a path"),
        ({"dataset": "../x"}, "dataset"),
        ({"dataset": "/etc"}, "dataset"),
        ({"path": "x", "keep_separator": True}, "needs a separator"),
        ({"path": "x", "text": "nothing"}, "names no field"),
        ({"path": "x", "text": "{a.__class__}"}, "no plain field name"),
        ({"path": "x", "text": "{a[0]}"}, "no plain field name"),
        ({"path": "x", "text": "{a!r}"}, "no plain field name"),
        ({"path": "x", "text": "{a:{b}}"}, "no plain field name"),
        ({"path": "x", "text": "{}"}, "no plain field name"),
        ({"path": "x", "text": "{a"}, "expected '}'"),
        ({"path": "x", "limit": 0}, "limit"),
        ({"path": "x", "skip": -1}, "skip"),
        ({"path": "x", "limits": 1}, "limits"),
        ({"path": "x", "format": "csv"}, "format"),
    ],
)
def test_impossible_specifications_are_refused(spec, message):
    with pytest.raises(ValidationError, match=message):
        TextSpec(domain="d", **spec)


def test_a_json_list_of_texts_is_read_like_lines(tmp_path):
    (tmp_path / "a.json").write_text('[{"q": "1+1?", "a": "2"}, {"q": "b", "a": ""}]')
    assert read(tmp_path, path="a.json", text="{q} {a}") == [("1+1? 2", "a.json:1"), ("b ", "a.json:2")]
    (tmp_path / "b.txt").write_text('[{"text": "x"}]')
    assert texts(tmp_path, path="b.txt", format="json") == ["x"]
    fails(tmp_path, r"a\.json, record 1: field unknown 'text'", path="a.json")


def test_double_braces_are_braces():
    assert template_fields("{{x}} {a b}-{c}{c}") == ["a b", "c", "c"]


# ---------------------------------------------------------------------------------------------------------------------- hub


def test_a_hub_dataset_is_streamed_and_its_faults_are_ours(tmp_path, monkeypatch):
    import datasets

    asked: dict[str, object] = {}

    def load_dataset(name: str, subset: str | None, **options: object) -> object:
        asked.update(name=name, subset=subset, **options)
        if name == "none/such":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'none/such' doesn't exist on the Hub\nmore")
        return datasets.Dataset.from_dict({"q": ["a", "b", "c"], "n": [1, 2, 3]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read(tmp_path, dataset="x/y", subset="s", text="{q}", limit=2, revision="abc") == [("a", "x/y/s:1"), ("b", "x/y/s:2")]
    assert asked == {"name": "x/y", "subset": "s", "split": "train", "revision": "abc", "streaming": True}
    assert sorted(texts(tmp_path, dataset="x/y", text="{q}", shuffle_seed=3)) == ["a", "b", "c"]
    assert texts(tmp_path, dataset="x/y", text="{q}", shuffle_seed=3) == texts(tmp_path, dataset="x/y", text="{q}", shuffle_seed=3)
    fails(tmp_path, r"x/y, row 1: field unknown 'text'", dataset="x/y")
    fails(tmp_path, r"x/y, row 1: field 'n' is int", dataset="x/y", text="{n}")
    fails(tmp_path, r"^dataset none/such: DatasetNotFoundError: Dataset 'none/such' doesn't exist on the Hub$", dataset="none/such")


# ---------------------------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(
    ("name", "spec", "count", "begins"),
    [
        ("gsm8k/test.jsonl", {"text": "{question}\n{answer}"}, 1319, "Janet’s ducks lay 16 eggs"),
        ("humaneval/HumanEval.jsonl.gz", {"text": "{prompt}{canonical_solution}"}, 164, "from typing import List"),
        ("mmlu/test.parquet", {"text": "{question}", "limit": 1000}, 1000, "Which of the following"),
        ("wikitext2/valid.txt", {}, 1, " \n = Homarus gammarus = \n"),
        ("wikitext2/valid.txt", {"separator": "\n = ", "keep_separator": True}, 620, "\n = Homarus gammarus"),
    ],
)
def test_public_corpora(name, spec, count, begins):
    path = shared("assets", "data", *name.split("/"))
    found = texts(path.parent, path=path.name, **spec)
    assert len(found) == count
    assert found[0].startswith(begins)
