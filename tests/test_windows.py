"""Windows: whole characters, at whitespace where there is some, short enough for every model, nothing lost."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse import windows
from lmfuse.bytes import ByteTokenizer
from lmfuse.conversation_windows import beginning
from lmfuse.errors import InputError, TextError, TokenizerError
from lmfuse.text import TextSpec, read_documents
from lmfuse.types import Document, Segment
from lmfuse.windows import best_cut, fit_windows, joins, origin_of
from tests.chat_templates import load, talk
from tests.fakes import KINDS, TEXT, byte_bpe, shared

TOKENIZERS = {name: ByteTokenizer.from_tokenizer(make(), unk="[UNK]" if name == "wordpiece" else None) for name, make in KINDS.items()}
REAL = ["gpt2", "llama2", "qwen2_5", "mistral", "gpt_neox", "t5", "bert_uncased"]


def cut(text: str, max_tokens: int, tokenizer: str = "byte_bpe", **options: int) -> list[str]:
    found = fit_windows([Document.plain(text, origin="file")], [TOKENIZERS[tokenizer]], [max_tokens], **options)
    return [window.segments[0].text for window in found.documents]


def num_tokens(tokenizer: ByteTokenizer, document: Document) -> int:
    return len(tokenizer.encode(document).ids)


# ------------------------------------------------------------------------------------------------------------------ by hand


@pytest.mark.parametrize(
    ("text", "start", "limit", "expected"),
    [
        (b"one two\n\nthree four", 0, 14, (9, "paragraph")),  # after the blank line
        (b"one two\nthree four", 0, 14, (8, "line")),  # after the line's end
        (b"one two three four", 0, 10, (7, "space")),  # before the space
        (b"one two three four", 0, 7, (7, "space")),  # a space may stand just behind the window
        (b"one\ttwo three", 0, 5, (3, "space")),
        (b"a\n\nbcdefghijklmn op", 0, 18, (16, "space")),  # a blank line that far back would waste the window
        (b"abcd\nfghijkl", 0, 11, (11, "character")),  # so would a line's end before the middle
        (b"abc efghijklmn", 0, 12, (3, "space")),  # a space may stand after a quarter
        (b"a bcdefghijklmnopq", 0, 16, (16, "character")),  # but not before
        ("éééé".encode(), 0, 3, (2, "character")),
        ("éééé".encode(), 2, 3, (4, "character")),  # at least one character
        ("🙂🙂".encode(), 0, 1, (4, "character")),
        ("aaaae\u0301".encode(), 0, 5, (4, "character")),  # e and its accent stay together
        ("aa👩\u200d🚀".encode(), 0, 9, (2, "character")),  # the parts of one emoji, too
        (b"abc\r\ndef", 0, 4, (3, "character")),
        (b"  a  b", 0, 5, (4, "space")),
    ],
)
def test_best_cut_by_hand(text, start, limit, expected):
    assert best_cut(text, start, limit) == expected


def test_windows_by_hand():
    """In byte windows of 12: a cut after a line, before a space, and the rest is not shorter than 4."""
    document = Document.plain("first line\nand a second one", "prose", "a.txt")
    found = fit_windows([document], [TOKENIZERS["byte_bpe"]], [100], max_bytes=12, min_bytes=4)
    assert [(window.segments[0].text, window.origin, window.domain) for window in found.documents] == [
        ("first line\n", "a.txt#0-11", "prose"),
        ("and a second", "a.txt#11-23", "prose"),
        (" one", "a.txt#23-27", "prose"),
    ]
    counted = {name: count for name, count in found.counters.items() if count}
    assert counted == {"documents_cut": 1, "cuts_at_line": 1, "cuts_at_space": 1}


def test_a_cut_moves_forward_rather_than_leave_a_short_rest():
    assert cut("aaaa bbbb cccc dd", 100, max_bytes=14, min_bytes=1) == ["aaaa bbbb cccc", " dd"]
    assert cut("aaaa bbbb cccc dd", 100, max_bytes=14, min_bytes=4) == ["aaaa bbbb", " cccc dd"]


def test_documents_that_fit_stay_as_they_are():
    documents = [Document.plain("", origin="a"), Document.plain("x", origin="b"), Document.plain("two words", origin="c")]
    found = fit_windows(documents, [TOKENIZERS["byte_bpe"]], [16], min_bytes=64)
    assert all(window is document for window, document in zip(found.documents, documents, strict=True))
    assert not any(found.counters.values())


# ------------------------------------------------------------------------------------------------------------------- oracle


def oracle_cut(text: str, start: int, limit: int) -> tuple[int, str]:
    """Look at every place between two characters and take the last one of the best kind that is far enough."""
    data = text.encode()
    places = [len(text[:i].encode()) for i in range(len(text) + 1)]
    allowed = [place for place in places if start < place <= limit]
    allowed = allowed or [min(place for place in places if place > start)]
    limit = allowed[-1]
    whole = [place for place in allowed if not joins(data, place)]
    half, quarter = start + (limit - start) // 2, start + (limit - start) // 4
    for kind, good in [
        ("paragraph", [p for p in whole if data[p - 2 : p] == b"\n\n" and p - 2 >= max(half, start + 1)]),
        ("line", [p for p in whole if data[p - 1 : p] == b"\n" and p - 1 >= max(half, start + 1)]),
        ("space", [p for p in whole if data[p : p + 1] == b" " and p >= quarter]),
        ("space", [p for p in whole if data[p : p + 1] == b"\t" and p >= quarter]),
        ("character", whole[-1:] or [limit]),
    ]:
        if good:
            return good[-1], kind
    raise AssertionError


@given(st.text(alphabet="ab \n\t\ré\u0301🙂\u200d", min_size=1, max_size=30), st.data())
def test_best_cut_equals_the_oracle(text, data):
    places = [len(text[:i].encode()) for i in range(len(text))]
    start = data.draw(st.sampled_from(places))
    limit = data.draw(st.integers(start + 1, len(text.encode())))
    assert best_cut(text.encode(), start, limit) == oracle_cut(text, start, limit)


# --------------------------------------------------------------------------------------------------------------- invariants

PIECES = [
    *TEXT,
    "word ",
    "\n\n",
    " ",
    "naïve café",
    "東京東京",
    "e\u0301",
    "🙂👩\u200d🚀",
    "\x00",
    "ﬁ①",
    "0123456789" * 8,
    "<unk></s>",
    "\r\n",
    "▁",
]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), min_size=1, max_size=4),
    st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3, unique=True),
    st.integers(12, 80),
    st.sampled_from([None, 40]),
    st.sampled_from([1, 20, 64]),
    st.sampled_from([60, 2**18]),
)
def test_windows_join_to_their_document_and_fit_every_model(texts, names, max_tokens, max_bytes, min_bytes, block_bytes):
    tokenizers = [TOKENIZERS[name] for name in names]
    documents = [Document.plain(text, f"domain{i}", f"file{i}") for i, text in enumerate(texts)]
    limits = [max_tokens + i for i in range(len(names))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "BLOCK_BYTES", block_bytes)
        found = fit_windows(documents, tokenizers, limits, max_bytes=max_bytes, min_bytes=min_bytes)
        alone = [fit_windows([document], tokenizers, limits, max_bytes=max_bytes, min_bytes=min_bytes) for document in documents]
    assert found.documents == [window for one in alone for window in one.documents]  # company changes nothing
    for i, document in enumerate(documents):
        mine = [window for window in found.documents if window.domain == f"domain{i}"]
        assert b"".join(window.trained_bytes for window in mine) == document.trained_bytes
        place = 0
        for window in mine:
            size = len(window.trained_bytes)
            assert window.origin == (f"file{i}" if len(mine) == 1 else f"file{i}#{place}-{place + size}")
            place += size
            assert not max_bytes or size <= max_bytes or len(window.segments[0].text) == 1
            for tokenizer, limit in zip(tokenizers, limits, strict=True):
                assert num_tokens(tokenizer, window) <= limit


def test_long_text_without_any_space_is_cut_between_characters():
    text = "e\u0301" * 500
    found = cut(text, 40)
    assert "".join(found) == text
    assert not any(unicodedata.combining(window[0]) for window in found)


class Growing(ByteTokenizer):
    """A tokenizer that writes some ten tokens more for a text that begins with a space: more than anyone would allow for."""

    def encode_many(self, documents):
        texts = [document.segments[0].text for document in documents]
        return super().encode_many([Document.plain("~^" * 5 * text.startswith(" ") + text) for text in texts])


def test_a_window_that_grows_on_its_own_is_halved():
    growing = Growing.from_tokenizer(byte_bpe())
    text = " ".join(f"w{i}" for i in range(200))[:-1]
    found = fit_windows([Document.plain(text)], [growing], [24], min_bytes=1)
    assert "".join(window.segments[0].text for window in found.documents) == text
    assert found.counters["windows_halved"] > 10
    assert max(num_tokens(growing, window) for window in found.documents) <= 24


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers(name):
    tokenizer = ByteTokenizer.load(shared("assets", "tokenizers", name))
    data = shared("assets", "data", "wikitext2", "valid.txt").read_bytes()[:60_000].decode(errors="ignore")
    code = Path(windows.__file__).read_text()
    documents = [Document.plain(text, origin=str(i)) for i, text in enumerate((data, code, "naïve 東京 🙂 ﬁ " * 300, "x" * 5000))]
    found = fit_windows(documents, [tokenizer], [128])
    assert "".join(window.segments[0].text for window in found.documents) == "".join(d.segments[0].text for d in documents)
    lengths = [num_tokens(tokenizer, window) for window in found.documents]
    assert max(lengths) <= 128
    assert sum(lengths) / len(lengths) > 80  # the room is used
    assert found.counters["windows_halved"] < len(lengths) / 20


def test_many_short_documents_from_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(line.strip() for line in TEXT))
    documents = list(read_documents(TextSpec(domain="d", path="a.txt", separator="\n\n"), tmp_path))
    found = fit_windows(documents, list(TOKENIZERS.values()), [32] * 4)
    assert {window.origin.split("#")[0] for window in found.documents} == {document.origin for document in documents}


# ------------------------------------------------------------------------------------------------------------- wrong inputs


def test_windows_too_small_for_anything_are_refused():
    with pytest.raises(TextError, match="windows of 1 tokens leave no room for text after the start token"):
        cut("x", 1)
    with pytest.raises(TextError, match="one character takes more tokens than a model can read"):
        cut("\U00012345" * 5, 4)  # start token and four bytes


def test_a_text_in_several_segments_is_refused():
    with pytest.raises(TextError, match=r"a\.txt: 2 segments, expected one"):
        fit_windows([Document((Segment("a"), Segment("b")), origin="a.txt")], [TOKENIZERS["byte_bpe"]], [16])


def test_one_limit_for_each_tokenizer():
    with pytest.raises(ValueError, match="1 tokenizers, 2 limits"):
        fit_windows([], [ByteTokenizer.from_tokenizer(byte_bpe())], [16, 16])


# ------------------------------------------------------------------------------------------------------------ conversations


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[ByteTokenizer]:
    folder = tmp_path_factory.mktemp("readers")
    return [load(folder / family, KINDS[kind](), family) for family, kind in (("chatml", "byte_bpe"), ("gemma", "metaspace_bpe"))]


LONG = talk("the dog", "sleeps", "the quick", "brown fox jumps", "over", "the lazy dog, and the dog sleeps on.")


def fitted(document: Document, readers: list[ByteTokenizer], limits: list[int]):
    found = fit_windows([document], readers, limits)
    return found.documents, {name.removeprefix("conversations_"): n for name, n in found.counters.items() if "conversations" in name}, found


def test_a_conversation_keeps_its_longest_beginning_that_fits_by_hand(readers):
    whole, second, first = (num_tokens(readers[0], beginning(LONG, n)) for n in (3, 2, 1))
    assert whole > second > first
    nothing = {"shortened": 0, "left_out": 0, "unfit": 0}
    for limit, answers in ((whole, 3), (whole - 1, 2), (second, 2), (second - 1, 1), (first, 1)):
        documents, counters, _ = fitted(LONG, readers[:1], [limit])
        assert documents == [beginning(LONG, answers)]
        assert counters == nothing | {"shortened": int(answers < 3)}
    documents, counters, found = fitted(LONG, readers[:1], [first - 1])
    assert documents == []
    assert counters == nothing | {"left_out": 1}
    assert found.left_out == (f"talk.json:1: its first exchange has {first} tokens of chatml, at most {first - 1} fit",)
    assert fitted(LONG, readers[:1], [9])[2].left_out[0].endswith(" tokens of chatml, at most 9 fit")


@settings(max_examples=40, deadline=None)
@given(limits=st.tuples(st.integers(30, 200), st.integers(30, 200)))
def test_what_is_kept_fits_every_model_and_one_exchange_more_does_not(readers, limits):
    documents, _, _ = fitted(LONG, readers, list(limits))
    kept = sum(segment.trained for segment in documents[0].segments) if documents else 0
    fits = [all(num_tokens(r, beginning(LONG, n)) <= limit for r, limit in zip(readers, limits, strict=True)) for n in (1, 2, 3)]
    assert kept == max((n for n in (1, 2, 3) if fits[n - 1]), default=0)
    assert documents == ([beginning(LONG, kept)] if kept else [])


def test_conversations_and_texts_keep_their_order(readers):
    plain = Document.plain(" ".join(TEXT), origin="a.txt")
    short = talk("a", "b", origin="t:2")
    found = fit_windows([short, plain, LONG, short], readers, [100, 200])
    origins = [origin_of(window) for window in found.documents]
    assert origins == ["t:2", *["a.txt"] * (len(origins) - 3), "talk.json:1", "t:2"]
    assert b"".join(w.trained_bytes for w in found.documents if not w.is_conversation) == plain.trained_bytes
    assert found.counters["documents_cut"] == 1
    assert "conversations_unfit" not in fit_windows([plain], readers, [100, 200]).counters


def test_what_a_template_cannot_express_stops_or_is_left_out_by_name(readers):
    system = talk("a", "b", system="c", origin="t:7")
    with pytest.raises(InputError, match="model gemma's chat template cannot express conversation t:7: System role not supported"):
        fit_windows([LONG, system], readers, [512, 512])
    found = fit_windows([LONG, system], readers, [512, 512], unfit="leave_out")
    assert found.documents == [LONG]
    assert found.counters["conversations_unfit"] == 1
    assert found.left_out == ("t:7: gemma's chat template cannot express it: System role not supported",)


def test_conversations_need_a_chat_template():
    with pytest.raises(TokenizerError, match="without a chat template"):
        fit_windows([LONG], [TOKENIZERS["byte_bpe"]], [512])
