"""The class that lm_eval asks: conversations, seeds, what is kept of an interrupted run, and whole tasks from a file to a table."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from lmfuse.errors import InputError
from lmfuse.evaluate import harness
from lmfuse.evaluate.harness import FusedLM
from lmfuse.evaluate.harness_models import Ensemble
from lmfuse.evaluate.harness_prompts import read_context
from tests.evaluate.harness_build import folder, request

lm_eval = pytest.importorskip("lm_eval", reason="needs lm_eval (pip install 'lmfuse[eval]')")
KINDS = ("byte_bpe", "metaspace_bpe", "unigram")
USER = [{"role": "user", "content": "Anna has 12 apples. How many?"}]
SYSTEM = [{"role": "system", "content": "Be brief."}]
METHODS = ("cool", "rerank", "cool_rerank", "unite", "safe", "byte_mixture", "pack_llm")


def model(*kinds: str, chat: bool = False, **arguments) -> FusedLM:
    arguments = {"dtype": "float32", "device": "cpu", "max_gen_toks": 6} | arguments
    return FusedLM([folder(kind, chat=chat) for kind in kinds], **arguments)


def asked(*contexts: str, **arguments) -> list:
    return [request(context, {"until": ["\n"], **arguments}) for context in contexts]


# ── conversations ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_model_reads_a_conversation_with_its_own_template():
    found = model(*KINDS, chat=True)
    context = read_context(found.apply_chat_template(USER))
    with found.ensemble.reading(context) as crew:
        read = [session.ids for session in crew.sessions]
    for kind, ids in zip(KINDS, read, strict=True):
        own = AutoTokenizer.from_pretrained(folder(kind, chat=True))
        said = own.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
        assert own.decode(ids) == own.decode(own.encode(said, add_special_tokens=False))
    assert len({tuple(ids) for ids in read}) == 3


def test_the_log_has_every_template():
    shown = model("byte_bpe", "metaspace_bpe", chat=True).chat_template(True)
    assert "byte_bpe: {% for message" in shown
    assert "<|im_start|>" in shown
    assert "<|user|>" in shown
    assert model("byte_bpe").chat_template(False) == ""
    assert "GPT4 Correct" in model("byte_bpe", chat=True).chat_template("openchat")


def test_a_system_message_that_one_template_refuses_is_the_users_for_all():
    both, one = model("byte_bpe", "unigram", chat=True), model("byte_bpe", chat=True)
    assert [each.role for each in read_context(one.apply_chat_template([*SYSTEM, *USER])).messages] == ["system", "user"]
    (said,) = read_context(both.apply_chat_template([*SYSTEM, *USER])).messages
    assert said.text == "Be brief.\n\nAnna has 12 apples. How many?"


def test_a_conversation_needs_templates():
    with pytest.raises(InputError, match="byte_bpe"):
        model("byte_bpe").apply_chat_template(USER)


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_that_has_begun_goes_on(method):
    """Its beginning is read, is no part of what is written, and costs no tokens of the limit."""
    found = model("byte_bpe", "metaspace_bpe", chat=True, method=method)
    context = found.apply_chat_template([*USER, {"role": "assistant", "content": "It is"}], add_generation_prompt=False)
    with found.ensemble.reading(read_context(context)) as crew:
        for session, own in zip(crew.sessions, found.ensemble.models("chat"), strict=True):
            session.restart()
            before = len(own.tokenizer.render_prompt(read_context(context).messages))
            assert b"".join(map(own.tokenizer.vocabulary.bytes_of, session.ids[before:])).strip() == b"It is"
            with torch.inference_mode():
                whole = own.module(torch.tensor([session.ids])).logits[0, -1, : own.tokenizer.vocabulary.size].log_softmax(-1)
            torch.testing.assert_close(session.prediction, whole, atol=1e-3, rtol=1e-3)
    (text,) = found.generate_until(asked(context), disable_tqdm=True)
    (scored,) = found.loglikelihood([request(context, text)], disable_tqdm=True)
    assert not text.startswith("It is")
    assert scored[0] < 0


def test_one_models_likelihood_in_a_conversation_is_that_of_its_tokens():
    found = model("byte_bpe", chat=True)
    context = found.apply_chat_template(USER)
    own = found.ensemble.models("chat")[0]
    before, after = own.tokenizer.render_prompt(read_context(context).messages).tolist(), own.tokenizer.pieces([b"12 apples"])[0]
    with torch.inference_mode():
        rows = own.module(torch.tensor([[*before, *after]])).logits[0].log_softmax(-1)
    want = float(rows[len(before) - 1 : -1].gather(1, torch.tensor(after)[:, None]).sum())
    assert found.loglikelihood([request(context, "12 apples")], disable_tqdm=True)[0][0] == pytest.approx(want, abs=1e-3)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["cool", "byte_mixture"])
def test_texts_are_those_of_the_writer(method):
    found = model(*KINDS, method=method, batch_size=3)
    prompts = ["The quick brown", "Anna has", "It was the best of"]
    for prompt, text in zip(prompts, found.generate_until(asked(*prompts), disable_tqdm=True), strict=True):
        settings = harness.settings_of({"until": ["\n"]}, 6, 0)
        written = [each.text for each in found.ensemble.writer("plain").write(prompt, settings) if hasattr(each, "author")]
        assert text == "".join(written)


def test_repeated_prompts_are_drawn_anew_and_again_with_the_same_seed():
    prompts = ["The quick brown"] * 4
    drawn = model("byte_bpe", seed=3).generate_until(asked(*prompts, do_sample=True, temperature=1.0), disable_tqdm=True)
    assert len(set(drawn)) > 1
    assert drawn == model("byte_bpe", seed=3).generate_until(asked(*prompts, do_sample=True, temperature=1.0), disable_tqdm=True)
    torch.manual_seed(11)  # what the harness does with its --seed
    first = model("byte_bpe").generate_until(asked(*prompts, do_sample=True), disable_tqdm=True)
    torch.manual_seed(12)
    assert first != model("byte_bpe").generate_until(asked(*prompts, do_sample=True), disable_tqdm=True)


def test_what_cannot_be_done_is_refused_before_anything_is_written():
    found = model("byte_bpe")
    with pytest.raises(InputError, match="unknown 'num_beams'"):
        found.generate_until(asked("a", num_beams=2), disable_tqdm=True)
    with pytest.raises(InputError, match="unknown 'lenght'; did you mean 'length'"):
        model("byte_bpe", lenght=3)
    with pytest.raises(InputError, match="dtype: unknown 'float23'"):
        model("byte_bpe", dtype="float23")


def test_an_interrupted_run_keeps_what_was_done(tmp_path, monkeypatch):
    from lm_eval.api.model import CachingLM

    requests, write = [*asked("The quick"), *asked("Anna has 12")], Ensemble.write
    want = model(*KINDS[:2]).generate_until(requests, disable_tqdm=True)
    calls = []

    def dies_at_the_second(self, contexts, settings):
        calls.append([context.text for context in contexts])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(self, contexts, settings)

    monkeypatch.setattr(Ensemble, "write", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        CachingLM(model(*KINDS[:2]), str(tmp_path / "cache.db")).generate_until(requests)
    assert CachingLM(model(*KINDS[:2]), str(tmp_path / "cache.db")).generate_until(requests) == want
    assert calls == [["Anna has 12"], ["The quick"], ["The quick"]]


def test_answers_do_not_depend_on_the_batch_or_on_the_order():
    pairs = [("The quick", " brown"), ("Anna has 12", " apples"), ("The quick", " dog"), ("", "It"), ("The quick", " brown")]
    for kinds in (KINDS[:1], KINDS[:2]):
        one = model(*kinds).loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
        other = model(*kinds, batch_size="auto").loglikelihood([request(*pair) for pair in pairs[::-1]], disable_tqdm=True)[::-1]
        assert [each[0] for each in one] == pytest.approx([each[0] for each in other], abs=1e-4)
        assert one[0] == one[4]


# ── whole tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────

TASKS = {
    "tiny_choice": "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: gold\nmetric_list: [{metric: acc}]",
    "tiny_chat": "output_type: multiple_choice\ndescription: Be brief.\ngen_prefix: It is\ndoc_to_choice: choices\ndoc_to_target: gold\n"
    "metric_list: [{metric: acc}]",
    "tiny_text": "output_type: generate_until\ndoc_to_target: '{{choices[gold]}}'\n"
    "generation_kwargs: {until: ['zq'], max_gen_toks: 4, do_sample: false}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]",
    "tiny_rolling": "output_type: loglikelihood_rolling\ndoc_to_target: '{{q}}'\nmetric_list: [{metric: bits_per_byte}]",
}
RECORDS = [
    {"q": "Anna has 12 apples and buys", "choices": ["7 more.", "the lazy dog.", "naïve café"], "gold": 0},
    {"q": "The quick brown fox", "choices": ["7 more.", "jumps over", "naïve café"], "gold": 1},
]


@pytest.fixture
def tasks(tmp_path) -> Path:
    """Write tasks of lm_eval's own kind, whose documents are a file."""
    place = tmp_path / "tasks"
    place.mkdir()
    (place / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    for name, body in TASKS.items():
        data = {"data_files": {"test": str(place / "records.jsonl")}, "cache_dir": str(tmp_path / "cache")}
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {json.dumps(data)}\ntest_split: test\ndoc_to_text: '{{{{q}}}}'\n"
        (place / f"{name}.yaml").write_text(head + body + "\n")
    return place


@pytest.mark.parametrize("method", ["cool", "byte_mixture"])
def test_tasks_run_without_the_network(tasks, monkeypatch, method):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    for chat in (False, True):
        names = list(TASKS) if not chat else ["tiny_chat", "tiny_text"]
        arguments = {"models": "+".join(folder(kind, chat=True) for kind in KINDS), "method": method, "dtype": "float32"}
        found = simple_evaluate(
            "lmfuse", arguments, names, task_manager=manager, apply_chat_template=chat, fewshot_as_multiturn=chat, device="cpu",
            bootstrap_iters=0,
        )  # fmt: skip
        assert list(found["results"]) == names
        lines = found["samples"]["tiny_chat"]
        assert all(len(line["resps"]) == 3 and all(each[0][0] < 0 for each in line["resps"]) for line in lines)
        assert [line["arguments"][0][0].startswith("lmfuse conversation ") for line in lines] == [chat, chat]
        assert found["config"]["lmfuse_method"]["name"] == method
        if not chat:
            assert 0 < found["results"]["tiny_rolling"]["bits_per_byte,none"] < 20


def test_the_command_is_the_harnesses_own_with_our_model(tasks, tmp_path):
    where = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    models = f"models={folder('byte_bpe')}+{folder('metaspace_bpe')},length=2,dtype=float32,model=pair"
    command = [
        sys.executable,
        "-m",
        "lmfuse.cli",
        "harness",
        "--model_args",
        models,
        "--include_path",
        str(tasks),
        "--tasks",
        "tiny_choice",
    ]
    out = ["--device", "cpu", "--output_path", str(tmp_path / "out"), "--log_samples"]
    done = subprocess.run([*command, *out], capture_output=True, text=True, env={**os.environ, **where}, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tiny_choice" in done.stdout
    (result,) = (tmp_path / "out" / "pair").glob("results_*.json")
    config = json.loads(result.read_text())["config"]
    assert (config["model"], config["lmfuse_method"]["length"], len(config["lmfuse_models"])) == ("lmfuse", 2, 2)


def test_a_missing_harness_is_said(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda _: None)
    for call in (lambda: harness.main([]), lambda: model("byte_bpe")):
        with pytest.raises(InputError, match="harness needs lm_eval"):
            call()


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (["--tasks", "x"], ["run", "--model", "lmfuse", "--tasks", "x"]),
        (["run", "--model", "hf"], ["run", "--model", "lmfuse", "--model", "hf"]),
        (["ls", "tasks"], ["ls", "tasks"]),
    ],
)
def test_the_model_is_ours_unless_another_is_named(monkeypatch, given, seen):
    import lm_eval.__main__ as own

    found = []
    monkeypatch.setattr(own, "cli_evaluate", lambda: found.extend(sys.argv[1:]))
    before = list(sys.argv)
    harness.main(given)
    assert (found, sys.argv) == (seen, before)
