"""Going on with a text that is cut into tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse.bytes import ByteTokenizer
from lmfuse.generate.spelling import Spelling, tail_start
from lmfuse.types import Document
from tests.fakes import KINDS, TEXT, byte_bpe, metaspace_bpe, unigram, wordpiece
from tests.generate.table_models import word_tokenizer

TOKENIZERS = {name: ByteTokenizer.from_tokenizer(make()) for name, make in KINDS.items() if name != "wordpiece"}


class Text:
    """A text that grows, with its tokens."""

    def __init__(self, spelling):
        self.spelling, self.data, self.ids, self.ends = spelling, b"", [], []

    def add(self, more):
        spelled = self.spelling.go_on(self.data, self.ends, [more])[0]
        self.ids = [*self.ids[: spelled.keep], *spelled.ids]
        self.ends = [*self.ends[: spelled.keep], *spelled.ends]
        self.data += more
        return spelled

    @property
    def written(self):
        return b"".join(map(self.spelling.tokenizer.vocabulary.bytes_of, self.ids))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.one_of(st.sampled_from([*"".join(TEXT).split(), " ", "\n", "  ", "12", "é"]), st.text(max_size=5)), max_size=12))
def test_the_tokens_always_write_the_text(name, parts):
    text = Text(Spelling(TOKENIZERS[name]))
    for part in parts:
        try:
            more = part.encode()
        except UnicodeEncodeError:  # a lone surrogate is no text
            continue
        if more:
            text.add(more)
        assert text.written == text.data
        assert len(text.ids) == len(text.ends)
        assert text.ends == sorted(text.ends)
        assert not text.ends or text.ends[-1] == len(text.data)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_in_words_has_the_tokens_of_the_whole_text(name):
    """The oracle is the tokenizer itself on the whole text."""
    whole = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. Anna has 12 apples and buys 7 more."
    words = [whole.split(" ")[0], *(f" {word}" for word in whole.split(" ")[1:])]
    tokenizer = TOKENIZERS[name]
    dummy = bool(tokenizer.encode(Document.plain("a")).ids[-1] == tokenizer.encode(Document.plain("a a")).ids[-1])
    text = Text(Spelling(tokenizer, b" " if dummy else b"", dummy=dummy))
    for word in words:
        text.add(word.encode())
    assert text.ids == tokenizer.encode(Document.plain(whole)).ids.tolist()[len(tokenizer.start_ids) :]
    assert dummy == (name != "byte_bpe")


def test_only_a_few_words_are_encoded_again(monkeypatch):
    tokenizer = ByteTokenizer.from_tokenizer(byte_bpe())
    asked = []
    pieces = tokenizer.pieces
    monkeypatch.setattr(tokenizer, "pieces", lambda strings: asked.extend(strings) or pieces(strings))
    text = Text(Spelling(tokenizer))
    for place in range(400):
        text.add(f" word{place % 7}".encode())
    assert max(map(len, asked)) <= 4 * 6 + 6 + 6
    run = Text(Spelling(tokenizer))
    for _ in range(300):  # a language without spaces
        run.add("北".encode())
    assert max(map(len, asked)) <= 64 + 3 + 3


def test_tokens_that_reach_over_the_end_of_the_text_are_replaced():
    tokenizer = ByteTokenizer.from_tokenizer(word_tokenizer([" to", " day", " today"]))
    text = Text(Spelling(tokenizer))
    first = text.add(b" to")
    assert (first.keep, first.ends) == (0, (3,))
    second = text.add(b" to")
    assert (second.keep, second.ends) == (1, (6,))
    third = text.add(b"day")
    assert (third.keep, third.ends) == (1, (9,))
    assert text.ids[-1] == tokenizer.pieces([b" today"])[0][0]


def test_tokens_that_their_author_cut_otherwise_stay_where_nothing_forces_them():
    tokenizer = ByteTokenizer.from_tokenizer(word_tokenizer([" the", " cat"]))
    letters = [tokenizer.pieces([bytes([byte])])[0][0] for byte in b" the"]
    text = Text(Spelling(tokenizer))
    text.data, text.ids, text.ends = b" the", letters, [1, 2, 3, 4]
    assert text.add(b" cat").keep == 4
    assert text.ids[:4] == letters


def test_a_dummy_prefix_is_written_but_is_no_text():
    tokenizer = ByteTokenizer.from_tokenizer(metaspace_bpe())
    spelled = Spelling(tokenizer, b" ", dummy=True).go_on(b"", [], [b"The dog"])[0]
    assert b"".join(map(tokenizer.vocabulary.bytes_of, spelled.ids)) == b" The dog"
    assert spelled.ends[-1] == 7


def test_a_prompt_shows_how_the_text_begins_and_is_never_changed():
    tokenizer = ByteTokenizer.from_tokenizer(word_tokenizer([" to", " today", " go"]))
    after = Spelling(tokenizer, b" to")
    assert after.go_on(b"", [], [b" go"])[0].ends == (3,)
    joined = after.go_on(b"", [], [b"day"])[0]  # " today" is one token, but " to" is the prompt's
    assert (joined.keep, joined.ends) == (0, (1, 2, 3))


def test_what_cannot_be_written():
    spelling = Spelling(ByteTokenizer.from_tokenizer(wordpiece()))
    assert spelling.go_on(b"", [], ["naïve".encode(), " 中".encode()]) == [None, None]
    assert spelling.cuts(b"", [], "中".encode()) == frozenset()


def test_cuts_are_counted_from_the_end_of_the_text():
    spelling = Spelling(ByteTokenizer.from_tokenizer(word_tokenizer([" to", " day"])))
    assert spelling.cuts(b" to", [3], b" day to") == {4, 7}


def test_the_tail_begins_with_a_whole_character():
    text = "北".encode() * 40
    assert tail_start(text, list(range(1, 121))) % 3 == 0
    assert tail_start(b"", []) == 0


def test_unigram_digits_stay_apart():
    tokenizer = ByteTokenizer.from_tokenizer(unigram())
    text = Text(Spelling(tokenizer))
    for part in (b" 12", b"7", b".5"):
        text.add(part)
    assert text.written == b" 127.5"
