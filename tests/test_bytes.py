"""A tokenizer seen as bytes: every byte once, in order, or masked and counted; for the fakes and for seven real tokenizers."""

import gzip
import json
import pickle
import unicodedata
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lmfuse.bytes import ByteTokenizer
from lmfuse.bytes_spelling import byte_alphabet
from lmfuse.errors import TextError, TokenizerError
from lmfuse.types import Document, Segment
from tests import fakes

REAL = ("gpt2", "gpt_neox", "qwen2_5", "llama2", "mistral", "t5", "bert_uncased")
METASPACE = {"metaspace_bpe", "unigram", "llama2", "mistral"}  # lossless but for a literal U+2581
LOSSLESS = {"byte_bpe", "gpt2", *METASPACE}
NFC = {"gpt_neox", "qwen2_5"}
EVERY = (*fakes.KINDS, *REAL)
LITERALS = (
    "<unk>",
    "</s>",
    "<s>",
    "<|im_end|>",
    "<|endoftext|>",
    "[CLS]",
    "[UNK]",
    "<0x0A>",
    "<0xE2>",
    "<pad>",
    "<extra_id_0>",
    "<tool_call>",
)
PIECES = (
    "\n",
    "\t",
    " ",
    "   ",
    "\r\n",
    "e\u0301",
    "🙂",
    "👩‍👩‍👧",
    "\x00",
    "\x7f",
    "\u2581",
    "\u00a0",
    "ﬁ",
    "東",
    "def f(x):",
    "The Cat",
    "Ġ",
    "##s",
)
CHARACTERS = st.characters(exclude_categories=("Cs", "Cn"))
TEXTS = st.lists(st.one_of(st.text(CHARACTERS, max_size=8), st.sampled_from((*LITERALS, *PIECES))), max_size=12).map("".join)


@cache
def byte_tokenizer(name: str) -> ByteTokenizer:
    if name in fakes.KINDS:
        return ByteTokenizer.from_tokenizer(fakes.KINDS[name]())
    return ByteTokenizer.load(fakes.shared("assets", "tokenizers", name))


@cache
def bare_tokenizer(name: str) -> Tokenizer:
    if name in fakes.KINDS:
        return fakes.KINDS[name]()
    return Tokenizer.from_file(str(fakes.shared("assets", "tokenizers", name, "tokenizer.json")))


def encode(tokenizer: ByteTokenizer, text: str):
    return tokenizer.encode(Document.plain(text))


def check(tokenizer: ByteTokenizer, text: str) -> int:
    """Check that an encoding covers a text once, in order, with the tokens' own bytes; return the masked bytes."""
    encoding, data = encode(tokenizer, text), text.encode()
    position = covered = 0
    for i, (token_id, start, end) in enumerate(zip(encoding.ids, encoding.starts, encoding.ends, strict=True)):
        if start < 0:
            assert end == -1
            continue
        assert position <= start <= end <= len(data)
        written = tokenizer.vocabulary.bytes_of(int(token_id))
        surplus = written[: len(written) - (end - start)]
        assert surplus + data[start:end] == written
        assert surplus == b"" or (surplus == b" " and start == 0 and (encoding.starts[:i] == -1).all()), (
            "only a dummy prefix may stand before"
        )
        position, covered = end, covered + end - start
    assert encoding.masked_bytes == len(data) - covered
    assert encoding.masked_bytes or covered == len(data)
    return encoding.masked_bytes


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@example(text="")
@example(text=" ")
@example(text="\n")
@example(text="\u2581 a \u2581")
@given(text=TEXTS)
def test_every_byte_is_covered_once_or_masked_and_counted(name, text):
    masked = check(byte_tokenizer(name), text)
    if name in LOSSLESS and not (name in METASPACE and "\u2581" in text):
        assert masked == 0
    if name in NFC and unicodedata.normalize("NFC", text) == text:
        assert masked == 0


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(text=TEXTS)
def test_ids_are_the_tokenizers_own_where_no_special_string_occurs(name, text):
    bare = bare_tokenizer(name)
    for token in (*bare.get_added_tokens_decoder().values(), *map(AddedToken, LITERALS)):
        text = text.replace(token.content, " ") if token.special or token.content in LITERALS else text
    tokenizer = byte_tokenizer(name)
    own = bare.encode(text, add_special_tokens=False).ids
    assert encode(tokenizer, text).ids[len(tokenizer.start_ids) :].tolist() == own


@pytest.mark.parametrize("name", EVERY)
def test_literal_control_strings_are_text(name):
    tokenizer, bare = byte_tokenizer(name), bare_tokenizer(name)
    vocabulary = tokenizer.vocabulary
    special = [token.content for token in bare.get_added_tokens_decoder().values() if token.special]
    unk = vocabulary.control.get("unk")
    for literal in {*special[:40], *LITERALS}:
        text = f"a{literal}b {literal} {literal}\n"
        ids = encode(tokenizer, text).ids[len(tokenizer.start_ids) :]
        assert not [i for i in ids if vocabulary.lengths[i] == 0 and i != unk], literal
        assert check(tokenizer, text) == 0 or name not in LOSSLESS | NFC


@pytest.mark.parametrize("name", EVERY)
def test_the_bytes_of_every_token_are_what_the_decoder_writes_after_another_token(name):
    tokenizer, bare = byte_tokenizer(name), bare_tokenizer(name)
    vocabulary = tokenizer.vocabulary
    anchor = bare.encode("a", add_special_tokens=False).ids
    before = bare.decode(anchor)
    ids = [i for i in range(vocabulary.size) if vocabulary.lengths[i]][:: 1 + vocabulary.size // 20000]
    wrong = 0
    for i, text in zip(ids, bare.decode_batch([[*anchor, i] for i in ids], skip_special_tokens=False), strict=True):
        wrong += text != before + vocabulary.bytes_of(i).decode("utf-8", "replace")
    assert wrong == 0
    assert vocabulary.size == bare.get_vocab_size(with_added_tokens=True)
    assert vocabulary.strings[ids[-1]] == bare.id_to_token(ids[-1])
    control = [i for i in range(vocabulary.size) if not vocabulary.lengths[i]]
    assert {vocabulary.strings[i] for i in control} == {t.content for t in bare.get_added_tokens_decoder().values() if t.special} | (
        {"[UNK]"} & set(bare.get_vocab())
    )


def real_texts() -> list[str]:
    data = fakes.shared("assets", "data")
    with gzip.open(data / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        code = [json.loads(line) for line in file][:40]
    maths = [json.loads(line) for line in (data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:60]]
    wiki = (data / "wikitext2" / "test.txt").read_text(encoding="utf-8")
    plays = (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    long = [source[i : i + 8000] for source in (wiki, plays) for i in range(0, 48000, 8000)]
    return [*(row["prompt"] + row["canonical_solution"] for row in code), *(row["question"] + "\n" + row["answer"] for row in maths), *long]


@pytest.mark.parametrize("name", EVERY)
def test_real_files_are_covered(name):
    tokenizer, texts = byte_tokenizer(name), real_texts()
    assert "<unk>" in "".join(texts), "WikiText-2 writes its rare words so"
    encodings = tokenizer.encode_many([Document.plain(text) for text in texts])
    size = sum(len(text.encode()) for text in texts)
    masked = sum(encoding.masked_bytes for encoding in encodings)
    assert masked == 0 if name in LOSSLESS | NFC else 0 < masked < size
    for text, encoding in zip(texts[::20], encodings[::20], strict=True):
        single = encode(tokenizer, text)
        assert check(tokenizer, text) == encoding.masked_bytes
        for part in ("ids", "starts", "ends"):
            np.testing.assert_array_equal(getattr(single, part), getattr(encoding, part))


# By hand -------------------------------------------------------------------------------------------------------------------------------


def llama(*, merges=(("▁", "a"),), pre_tokenizer=None, extra=()) -> Tokenizer:
    """A Llama-2 of twenty tokens: ids 0 <unk>, 1 <s>, 2 </s>, 3..258 bytes, then ▁ a b é ▁a."""
    strings = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "é", "▁a", *extra]
    vocab = {text: i for i, text in enumerate(strings)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    if pre_tokenizer:
        tokenizer.normalizer, tokenizer.pre_tokenizer = None, pre_tokenizer
    return tokenizer


def spelled(tokenizer: ByteTokenizer, text: str) -> list[tuple[str, int, int]]:
    encoding = encode(tokenizer, text)
    strings = [tokenizer.vocabulary.strings[i] for i in encoding.ids]
    return list(zip(strings, encoding.starts.tolist(), encoding.ends.tolist(), strict=True))


def test_dummy_prefix_by_hand():
    tokenizer = ByteTokenizer.from_tokenizer(llama())
    assert spelled(tokenizer, "ab") == [("<s>", -1, -1), ("▁a", 0, 1), ("b", 1, 2)]
    assert tokenizer.vocabulary.bytes_of(263) == b" a"
    assert spelled(tokenizer, "b") == [("<s>", -1, -1), ("▁", 0, 0), ("b", 0, 1)]
    assert spelled(tokenizer, " a") == [("<s>", -1, -1), ("▁", 0, 0), ("▁a", 0, 2)]
    assert spelled(tokenizer, "\n🙂")[1:3] == [("▁", 0, 0), ("<0x0A>", 0, 1)]
    assert [start for _, start, _ in spelled(tokenizer, "é🙂")] == [-1, 0, 0, 2, 3, 4, 5]
    assert spelled(tokenizer, "") == [("<s>", -1, -1)]
    assert tokenizer.vocabulary.control == {"unk": 0, "start": 1}
    assert tokenizer.lossy == ""


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_metaspace_as_pre_tokenizer(scheme):
    tokenizer = ByteTokenizer.from_tokenizer(llama(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme=scheme)))
    first = ("a", 0, 1) if scheme == "never" else ("▁a", 0, 1)
    assert spelled(tokenizer, "a b") == [("<s>", -1, -1), first, ("▁", 1, 2), ("b", 2, 3)]
    assert tokenizer.first_pieces([b"ab", b" ab", b"b a"]).tolist() == [260, 263, 261]
    assert tokenizer.first_pieces([b"a", b"aab"]).tolist() == [260, 260], "no dummy prefix in the middle of a text"


def test_byte_level_by_hand():
    byte_of = byte_alphabet()
    tokenizer = Tokenizer(
        models.BPE(vocab={char: i for i, char in enumerate(byte_of)} | {"Ã©": 256, "Ġa": 257}, merges=[("Ã", "©"), ("Ġ", "a")])
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens(["  "])
    found = ByteTokenizer.from_tokenizer(tokenizer)
    assert spelled(found, "aé京") == [("<|endoftext|>", -1, -1), ("Ġa", 0, 1), ("Ã©", 1, 3), ("ä", 3, 4), ("º", 4, 5), ("¬", 5, 6)]
    assert found.vocabulary.bytes_of(259) == b"  ", "an added token that is no control token carries its bytes"
    assert found.first_pieces([b"ab", b"  ", "é!".encode()]).tolist() == [byte_index(byte_of, b"a"), 259, 256]


def byte_index(byte_of: dict[str, int], byte: bytes) -> int:
    return list(byte_of.values()).index(byte[0])


def test_lossy_tokenizers_keep_the_rest_exact():
    assert spelled(byte_tokenizer("bert_uncased"), " the Cat é") == [("[CLS]", -1, -1), ("the", 0, 4), ("cat", -1, -1), ("e", -1, -1)]
    assert spelled(byte_tokenizer("bert_uncased"), "the cats, too") == [
        ("[CLS]", -1, -1), ("the", 0, 3), ("cats", 3, 8), (",", 8, 9), ("too", 9, 13),
    ]  # fmt: skip
    assert spelled(byte_tokenizer("t5"), "the  cat\nis  ﬁne the") == [
        ("▁the", 0, 3), ("▁cat", 4, 8), ("▁is", -1, -1), ("▁fine", -1, -1), ("▁the", 18, 22),
    ]  # fmt: skip
    assert spelled(byte_tokenizer("qwen2_5"), "the cafe\u0301 is") == [
        ("<|endoftext|>", -1, -1), ("the", 0, 3), ("ĠcafÃ©", -1, -1), ("Ġis", 10, 13),
    ]  # fmt: skip
    assert spelled(byte_tokenizer("llama2"), "the\u2581b is")[1:] == [("▁the", 0, 3), ("▁b", -1, -1), ("▁is", 7, 10)]
    assert encode(byte_tokenizer("t5"), "the  cat\nis  ﬁne the").masked_bytes == 1 + 3 + 7


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("t5", ["Precompiled", "whitespace", "no byte fallback"]),
        ("bert_uncased", ["BERT", "whitespace"]),
        ("qwen2_5", ["NFC"]),
        ("gpt_neox", ["NFC"]),
    ],
)
def test_losses_are_named(name, words):
    assert all(word in byte_tokenizer(name).lossy for word in words)


@pytest.mark.parametrize("name", sorted(LOSSLESS))
def test_lossless_tokenizers_are_not_called_lossy(name):
    assert byte_tokenizer(name).lossy == ""


def test_missing_bytes_of_a_byte_level_alphabet_are_a_loss():
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(byte_alphabet()) if char != "q"} | {"qq": 300}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    found = ByteTokenizer.from_tokenizer(tokenizer)
    assert "0x71" in found.lossy
    assert spelled(found, "aqa") == [("a", 0, 1), ("a", 2, 3)]
    assert encode(found, "aqa").masked_bytes == check(found, "aqa") == 1
    assert check(found, "qqq 東q京") == 4


# Traps ---------------------------------------------------------------------------------------------------------------------------------


def test_a_merge_that_spells_a_control_token_is_not_taken_for_it():
    tokenizer = llama(merges=[("<", "s"), ("<s", ">"), ("▁", "a")], extra=["<", "s", ">", "<s"])
    assert [token.value for token in tokenizer.model.tokenize("<s>")] == ["<s>"], "the model itself writes the control token"
    found = ByteTokenizer.from_tokenizer(tokenizer)
    assert spelled(found, "a<s>") == [("<s>", -1, -1), ("▁a", 0, 1), ("<", 1, 2), ("s", 2, 3), (">", 3, 4)]


def test_byte_tokens_that_were_added_as_text_do_not_match_text():
    tokenizer = llama()
    tokenizer.add_tokens(["<0x0A>"])
    assert check(ByteTokenizer.from_tokenizer(tokenizer), "a<0x0A>\n") == 0


def test_a_named_control_token_that_is_not_flagged_special_is_control():
    tokenizer = llama()
    tokenizer.add_tokens(["<|pad|>"])
    assert check(ByteTokenizer.from_tokenizer(tokenizer, pad="<|pad|>"), "a<|pad|>b") == 0
    assert ByteTokenizer.from_tokenizer(tokenizer, pad="<|pad|>").vocabulary.bytes_of(264) == b""
    assert ByteTokenizer.from_tokenizer(tokenizer).vocabulary.bytes_of(264) == b"<|pad|>"


def test_ordinary_text_as_padding_token_stays_text():
    tokenizer = llama()
    tokenizer.add_special_tokens(["b"])
    found = ByteTokenizer.from_tokenizer(tokenizer, pad="b")
    assert found.vocabulary.bytes_of(261) == b"b"
    assert found.vocabulary.control["pad"] == 261
    assert check(found, "abab") == 0


def test_truncation_padding_and_dropout_are_off_and_the_given_tokenizer_is_untouched():
    tokenizer = llama()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    before = tokenizer.to_str()
    assert len(encode(ByteTokenizer.from_tokenizer(tokenizer), "aaaaaa").ids) == 7
    assert tokenizer.to_str() == before
    state = json.loads(llama().to_str())
    state["model"]["dropout"] = 0.9
    found = ByteTokenizer.from_tokenizer(Tokenizer.from_str(json.dumps(state)))
    assert len({tuple(encode(found, " a a a a a").ids) for _ in range(20)}) == 1


def test_pickling_keeps_literal_control_strings_text():
    tokenizer = byte_tokenizer("metaspace_bpe")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert spelled(again, "a</s>") == spelled(tokenizer, "a</s>")
    assert again.key == tokenizer.key


# What stands before a text -------------------------------------------------------------------------------------------------------------


def test_document_start():
    def start(tokenizer: Tokenizer, **names: str) -> list[int]:
        found = ByteTokenizer.from_tokenizer(tokenizer, **names)
        assert found.vocabulary.control.get("start", -1) == (found.start_ids[-1] if found.start_ids else -1)
        return list(found.start_ids)

    with_template, without = llama(), llama()
    without.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    assert start(with_template, eos="</s>") == [1], "the template's"
    assert start(without) == []
    assert start(without, eos="</s>") == [2]
    assert start(without, bos="<s>", eos="</s>") == [1]
    assert start(with_template, document_start="none") == []
    assert start(with_template, document_start="</s>") == [2]
    byte_level = fakes.byte_bpe()
    end = byte_level.token_to_id("<|endoftext|>")
    assert start(byte_level, bos="a") == [end], "a configured bos is often a chat marker"
    assert byte_tokenizer("bert_uncased").start_ids == (101,)
    assert byte_tokenizer("qwen2_5").start_ids == (151643,)


def test_key_covers_what_changes_an_encoding():
    changed = llama()
    changed.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    makes = [llama(), changed, llama(merges=[])]
    keys = {ByteTokenizer.from_tokenizer(tokenizer).key for tokenizer in makes} | {
        ByteTokenizer.from_tokenizer(llama(), document_start="none").key,
        ByteTokenizer.from_tokenizer(llama(), eos="</s>").key,
    }
    assert len(keys) == 5
    assert ByteTokenizer.from_tokenizer(llama()).key in keys


# First pieces --------------------------------------------------------------------------------------------------------------------------


def anchored(bare: Tokenizer, anchor: str, piece: str) -> int:
    """Return the first token after an anchor in a whole encoding, or -1 where no token begins there."""
    starts = bare.encode(anchor + piece, add_special_tokens=False)
    before = bare.encode(anchor, add_special_tokens=False).ids
    return starts.ids[len(before)] if starts.ids[: len(before)] == before and len(starts.ids) > len(before) else -1


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("wordpiece", "bert_uncased")])
def test_first_pieces_are_what_stands_there_in_a_whole_text(name):
    tokenizer, bare = byte_tokenizer(name), bare_tokenizer(name)
    words = sorted({word for text in real_texts()[:60:3] for word in text.split() if word.isascii() and word.isalpha()})[:300]
    if name in METASPACE:
        cases = [("\n", word + "ly so") for word in words] + [
            ("\n", " " + word + "ly so") for word in words
        ]  # a newline merges with nothing
    else:
        cases = [("a", " " + word + " is") for word in words]
        cases += [] if name == "t5" else [("1", word + "ly so") for word in words]
    vocabulary = tokenizer.vocabulary
    every = {vocabulary.bytes_of(i) for i in range(vocabulary.size)}
    cases = [(anchor, piece) for anchor, piece in cases if piece.encode() not in every]
    found = tokenizer.first_pieces([piece.encode() for _, piece in cases])
    expected = [anchored(bare, anchor, piece) for anchor, piece in cases]
    checked = [i for i, token_id in enumerate(expected) if token_id >= 0]
    assert len(checked) > 0.9 * len(cases) > 100
    wrong = [(cases[i], vocabulary.strings[found[i]], vocabulary.strings[expected[i]]) for i in checked if found[i] != expected[i]]
    assert len(wrong) <= (0.02 * len(cases) if name == "t5" else 0), wrong[:5]


@pytest.mark.parametrize("name", EVERY)
def test_first_pieces_of_a_batch_are_those_of_single_calls(name):
    tokenizer, other = byte_tokenizer(name), byte_tokenizer("metaspace_bpe")
    vocabulary = tokenizer.vocabulary
    pieces = [other.vocabulary.bytes_of(i) for i in range(other.vocabulary.size)]
    pieces += ["東京 and".encode(), "東".encode()[1:], "東".encode()[:2], b" qzx\xe6", b"\xff", b"", b"<s>", b"</s> x", b"<0x0A>", b"\n\n"]
    found = tokenizer.first_pieces(pieces * 2)
    assert found.tolist() == [int(tokenizer.first_pieces([piece])[0]) for piece in pieces] * 2
    tokens: dict[bytes, list[int]] = {}
    for i in range(vocabulary.size):
        tokens.setdefault(vocabulary.bytes_of(i), []).append(i)
    for piece, token_id in zip(pieces, found.tolist(), strict=False):
        if piece in tokens and piece:
            assert token_id in tokens[piece], "an exact match wins"
        if token_id == -1:
            assert not any(piece[:length] in tokens for length in range(1, len(piece) + 1))
        else:
            assert vocabulary.lengths[token_id] > 0
        if name in LOSSLESS and token_id >= 0:
            assert piece.startswith(vocabulary.bytes_of(token_id))


@pytest.mark.parametrize("name", EVERY)
def test_all_pieces_begin_with_the_first_and_write_the_string(name):
    tokenizer, other = byte_tokenizer(name), byte_tokenizer("metaspace_bpe")
    strings = [other.vocabulary.bytes_of(i) for i in range(other.vocabulary.size)]
    strings += ["東京 and".encode(), "東".encode()[1:], b" qzx 12345\xe6", b"\xff", b"", b"</s> x", b"\n\n"]
    found = tokenizer.pieces(strings)
    assert [ids[0] if ids else -1 for ids in found] == tokenizer.first_pieces(strings).tolist()
    vocabulary = tokenizer.vocabulary
    assert all(vocabulary.lengths[n] > 0 for ids in found for n in ids)
    if name in LOSSLESS:
        written = [b"".join(vocabulary.bytes_of(n) for n in ids) for ids in found]
        assert all(string.startswith(begin) for string, begin in zip(strings, written, strict=True))
        assert sum(map(len, written)) > 0.97 * sum(map(len, strings))


def test_pieces_by_hand():
    tokenizer = ByteTokenizer.from_tokenizer(llama())
    assert tokenizer.pieces([b"ab", b" ab", b"b a", b"", b"\xe6a"]) == [[260, 261], [263, 261], [261, 263], [], [3 + 0xE6, 260]]


def test_of_two_tokens_with_the_same_bytes_the_one_that_is_written_wins():
    tokenizer = ByteTokenizer.from_tokenizer(llama())
    assert tokenizer.vocabulary.bytes_of(3 + ord("a")) == tokenizer.vocabulary.bytes_of(260) == b"a"
    assert tokenizer.first_pieces([b"a", b"z", b"\xc3", b"\xc3\xa9"]).tolist() == [260, 3 + ord("z"), 3 + 0xC3, 262]
    assert tokenizer.first_pieces([]).tolist() == []


def test_wordpiece_pieces_are_greedy():
    tokenizer = byte_tokenizer("bert_uncased")
    found = tokenizer.first_pieces([b" catlike", b"ingzz", b"\n", b" Cat"])
    assert [tokenizer.vocabulary.strings[i] if i >= 0 else None for i in found[:2]] == ["cat", "##ing"]
    assert found[2] == -1


# Wrong inputs --------------------------------------------------------------------------------------------------------------------------


def refused(make, *words: str, error: type[Exception] = TokenizerError) -> None:
    with pytest.raises(error) as caught:
        make()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert caught.value.hint


def test_unreadable_kinds_are_refused():
    def with_parts(**parts: object) -> Tokenizer:
        tokenizer = llama()
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        return tokenizer

    suffix = Tokenizer(models.BPE(vocab={"a": 0, "a</w>": 1}, merges=[], end_of_word_suffix="</w>"))
    suffix.decoder = decoders.ByteLevel()
    plain = with_parts(decoder=decoders.ByteLevel(), normalizer=None, pre_tokenizer=None)
    plain.decoder = None
    refused(lambda: ByteTokenizer.from_tokenizer(with_parts(decoder=decoders.CTC())), "CTC")
    refused(lambda: ByteTokenizer.from_tokenizer(suffix), "end_of_word_suffix")
    refused(lambda: ByteTokenizer.from_tokenizer(plain), "without a decoder")

    class Custom:
        def pre_tokenize(self, text):
            pass

    custom = with_parts(pre_tokenizer=pre_tokenizers.PreTokenizer.custom(Custom()))
    refused(lambda: ByteTokenizer.from_tokenizer(custom), "JSON")


def test_a_decoder_that_does_not_undo_its_encoder_is_refused():
    tokenizer = Tokenizer(models.BPE(vocab={"<unk>": 0, "ab": 1}, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.ByteLevel()
    refused(lambda: ByteTokenizer.from_tokenizer(tokenizer), "not one byte")


def test_an_alphabet_that_the_decoder_does_not_know_is_masked_and_named():
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(byte_alphabet())}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.Replace("▁", " ")
    found = ByteTokenizer.from_tokenizer(tokenizer)
    assert found.lossy
    assert check(found, "a b é") == 4


def test_unknown_tokens_are_refused_with_a_suggestion():
    refused(lambda: ByteTokenizer.from_tokenizer(llama(), bos="<S>"), "bos", "'<S>'", "did you mean '<s>'")
    refused(lambda: ByteTokenizer.from_tokenizer(llama(), document_start="<s"), "document_start", "did you mean '<s>'")


def test_documents_that_are_no_plain_valid_text_are_refused():
    tokenizer = ByteTokenizer.from_tokenizer(llama())
    refused(lambda: tokenizer.encode(Document((Segment("a", "user", trained=False), Segment("b", "assistant")))), "2 segments")
    refused(lambda: tokenizer.encode(Document(())), "0 segments")
    refused(lambda: encode(tokenizer, "a\ud800"), "character 1", error=TextError)


# Folders -------------------------------------------------------------------------------------------------------------------------------


def test_load_reads_names_as_strings_and_as_objects(tmp_path):
    tokenizer = llama()
    tokenizer.post_processor = None
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert ByteTokenizer.load(tmp_path).start_ids == ()
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": "[PAD]"})
    )
    assert dict(ByteTokenizer.load(tmp_path).vocabulary.control) == {"unk": 0, "bos": 1, "eos": 2, "start": 1}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": None, "eos_token": {"content": "<s>"}}))
    assert dict(ByteTokenizer.load(tmp_path).vocabulary.control)["eos"] == 1
    assert ByteTokenizer.load(tmp_path, document_start="none").start_ids == ()
    refused(lambda: ByteTokenizer.load(tmp_path, document_start="<x>"), str(tmp_path), "document_start")


def test_load_agrees_with_from_tokenizer_on_a_saved_folder(tmp_path):
    folder = fakes.save_model(tmp_path / "model", fakes.metaspace_bpe())
    loaded = ByteTokenizer.load(folder)
    assert spelled(loaded, "for i in <s>é") == spelled(byte_tokenizer("metaspace_bpe"), "for i in <s>é")
    assert loaded.vocabulary.control["eos"] == 2


def test_load_adds_tokens_that_only_the_configuration_knows(tmp_path):
    llama().save(str(tmp_path / "tokenizer.json"))
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"added_tokens_decoder": {"264": {"content": "aaa", "special": False}, "1": {"content": "<s>"}}}))
    assert ByteTokenizer.load(tmp_path).vocabulary.bytes_of(264) == b"aaa"
    config.write_text(json.dumps({"added_tokens_decoder": {"300": {"content": "aaa"}}}))
    refused(lambda: ByteTokenizer.load(tmp_path), "'aaa'", "300", "264")


def test_add_bos_token_without_a_template(tmp_path):
    tokenizer = fakes.byte_bpe()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "!", "add_bos_token": True}))
    assert ByteTokenizer.load(tmp_path).start_ids == (tokenizer.token_to_id("!"),)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["no tokenizer.json"]),
        ({"tokenizer.model": "x"}, ["slow tokenizer", "tokenizer.model"]),
        ({"tokenizer.json": "{"}, ["tokenizer.json", "not JSON"]),
        ({"tokenizer.json": "[]"}, ["tokenizer.json", "expected an object"]),
        ({"tokenizer.json": None, "tokenizer_config.json": "{"}, ["tokenizer_config.json", "not JSON"]),
        ({"tokenizer.json": None, "special_tokens_map.json": "[]"}, ["special_tokens_map.json", "expected an object"]),
    ],
)
def test_bad_folders_are_refused(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(llama().to_str() if text is None else text)
    refused(lambda: ByteTokenizer.load(tmp_path), str(tmp_path), *words)


def test_a_missing_folder_is_refused(tmp_path):
    refused(lambda: ByteTokenizer.load(tmp_path / "nowhere"), "nowhere", "no such folder")
