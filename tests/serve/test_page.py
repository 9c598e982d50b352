"""The chat page, in a real browser."""

import re
import urllib.parse

import pytest

from lmfuse.serve.gate import Access
from lmfuse.serve.intake import Limits
from lmfuse.serve.page import page_text, policy
from lmfuse.writing import Passage
from tests.serve.browser import CHROMIUM, browser
from tests.serve.running import serving, until
from tests.serve.writers import Failing, Story

HOSTILE = Story(
    "hostile",
    ("<b>a</b>", "b"),
    (
        Passage("<img src=x onerror=document.title='taken'>", "<b>a</b>", {"<b>a</b>": 0.25, "b": 1.5}, {"<b>a</b>": "x", "b": "<i>y</i>"}),
        Passage("<script>document.title='taken'</script>\n\ndata: x", "b"),
    ),
)
TWO = Story(
    passages=(
        Passage("The two", "a", {"a": 0.412, "b": 0.733}, {"a": "The two", "b": "Both"}),
        Passage(" of us wrote this.", "b", {"a": 1.5, "b": 0.2}, {"a": "", "b": " of us wrote this."}),
    )
)
WORDS = "[...it.childNodes].filter(part => part.nodeType === Node.TEXT_NODE).map(part => part.textContent).join('')"  # without its name
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def say(page, text):
    page.run("document.getElementById('text').focus()")
    page.type(text)
    page.press_enter()


def answered(page):
    page.until("document.getElementById('send').textContent === 'send' && document.querySelectorAll('.assistant, .error').length > 0")


def test_the_page_loads_nothing_and_writes_no_html():
    text = page_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|\bon\w+=\"", text)
    assert not re.search(r"https?://|//cdn|src=|@import|url\(", text)
    assert "unsafe" not in policy()
    assert policy().count("'sha256-") == 2  # one script, one style


@needs_browser
def test_a_chat_shows_who_wrote_what(page, tmp_path):
    with serving(TWO) as running:
        page.open(running.url)
        page.until("document.getElementById('model').value === 'story'")
        say(page, "Who are you?")
        answered(page)
        assert page.run(f"[...document.querySelectorAll('.passage')].map(it => [it.className, {WORDS}])") == [
            ["passage a0", "The two"], ["passage a1", " of us wrote this."],
        ]  # fmt: skip
        colours = page.run("[...document.querySelectorAll('.passage')].map(it => getComputedStyle(it).backgroundColor)")
        assert len(set(colours)) == 2
        page.hover(".passage")
        shown = page.run("document.getElementById('tip').innerText")
        assert "by a" in shown
        assert re.search(r"a\s+0\.412\s+“The two”\s+b\s+0\.733\s+“Both”", shown)
        page.hover(".passage.a1")
        assert "(end)" in page.run("document.getElementById('tip').innerText")
        assert page.run("document.getElementById('legend').innerText").split("\n")[0].startswith("a 28%")
        say(page, "And?")
        page.until("document.querySelectorAll('.passage').length === 4")
        answered(page)
        assert [segment.text for segment in TWO.prompts[-1]] == ["Who are you?", "The two of us wrote this.", "And?"]
        assert page.picture(tmp_path / "page.png").stat().st_size > 5000
        assert page.complaints == []
        assert {urllib.parse.urlsplit(url).netloc for url in page.requested if not url.startswith(("data:", "about:"))} == {
            running.url.removeprefix("http://")
        }


@needs_browser
def test_text_and_names_are_text_whatever_they_say(page):
    with serving(HOSTILE) as running:
        page.open(running.url)
        page.until("document.getElementById('model').value === 'hostile'")
        say(page, "<img src=x onerror=document.title='taken'>")
        answered(page)
        page.hover(".passage")
        assert page.run("document.title") == "lmfuse"
        assert page.run("document.querySelectorAll('main img, main script, main b, #tip i, #legend b').length") == 0
        texts = page.run(f"[...document.querySelectorAll('.passage')].map(it => {WORDS})")
        assert texts == [passage.text for passage in HOSTILE.passages]


@needs_browser
def test_stop_stops_the_writer(page):
    story = Story(endless=True, pause_seconds=0.01)
    with serving(story) as running:
        page.open(running.url)
        page.until("document.getElementById('model').value === 'story'")
        say(page, "Go on for ever")
        page.until("document.querySelectorAll('.passage').length > 5")
        page.run("document.getElementById('send').click()")
        until(lambda: story.over == 1)
        answered(page)
        assert "Stopped." in page.run("document.getElementById('log').innerText")
        assert page.run("chat.messages.length") == 2  # what was said stays said


@needs_browser
def test_errors_are_shown(page):
    with serving(Failing(RuntimeError("secret"), after=1)) as running:
        page.open(running.url)
        page.until("document.getElementById('model').value === 'failing'")
        say(page, "Hi")
        answered(page)
        assert "internal error (request req_" in page.run("document.querySelector('.error').textContent")


@needs_browser
def test_a_new_chat_while_an_answer_comes_is_empty(page):
    story = Story(endless=True, pause_seconds=0.01)
    with serving(story) as running:
        page.open(running.url)
        page.until("document.getElementById('model').value === 'story'")
        say(page, "Go on for ever")
        page.until("document.querySelectorAll('.passage').length > 5")
        page.run("document.getElementById('fresh').click()")
        until(lambda: story.over == 1)
        page.until("document.getElementById('send').textContent === 'send'")
        assert page.run("[document.getElementById('log').innerText, document.getElementById('legend').innerText]") == ["", ""]
        page.run("document.getElementById('tokens').value = 3")
        say(page, "Anew")
        page.until("document.querySelectorAll('.passage').length === 3")
        answered(page)
        assert [segment.text for segment in story.prompts[-1]] == ["Anew"]
        assert page.run("chat.messages.map(message => message.role)") == ["user", "assistant"]
        assert "Stopped." not in page.run("document.getElementById('log').innerText")


@needs_browser
@pytest.mark.parametrize(("after", "kept"), [(0, False), (1, True)], ids=["refused", "broken off"])
def test_a_message_that_was_not_answered_can_be_sent_again(page, after, kept):
    with serving(Failing(RuntimeError("x"), after=after)) as running:
        page.open(running.url)
        page.until("document.getElementById('model').value === 'failing'")
        say(page, "My long thought")
        answered(page)
        assert page.run("document.getElementById('text').value") == ("" if kept else "My long thought")
        assert page.run("chat.messages.length") == (2 if kept else 0)
        assert ("My long thought" in page.run("document.getElementById('log').innerText")) is kept
        assert page.run("document.querySelectorAll('.error').length") == 1


@needs_browser
def test_empty_fields_are_left_to_the_server(page):
    story = Story()
    with serving(story, limits=Limits(max_tokens=77), temperature=0.5) as running:
        page.open(running.url)
        page.until("document.getElementById('model').value === 'story'")
        page.run("document.getElementById('tokens').value = document.getElementById('temperature').value = ''")
        say(page, "Hi")
        page.until("document.querySelectorAll('.passage').length === 3")
        assert (story.settings[-1].max_tokens, story.settings[-1].temperature) == (77, 0.5)


@needs_browser
def test_an_empty_answer_is_said_to_be_one(page):
    story = Story(passages=())
    with serving(story) as running:
        page.open(running.url)
        page.until("document.getElementById('model').value === 'story'")
        say(page, "Hi")
        page.until("document.querySelector('.assistant')?.innerText.includes('(no answer)')")
        answered(page)
        say(page, "And?")
        until(lambda: story.begun == 2)
        assert [segment.text for segment in story.prompts[-1]] == ["Hi", "", "And?"]


@needs_browser
def test_a_server_that_is_gone_is_told_of(page):
    with serving(TWO) as running:
        page.open(running.url)
        page.until("document.getElementById('model').value === 'story'")
    page.run("document.getElementById('model').replaceChildren()")
    say(page, "Hi")
    page.until("document.querySelector('.error')?.textContent.startsWith('The server does not answer')")
    page.until("document.getElementById('send').textContent === 'send'")
    assert page.run("document.getElementById('text').value") == "Hi"
    assert not [each for each in page.complaints if "Uncaught" in each]
    page.complaints.clear()


@needs_browser
def test_the_box_grows_with_its_text(page):
    with serving(TWO) as running:
        page.open(running.url)
        page.run("document.getElementById('text').focus()")
        height = "document.getElementById('text').offsetHeight"
        low = page.run(height)
        page.type("one\ntwo\nthree\nfour")
        high = page.run(height)
        assert high > low + 50
        page.type("\nmore" * 50)
        assert high < page.run(height) < 220
        page.until("document.getElementById('model').value === 'story'")
        page.press_enter()
        answered(page)
        assert page.run(height) == low


@needs_browser
def test_scores_can_be_seen_without_a_mouse(page):
    with serving(TWO) as running:
        page.open(running.url)
        page.until("document.getElementById('model').value === 'story'")
        say(page, "Hi")
        page.until("document.querySelectorAll('.passage').length === 2")
        shown = "document.getElementById('tip').style.display + document.getElementById('tip').innerText"
        page.run("document.querySelector('.passage').focus()")
        assert "0.412" in page.run(shown)
        page.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
        assert page.run(shown).startswith("none")
        x, y = page.run("(box => [box.left + 9, box.top + 9])(document.querySelectorAll('.passage')[1].getClientRects()[0])")
        page.command("Emulation.setTouchEmulationEnabled", enabled=True)
        page.command("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        page.command("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        page.until("document.getElementById('tip').innerText.startsWith('by b')")
        page.command("Emulation.setTouchEmulationEnabled", enabled=False)
        page.run("document.getElementById('text').focus()")
        assert page.run(shown).startswith("none")


@needs_browser
def test_a_name_stands_at_the_words_of_its_author(page):
    """Not at the end of the line before, when a passage begins with new lines."""
    story = Story(passages=(Passage("One.", "a"), Passage("\n\nTwo.", "b"), Passage("\n", "a"), Passage("Three.", "a")))
    with serving(story) as running:
        page.open(running.url)
        page.until("document.getElementById('model').value === 'story'")
        page.run("document.getElementById('names').click()")
        say(page, "Hi")
        page.until("document.querySelectorAll('.passage').length === 4")
        lines = page.run("document.querySelector('.assistant').innerText").split("\n")
        assert [line.replace(" ", "") for line in lines[-4:]] == ["aOne.", "", "bTwo.", "aThree."]


@needs_browser
def test_a_key_is_asked_for_where_one_is_needed(page):
    with serving(TWO, access=Access("a-key")) as running:
        page.open(running.url)
        page.until("!document.getElementById('keyfield').hidden")
        page.until("document.activeElement.id === 'key'")
        page.type("wrong")
        page.press_enter()
        page.until("document.querySelector('.error')?.textContent === 'incorrect API key'")
        page.run("document.getElementById('key').select()")
        page.type("a-key")
        page.press_enter()
        page.until("document.getElementById('model').value === 'story'")
        say(page, "Hi")
        page.until("document.querySelectorAll('.passage').length === 2")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page, scheme):
    """Contrast of at least 4.5 on every colour of an author (WCAG 2.1, AA)."""
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    with serving(TWO) as running:
        page.open(running.url)
        ratios = page.run(
            """(() => {
              const probe = document.createElement("span");
              document.body.append(probe);
              const light = value => { probe.style.color = value; const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number);
                const linear = parts.slice(0, 3).map(each => (each /= 255) <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
                return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]; };
              const ink = light("var(--ink)");
              return ["--paper", "--field", ...Array.from({length: 8}, (_, index) => "--a" + index)].map(name => {
                const ground = light("var(" + name + ")");
                return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05); });
            })()"""
        )
    assert len(ratios) == 10
    assert min(ratios) >= 4.5
