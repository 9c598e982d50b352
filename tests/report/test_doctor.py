"""The page of ``lmfuse align``: whole, without requests, and safe whatever the text and the tokenizers hold."""

import copy
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse.doctor import compare
from lmfuse.report.doctor import COLUMNS, KINDS, _cells, render, write_page
from tests.doctor.build import ODD, documents, tokenizer
from tests.fakes import TEXT


class Page(HTMLParser):
    """Collects tags, attributes and text; complains about tags that are not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def found():
    made = compare(["<b>evil</b>\u202e", "b"], [tokenizer("byte_bpe"), tokenizer("wordpiece")], documents(*TEXT, *ODD), 12)
    made["text"]["name"] = "odd <i>.txt"
    return made


def strips(page: Page) -> list[dict[str, str]]:
    return [attributes for _, attributes in page.seen if attributes.get("class") == "strip"]


def test_the_page_is_whole_and_asks_for_nothing(found):
    page = Page(render(found))
    assert {tag for tag, _ in page.seen}.isdisjoint({"script", "img", "link", "iframe", "object", "form", "base", "a"})
    for _, attributes in page.seen:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "href", "action")}
    assert "default-src 'none'" in next(a["content"] for _, a in page.seen if a.get("http-equiv"))
    assert "url(" not in render(found)
    assert "@import" not in render(found)


def test_everything_from_outside_is_escaped_and_visible(found):
    page = render(found)
    assert "<b>" not in page.replace("<b>%", "").split("<h1>")[1].split("</h1>")[0]
    assert "&lt;b&gt;evil" in page
    assert "odd &lt;i&gt;.txt" in page
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", page)


def test_hostile_token_strings_are_harmless(found):
    hostile = copy.deepcopy(found)
    evil = '"><script>alert(1)</script>\u202e\x00' + "y" * 10_000
    for side in ("target", "source"):
        hostile[side] |= {"name": evil, "lossy": evil, "start": [{"id": 1, "string": evil}]}
        hostile[side]["other_control"] = {"count": 1, "examples": [{"id": 2, "string": evil}]}
        hostile[side]["control"] = {"end_of_turn": {"id": 3, "string": evil}}
    hostile["control"] = [{"class": "eos", "source": {"id": 1, "string": evil}, "target": None}]
    for line in hostile["lines"]:
        for chunk in line["chunks"]:
            for token in chunk["target"] + chunk["source"]:
                token["string"] = evil
    page = render(hostile)
    assert "<script" not in page
    assert len(Page(page).seen) < 200_000
    assert "y" * 500 not in page


def test_blocks_lie_on_the_bytes_of_their_tokens():
    """hel|lo over hello: columns 2 to 5 and 5 to 7 above, 2 to 7 below, the sign for n:1 between them (column 1 holds the names)."""
    sides = [{"id": 1, "string": s, "start": a, "end": b, "prefix": 0} for s, a, b in (("hel", 0, 3), ("lo", 3, 5), ("hello", 0, 5))]
    chunk = {"kind": "n:1", "start": 0, "end": 5, "shown_end": 5, "bytes": b"hello".hex(), "num_target": 2, "num_source": 1,
             "target": sides[:2], "source": sides[2:]}  # fmt: skip
    line = {"why": "worst", "origin": "t", "document": 0, "before": False, "after": False, "chunks": [chunk]}
    base = compare(["a", "b"], [tokenizer("byte_bpe")] * 2, documents("the dog"), 1)
    page = Page(render(base | {"lines": [line]}))
    places = [(a["class"].split()[0], a["style"]) for _, a in page.seen if a.get("class", "").split()[:1] in (["b"], ["link"])]
    assert places == [
        ("b", "grid-row: 1; grid-column: 2 / 5"),
        ("b", "grid-row: 1; grid-column: 5 / 7"),
        ("b", "grid-row: 3; grid-column: 2 / 7"),
        ("link", "grid-row: 2; grid-column: 2 / 7"),
    ]
    titles = [a["title"] for _, a in page.seen if a.get("class") == "b fine"]
    assert titles[0].startswith("target token 1 hel\nbytes 0 to 3: 68 65 6c\nspan n:1: 2 target and 1 source tokens")
    assert ">2:1" in page.text


def test_strips_are_short_and_both_rows_are_as_wide(found):
    page = Page(render(found))
    widths = [int(re.search(r"repeat\((\d+)", strip["style"])[1]) for strip in strips(page)]
    spans = [chunk["shown_end"] - chunk["start"] for line in found["lines"] for chunk in line["chunks"]]
    assert max(widths) <= max(COLUMNS, *spans)
    for row in (1, 3):
        columns = [
            [int(n) for n in re.search(r"grid-column: (\d+) / (\d+)", a["style"]).groups()]
            for _, a in page.seen
            if a.get("class", "").startswith("b ") and f"grid-row: {row};" in a["style"]
        ]
        assert sum(last - first for first, last in columns) == sum(widths), "every byte is shown on each side, as a token or as lost"


def test_every_kind_has_a_sign_of_its_own(found):
    assert len({sign for _, sign, _ in KINDS.values()}) == len({css for css, _, _ in KINDS.values()}) == 5
    page = render(found)
    for kind, (_, _, meaning) in KINDS.items():
        assert f"{kind}: {meaning}" in page


def test_light_and_dark_name_the_same_colours(found):
    page = render(found)
    light, dark = (set(re.findall(r"(--\w+):", part)) for part in re.findall(r":root \{(.*?)\}", page, re.DOTALL))
    assert light == dark
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize("scheme", [0, 1])
def test_ink_is_readable_on_every_colour(found, scheme):
    """WCAG AA: a contrast of 4.5 between the text and each background, computed from the page's own colours."""
    colours = dict(re.findall(r"--(\w+): (#\w+)", re.findall(r":root \{(.*?)\}", render(found), re.DOTALL)[scheme]))

    def light(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for background in ("same", "wide", "fine", "cross", "masked", "page", "raised"):
        low, high = sorted((light(colours["ink"]), light(colours[background])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, background


@settings(max_examples=10, deadline=None)
@given(st.text(min_size=1, max_size=120), st.sampled_from(["byte_bpe", "unigram", "wordpiece"]))
def test_any_text_has_a_page(text, source):
    made = compare(["a", "b"], [tokenizer("metaspace_bpe"), tokenizer(source)], documents(text), 3)
    page = Page(render(made))
    assert strips(page)


@given(st.binary(max_size=60))
def test_cells_are_as_wide_as_their_bytes(data):
    assert sum(cell["width"] for cell in _cells(data)) == len(data)


def test_a_page_is_written_whole_or_not_at_all(found, tmp_path):
    path = write_page(found, tmp_path / "page.html")
    assert path.read_text(encoding="utf-8") == render(found)
    with pytest.raises(OSError, match="nowhere"):
        write_page(found, tmp_path / "nowhere" / "page.html")
