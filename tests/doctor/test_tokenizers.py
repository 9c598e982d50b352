import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lmfuse.bytes import ByteTokenizer
from lmfuse.doctor.tokenizers import (
    describe,
    digit_scheme,
    duplicates,
    has_chat_template,
    lost_in_probes,
    pieces,
    ranges,
    token_bytes,
    whitespace_scheme,
)
from lmfuse.errors import TokenizerError
from tests.doctor.build import tokenizer
from tests.fakes import shared


def digits(*, longest: int, split: bool) -> ByteTokenizer:
    """A byte-level tokenizer with numbers of up to so many digits, and (or not) a pre-tokenizer that cuts them apart."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: n for n, char in enumerate(alphabet)}
    merges = []
    numbers = "123456789"
    for length in range(2, longest + 1):
        vocab[numbers[:length]] = len(vocab)
        merges.append((numbers[: length - 1], numbers[length - 1]))
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]) if split else byte_level
    made.decoder = decoders.ByteLevel()
    return ByteTokenizer.from_tokenizer(made)


@pytest.mark.parametrize(
    ("longest", "split", "scheme", "first"),
    [
        (1, False, "single digits", b"1"),
        (2, False, "up to 2 digits", b"12"),
        (3, False, "up to 3 digits", b"123"),
        (7, False, "any length (up to 7 seen)", b"1234567"),
        (7, True, "single digits", b"1"),
    ],
)
def test_the_digit_scheme_is_what_is_written_not_what_the_vocabulary_has(longest, split, scheme, first):
    made = digits(longest=longest, split=split)
    found = digit_scheme(made, token_bytes(made.vocabulary))
    assert (found["scheme"], bytes.fromhex(found["pieces"][0]), found["in_vocabulary"]) == (scheme, first, longest)


@pytest.mark.parametrize(
    ("name", "scheme"), [("llama2", "single digits"), ("qwen2_5", "single digits"), ("gpt2", "any length"), ("gpt_neox", "any length")]
)
def test_digit_schemes_of_published_tokenizers(name, scheme):
    made = ByteTokenizer.load(shared("assets", "tokenizers", name))
    assert digit_scheme(made, token_bytes(made.vocabulary))["scheme"].startswith(scheme)


def test_whitespace_by_hand():
    written = [b" ", b"  ", b"    ", b"\t", b"\n\n", b"\n  ", b"a ", b""]
    found = whitespace_scheme(tokenizer("byte_bpe"), written)
    assert (found["spaces"], found["tabs"], found["newlines"]) == ("1-2, 4", "1", "2")
    assert (found["mixed"], found["newline_and_indentation"]) == (1, 1)
    assert b"".join(bytes.fromhex(piece) for piece in found["pieces"]).decode() == found["probe"]


def test_ranges():
    assert [ranges(numbers) for numbers in ([], [4], [1, 2, 3], [5, 1, 3, 2, 5])] == ["none", "4", "1-3", "1-3, 5"]


def test_duplicates_are_ids_with_the_same_bytes():
    assert duplicates([b"", b"", b"a"])["ids"] == 0, "control tokens write nothing, that is no duplicate"
    found = duplicates([b"a", b"b", b"a", b"b", b"a"])
    assert (found["ids"], found["strings"], found["examples"][0]) == (5, 2, {"bytes": "61", "ids": [0, 2, 4]})


def test_pieces_are_the_text():
    (found,) = pieces(tokenizer("metaspace_bpe"), ["the dog"])
    assert b"".join(found) == b"the dog"
    assert all(found)


def test_what_a_lossy_tokenizer_loses_is_shown():
    lost = {bytes.fromhex(each["text"]).decode(): bytes.fromhex(each["lost"]).decode() for each in lost_in_probes(tokenizer("wordpiece"))}
    assert "T" in lost["The Cat"]
    assert not lost_in_probes(tokenizer("byte_bpe"))


@pytest.mark.parametrize("kind", ["byte_bpe", "metaspace_bpe", "unigram", "wordpiece"])
def test_a_description_is_plain_values(kind):
    found = describe(kind, tokenizer(kind))
    assert json.loads(json.dumps(found)) == found
    assert bool(found["lossy"]) == bool(found["probes"]) or not found["probes"]


def test_a_chat_template_is_found_and_not_run(tmp_path):
    assert not has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% for x in range(10**9) %}{% endfor %}"}))
    assert has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(TokenizerError, match="tokenizer_config"):
        has_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("x")
    assert has_chat_template(tmp_path)
