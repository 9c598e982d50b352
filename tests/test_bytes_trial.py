"""Patterns are tried where they can be ended: known ones not at all, hanging ones not for long, harmless ones with success."""

import json
import os
import sys
from pathlib import Path

import pytest

from lmfuse import bytes_trial
from lmfuse.bytes_known import KNOWN_PATTERNS
from lmfuse.bytes_trial import Part, probe_texts, risky_parts, try_parts
from lmfuse.errors import TokenizerError
from tests.bad_tokenizers import spent

PATH = Path("tokenizer.json")


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def state(*nodes: dict, field: str = "pre_tokenizer") -> dict:
    kind, inner = {"pre_tokenizer": ("Sequence", "pretokenizers"), "normalizer": ("Sequence", "normalizers")}[field]
    return {"model": {"vocab": {"a": 0}}, field: {"type": kind, inner: list(nodes)}}


def replace(old: str, new: str) -> dict:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


HANGING = [
    "(a+)+$",
    "(x|x)*y",
    r"(?=(\w+\s?)+!)\S",
    r"(\p{L}*)*\d",
    "(foo|f(o|x)o)*z",
    "(ab|a|b)*c",
    r"(\d+)*\.",
    "((京|京)+)+!",
    r"\s*\s*\s*\s*q",
    r"^(([a-z])+.)+[A-Z]([a-z])+$",
]
HARMLESS = [
    r"\w+|\s",
    r"[A-Za-z]+(?:'[a-z]+)*|\d+|[^\w\s]+",
    r"\s+$",
    "(?<=a{3})b",
    "(a?){30}a{30}",
    "(a|b)" * 100,
    r"\s?\p{L}+|\s?\p{N}+|\s?[^\s\p{L}\p{N}]+",
    "",
]


@pytest.mark.parametrize("pattern", HANGING)
def test_hanging_patterns_are_refused_by_name(pattern):
    begin = spent()
    with pytest.raises(TokenizerError) as caught:
        try_parts(state(split(pattern)), PATH)
    assert spent() - begin < 4
    assert f"pre_tokenizer.pretokenizers[0].pattern: '{pattern}'" in str(caught.value)


@pytest.mark.parametrize("pattern", HARMLESS)
def test_harmless_patterns_pass(pattern):
    try_parts(state(split(pattern)), PATH)
    try_parts(state({**replace("", " "), "pattern": {"Regex": pattern}}, field="normalizer"), PATH)


def test_of_several_the_bad_one_is_named():
    with pytest.raises(TokenizerError, match=r"pretokenizers\[1\]\.pattern: '\(b\+\)\+\$'"):
        try_parts(state(split(r"\w"), split("(b+)+$"), split(r"\s")), PATH)


def test_known_patterns_are_harmless():
    parts = [[f"{number}", "pre_tokenizer", split(pattern), probe_texts(pattern)] for number, pattern in enumerate(KNOWN_PATTERNS)]
    assert bytes_trial._verdict(json.dumps(parts)) == ""


def test_known_and_flat_parts_are_not_tried():
    flat = [{"type": "NFC"}, replace(" ", "▁"), {"type": "Prepend", "prepend": "▁"}]
    assert list(risky_parts(state(*flat, field="normalizer") | state(*map(split, KNOWN_PATTERNS), {"type": "ByteLevel"}))) == []


@pytest.mark.parametrize(
    ("nodes", "field"),
    [
        ([replace("e", "ee")] * 48, "normalizer"),
        ([replace("", "a")] * 48, "normalizer"),
        ([{"type": "ByteLevel"}] * 48, "normalizer"),
        ([{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}] * 48, "pre_tokenizer"),
        ([{"type": "Lowercase"}] * 50_000, "normalizer"),
    ],
    ids=["doubling", "between all letters", "bytes of bytes", "bytes of bytes again", "fifty thousand parts"],
)
def test_parts_that_grow_a_text_without_end_are_refused(nodes, field):
    begin = spent()
    with pytest.raises(TokenizerError, match=f"tokenizer.json: {field}: "):
        try_parts(state(*nodes, field=field), PATH)
    assert spent() - begin < 4


def test_a_pattern_in_a_decoder_is_refused_unbuilt():
    with pytest.raises(TokenizerError, match=r"decoder.pattern: 'a' cannot be read as bytes"):
        try_parts({"model": {"vocab": {}}, "decoder": {"type": "Replace", "pattern": {"Regex": "a"}, "content": ""}}, PATH)


def test_each_tokenizer_is_tried_once(monkeypatch):
    calls = []
    run = bytes_trial._run
    monkeypatch.setattr(bytes_trial, "_run", lambda *given: calls.append(given) or run(*given))
    for _ in range(3):
        try_parts(state(split("only[ ]once")), PATH)
    assert len(calls) == 1


def test_the_child_gets_no_secrets_and_no_code_from_here(monkeypatch, tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen = {}
    run = bytes_trial.subprocess.run
    monkeypatch.setattr(bytes_trial.subprocess, "run", lambda command, **options: seen.update(options) or run(command, **options))
    try_parts(state(split("no[ ]secrets")), PATH)
    assert "secret" not in str(seen["env"])
    assert "PYTHONPATH" not in seen["env"]


@pytest.mark.parametrize("odd", ["", None, "/bin/true", "/no/where/python3", "/usr/bin/python-config.sh"])
def test_an_odd_executable_is_passed_over(monkeypatch, odd):
    monkeypatch.setattr(sys, "executable", odd)
    try_parts(state(split(f"odd[ ]{os.path.basename(odd or 'none')}")), PATH)


def test_without_any_python_an_unknown_pattern_is_refused(monkeypatch):
    monkeypatch.setattr(bytes_trial, "_pythons", lambda: iter(()))
    with pytest.raises(TokenizerError, match=r"'never\[ \]tried' is not well known and cannot be tried here: no Python was found"):
        try_parts(state(split("never[ ]tried")), PATH)
    monkeypatch.setattr(bytes_trial, "_pythons", lambda: iter(["/no/where/python3"]))
    with pytest.raises(TokenizerError, match="cannot be tried here: /no/where/python3: No such file"):
        try_parts(state(split("never[ ]started")), PATH)


def test_tokens_of_the_file_are_among_the_texts():
    given = state(split(r"\w")) | {"added_tokens": [{"content": "<added>", "normalized": True}, {"content": "<raw>", "normalized": False}]}
    parts: list[Part] = list(risky_parts(given, ("<configured>",)))
    assert all({"<added>", "<configured>", "a"} <= set(texts) and "<raw>" not in texts for _, _, _, texts in parts)
