"""Data in three parts that have nothing in common."""

import json
import random

import pytest
from tokenizers import Tokenizer

from lmfuse.errors import InputError, TextError
from lmfuse.evolve_recipe.data import Questions, Text, Units, read_questions, read_text, read_units
from lmfuse.models import ModelSpec, load_tokenizer
from tests.fakes import byte_bpe, save_model
from tests.runs import WORDS


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    assert isinstance(byte_bpe(), Tokenizer)
    return load_tokenizer(ModelSpec(str(save_model(tmp_path_factory.mktemp("model") / "m", byte_bpe()))))


def write(folder, name, count, seed, words=30):
    draw = random.Random(seed)
    lines = [{"text": f"{number} " + " ".join(draw.choices(WORDS, k=words))} for number in range(count)]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return {"domain": name, "path": f"{name}.jsonl"}


def units(data):
    return [set(part) for part in (data.splits.evolve, data.splits.select, data.splits.report)]


def test_a_text_is_divided_domain_by_domain_by_content(tmp_path, tokenizer):
    specs = [write(tmp_path, "x", 80, 1), write(tmp_path, "y", 40, 2)]
    text = Text(divided=specs, shares=(0.5, 0.25, 0.25))
    data = read_text(text, tmp_path, tokenizer, 256)
    by_domain = [[data.windows[unit][0].domain for unit in part] for part in units(data)]
    assert [(part.count("x")) for part in by_domain] == [40, 20, 20]
    assert [len(part) - part.count("x") for part in by_domain][2] >= 10
    assert not units(data)[0] & units(data)[1]
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    (tmp_path / "x.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    assert units(read_text(text, tmp_path, tokenizer, 256)) == units(data)
    assert units(read_text(text.model_copy(update={"seed": 1}), tmp_path, tokenizer, 256)) != units(data)


def test_windows_of_a_document_are_one_unit_where_documents_are_many(tmp_path, tokenizer):
    many, few = write(tmp_path, "many", 100, 1, words=60), write(tmp_path, "few", 12, 2, words=60)
    data = read_text(Text(divided=[many, few], window_tokens=60), tmp_path, tokenizer, 256)
    pieces = {name: [len(windows) for windows in data.windows.values() if windows[0].domain == name] for name in ("many", "few")}
    assert min(pieces["many"]) > 1
    assert set(pieces["few"]) == {1}
    assert len(pieces["few"]) > 12


def test_what_stands_twice_or_nearly_so_is_left_out_of_later_parts(tmp_path, tokenizer):
    spec = write(tmp_path, "x", 40, 1)
    lines = [json.loads(line)["text"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    more = [*lines, *lines[:5], *(f"Again: {line}" for line in lines)]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in more) + "\n")
    data = read_text(Text(divided=[spec]), tmp_path, tokenizer, 256)
    assert data.counters["left_out_twice"] == 5
    assert data.counters["left_out_alike"] > 10
    said = [{data.windows[unit][0].segments[0].text.removeprefix("Again: ") for unit in part} for part in units(data)]
    assert not said[0] & said[1]
    assert not (said[0] | said[1]) & said[2]


def test_overlap_of_parts_that_are_named_is_refused(tmp_path, tokenizer):
    one, two, three = (write(tmp_path, name, 8, seed) for seed, name in enumerate("abc"))
    data = read_text(Text(evolve=[one], select=[two], report=[three]), tmp_path, tokenizer, 256)
    assert [len(part) for part in units(data)] == [8, 8, 8]
    (tmp_path / "c.jsonl").write_text((tmp_path / "a.jsonl").read_text().splitlines()[3] + "\n")
    with pytest.raises(
        InputError, match=r"splits: 1 of 1 documents of report also stand in earlier parts, such as 'c.jsonl:1' in 'a.jsonl:4'"
    ):
        read_text(Text(evolve=[one], select=[two], report=[three]), tmp_path, tokenizer, 256)
    with pytest.raises(TextError, match="cannot hold out 1 of 1 different documents"):
        read_text(Text(divided=[three]), tmp_path, tokenizer, 256)


def ask(folder, *records):
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return {"path": "q.jsonl"}


def test_questions_are_read_and_divided(tmp_path):
    records = [{"question": f"{n} and {n} are", "choices": [str(n), str(2 * n)], "answer": 1} for n in range(3, 43)]
    records[0]["answer"] = "3"
    data = read_questions(Questions(divided=[ask(tmp_path, *records, records[5])]), tmp_path)
    assert [len(part) for part in units(data)] == [20, 10, 10]
    assert data.counters["left_out_twice"] == 1
    three = next(each for each in data.questions.values() if each.text.startswith("3 "))
    assert (three.text, three.choices, three.answer, three.origin) == ("3 and 3 are ", ("3", "6"), 0, "q.jsonl:1")
    with pytest.raises(InputError, match="documents of select also stand in earlier parts"):
        read_questions(Questions(**{key: [{"path": "q.jsonl"}] for key in ("evolve", "select", "report")}), tmp_path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "a", "choices": ["b", "c"]}, "q.jsonl, line 1: no field 'answer'"),
        ({"question": "", "choices": ["b", "c"], "answer": 0}, "q.jsonl, line 1: question is '', expected text"),
        ({"question": "a", "choices": ["b"], "answer": 0}, r"choices is \['b'\], expected two texts or more"),
        ({"question": "a", "choices": ["b", ""], "answer": 0}, "expected two texts or more"),
        ({"question": "a", "choices": ["b", "c"], "answer": 2}, "answer is 2, expected 0 to 1, or one of the choices"),
        ({"question": "a", "choices": ["b", "c"], "answer": True}, "answer is True, expected"),
        ({"question": "a", "choices": ["b", "c"], "answer": "d"}, "answer is 'd', expected"),
    ],
)
def test_a_malformed_question_is_named(tmp_path, record, message):
    with pytest.raises(TextError, match=message) as caught:
        read_questions(Questions(divided=[ask(tmp_path, record)]), tmp_path)
    assert caught.value.hint


def test_names_for_a_function():
    data = read_units(Units(count=12))
    assert sorted((name for part in units(data) for name in part), key=int) == [str(n) for n in range(12)]
    assert read_units(Units(evolve=["a"], select=["b"], report=["c"])).splits.report == ("c",)
    with pytest.raises(InputError, match="splits: 'a' is in evolve and report"):
        read_units(Units(evolve=["a"], select=["b"], report=["a"]))
