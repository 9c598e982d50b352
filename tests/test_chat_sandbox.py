"""Templates from strangers: what is honest is rendered, what is not ends in one line that names the model."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lmfuse import chat_sandbox
from lmfuse.chat_sandbox import ChatSandbox
from lmfuse.errors import InputError

TALK = [("user", "Hi"), ("assistant", "Hello")]
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def sandbox(source: str, **variables: str) -> ChatSandbox:
    return ChatSandbox("the model", source, variables)


def test_a_template_by_hand():
    source = "{% for m in messages %}<{{ m['role'] }}>{{ m.content }}{{ eos_token }}{{ bos_token }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    talk = sandbox(source, eos_token="</s>")
    assert talk.render(TALK).text == "<user>Hi</s><assistant>Hello</s>"
    assert talk.render(TALK[:1], prompt=True).text == "<user>Hi</s><a>"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}\n  {% if loop.first %}\nA{{ m.content }}\n  {% else %}\nB\n  {%- endif %}\n{% endfor %}",  # blocks are trimmed
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",  # loop controls
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ {'é': '<&>'} | tojson }}",
        "{% generation %}{{ messages[1].content }}{% endgeneration %}",
        "{% set ns = namespace(found=false) %}{% set ns.found = true %}{{ ns.found }}{{ dict(a=1) }}",
        "{% macro say(m) %}{{ m.role | upper }}{% endmacro %}{{ say(messages[0]) }}{{ tools is none }}{{ documents is none }}{{ undefined_token }}",
        "{{ messages | map(attribute='content') | join(', ') }}{{ messages[-1]['content'].split('l')[0].strip() }}",
    ],
)
def test_honest_templates_write_what_they_write_in_transformers(source):
    from transformers.utils.chat_template_utils import render_jinja_template

    said = [[{"role": role, "content": text} for role, text in TALK]]
    wanted, _ = render_jinja_template(said, chat_template=source)
    found = sandbox(source).render(TALK)
    assert (found.text, found.problem) == (wanted[0], "")


def test_today_is_always_the_same_day():
    assert sandbox("{{ strftime_now('%d %b %Y') }}").render(TALK).text == "26 Jul 2024"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ raise_exception('System role\n\x1b[0m not supported') }}", "System role [0m not supported"),
        ("{{ messages[7].role }}", "list object has no element 7"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
        ("{% include 'x' %}", "no loader"),
        ("{% import 'x' as y %}", "no loader"),
        ("{{ messages | missing_attribute }}", None),
    ],
)
def test_what_a_template_refuses_is_its_answer(source, problem):
    if problem is None:
        with pytest.raises(InputError, match=r"its chat template cannot be read: .*missing_attribute"):
            sandbox(source).render(TALK)
    else:
        found = sandbox(source).render(TALK)
        assert problem in found.problem
        assert found.problem.isprintable()
        assert found.text == ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LOOP, "does not end in 0 s of processor time"),
        ("{{ 'x' * 10**10 }}", "needs too much memory"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "writes more than 1,048,632 characters"),
        ("{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", "needs too much memory"),
        ("{{ ''.__class__.__mro__ }}", "does what a template may not: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "does what a template may not"),
        ("{{ raise_exception.__globals__['os'].getpid() }}", "does what a template may not: access to attribute '__globals__'"),
        ("{{ self.__init__.__code__ }}", "does what a template may not"),
        ("{% set ns = namespace(__class__=1) %}", "does what a template may not: a namespace holds no '__class__'"),
        ("{% for m in %}", "cannot be read: Expected an expression"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be read: maximum recursion depth"),
    ],
)
def test_bombs_and_escapes_end_in_one_line_that_names_the_model(source, message, monkeypatch):
    monkeypatch.setattr(chat_sandbox, "CPU_SECONDS", 0 if source == LOOP else 60)  # the child adds one
    begun = time.monotonic()
    with pytest.raises(InputError) as caught:
        sandbox(source).render(TALK)
    assert str(caught.value).startswith(f"model the model: its chat template {message}")
    assert "\n" not in str(caught.value)
    assert "chat_template" in caught.value.hint
    assert time.monotonic() - begun < 50


def test_what_differs_from_run_to_run_is_not_written():
    with pytest.raises(InputError, match=r"its chat template cannot be read: No filter named 'random'"):
        sandbox("{{ [1, 2] | random }}").render(TALK)
    assert "No filter named 'random'" in sandbox("{{ [messages] | map('random') | list }}").render(TALK).problem
    assert "'lipsum' is undefined" in sandbox("{{ lipsum() }}").render(TALK).problem
    for source in ("{{ raise_exception }}", "{{ 'It is ' ~ messages[0].content.strip }}", "{{ [messages[0].items] }}"):
        assert "address in memory" in sandbox(source).render(TALK).problem, source
    said = [("user", "What is <function f at 0x7f0123456789>?")]
    assert sandbox("{{ messages[0].content }}").render(said).text == said[0][1]  # a message may say so
    sources = "{{ messages | tojson }}{{ dict(b=1, a=2) }}{{ ['b', 'a', 'b'] | unique | list }}{{ range(3) }}{{ namespace(a=1).a }}"
    assert len({sandbox(sources).render(TALK).text for _ in range(3)}) == 1


@pytest.mark.parametrize("source", ["a{{ '\\ud800' }}", "{{ '\\ud83d' }}{{ '\\ude00' }}", "{{ messages[0].content[:1] }}{{ '\\udfff' }}"])
def test_half_a_character_is_a_problem(source):
    found = sandbox(source).render(TALK)
    assert (found.text, found.problem[:12], found.problem[-18:]) == ("", "it writes \\u", ", half a character")


def test_a_very_long_refusal_costs_the_parent_nothing():
    import tracemalloc

    talk = sandbox("{{ raise_exception('no \\x00' ~ 'x' * 50000000) }}")
    tracemalloc.start()
    found = talk.render(TALK)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.problem.startswith("no x")
    assert peak < 1_000_000


def test_a_child_that_answers_too_much_is_ended(monkeypatch):
    code = "import sys; sys.stdin.readline(); print('ready', flush=True); sys.stdin.readline(); sys.stdout.write('x' * 10**8); sys.stdout.flush()"
    start = chat_sandbox.subprocess.Popen
    monkeypatch.setattr(chat_sandbox.subprocess, "Popen", lambda args, **more: start([args[0], "-I", "-S", "-c", code], **more))
    with pytest.raises(InputError, match=r"its chat template answers more than 12,583,104 bytes"):
        sandbox("x").render([("user", "Hi"), ("assistant", "Hello")][:1])


def test_a_template_that_cannot_be_read_is_tried_once(monkeypatch):
    talk = sandbox("{% for m in %}")
    for _ in range(2):
        with pytest.raises(InputError, match="cannot be read: Expected an expression"):
            talk.render(TALK)
        monkeypatch.setattr(chat_sandbox, "_start", None)


def test_after_a_fault_the_next_conversation_is_rendered_by_another_child(monkeypatch):
    monkeypatch.setattr(chat_sandbox, "CPU_SECONDS", 0)
    source = "{% if messages | length > 2 %}" + LOOP + "{% endif %}{{ messages[0].content }}"
    talk = sandbox(source)
    assert talk.render(TALK).text == "Hi"
    first = talk._child
    assert first is not None
    assert talk.render(TALK).text == "Hi"
    assert talk._child is first  # kept
    with pytest.raises(InputError, match="does not end"):
        talk.render(TALK * 2)
    assert talk.render(TALK).text == "Hi"
    assert talk._child is not first
    talk._child.kill()
    talk._child.wait()
    assert talk.render(TALK).text == "Hi"


def test_a_stopped_child_is_ended_by_the_clock(monkeypatch):
    import signal

    monkeypatch.setattr(chat_sandbox, "WALL_SECONDS", 0.5)
    talk = sandbox("{{ messages[0].content }}")
    assert talk.render(TALK).text == "Hi"
    os.kill(talk._child.pid, signal.SIGSTOP)
    with pytest.raises(InputError, match=r"does not end within 0\.5 s"):
        talk.render([("user", "x" * (1 << 20))])  # more than a pipe holds


def test_the_child_ends_with_its_sandbox():
    talk = sandbox("{{ messages[0].content }}")
    talk.render(TALK)
    child = talk._child
    del talk
    assert child.poll() is not None


def test_the_child_opens_no_file():
    talk = sandbox("{{ messages[0].content }}")
    talk.render(TALK)
    limits = Path(f"/proc/{talk._child.pid}/limits")
    if not limits.exists():
        pytest.skip("needs /proc to look at the limits of another process")
    found = {line[:25].strip(): line[25:].split()[0] for line in limits.read_text().splitlines()}
    assert (found["Max open files"], found["Max file size"], found["Max address space"]) == ("3", "0", str(1 << 30))


def test_without_a_python_it_says_so(monkeypatch):
    monkeypatch.setattr(chat_sandbox, "_pythons", lambda: iter(["/no/where/python3"]))
    with pytest.raises(InputError, match=r"model the model: its chat template cannot be run: /no/where/python3: No such file"):
        sandbox("x").render(TALK)
