"""Do several models answer better together? ``python -m benchmarks.cool_fusion --models DIR --assets DIR [--out DIR] [--questions 50]``.

``--models`` holds the folders qwen_coder, tinyllama and smollm2 (where they came from: ``benchmarks.real``), ``--assets`` ``gsm8k/test.jsonl``,
``arc_challenge/test.jsonl`` and ``wikitext2/test.txt``. The first ``--questions`` questions of GSM8K and of ARC-Challenge are answered greedily, through
each model's own chat template, by:

- each model alone;
- ``rerank``: the answer of the three that all find least perplexing;
- ``cool``: segments of four words on which all tokenizers agree, the least perplexing one each time;
- ``cool_rerank``: the answer of the four (three alone, one together) that all find least perplexing;
- ``byte_mixture``: byte by byte, the mean of their distributions.

An answer is right if its last number is the reference's (GSM8K), or the first letter that is named as a choice is the right one (ARC).
Every arm is compared with each model alone, question by question: mean difference of the error rate (below 0: the arm is better) with the 95%
interval of a paired bootstrap over questions. The best model alone is named by its accuracy on the same questions, which favours it.

``bits_per_byte``: of ``--documents`` passages of each text, after 128 bytes of context, under the byte mixture and under each model read
byte by byte like it (``lmfuse.generate.byte_reader``), paired over passages.

What was written is kept under ``--out``; the same command goes on where it was stopped. The figures go to ``benchmarks/results/cool-fusion-real.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmfuse.decode.byte_mixture import ByteMixture, mix
from lmfuse.decode.cool import Cool
from lmfuse.decode.judging import Judged
from lmfuse.decode.rerank import Rerank
from lmfuse.errors import LmfuseError
from lmfuse.evaluate.paired import paired_bootstrap
from lmfuse.generate import FusedWriter
from lmfuse.generate.cache import Seat
from lmfuse.generate.crew import Crew
from lmfuse.generate.joint import byte_readers
from lmfuse.generate.together import write_together
from lmfuse.generate_batch import Task, write_batch
from lmfuse.models import LanguageModel, ModelSpec, load_model
from lmfuse.types import DocumentScore, Segment
from lmfuse.writing import WritingSettings

LABELS = ("qwen_coder", "tinyllama", "smollm2")
WORDS = 4
TOKENS = {"gsm8k": 128, "arc_challenge": 32}
ASKED = {
    "gsm8k": "{question}\nThink step by step, in at most three short sentences, then end with: The answer is <number>.",
    "arc_challenge": "{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer with the letter of the right choice first, then with one sentence of explanation.",
}
CONTEXT_BYTES, SCORED_BYTES = 128, 256
HERE = Path(__file__).resolve().parent


def questions_of(name: str, assets: Path, count: int) -> list[dict[str, str]]:
    """Return the first questions of a task; those of ARC that have four choices."""
    lines = (assets / name / "test.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [each for each in found if name != "arc_challenge" or all(each.get(letter) for letter in "ABCD")][:count]


def is_right(name: str, answer: str, truth: str) -> bool:
    """Return whether an answer is right.

    >>> is_right("gsm8k", "2 + 3 = 5. The answer is $1,250.00.", "so #### 1250"), is_right("arc_challenge", "A) because B is not", "B")
    (True, False)
    >>> is_right("arc_challenge", "A plant needs light: the answer is C because", "C")
    True
    """
    if name == "arc_challenge":
        letter = re.search(
            r"(?:(?i:answer is|answer:)[\s(*]*|(?<![A-Za-z]))([A-D])(?=[.):,*]|\s*$)|(?i:answer is|answer:)[\s(*]*([A-D])(?![A-Za-z])",
            answer,
        )
        return letter is not None and (letter[1] or letter[2]) == truth
    numbers, wanted = (re.findall(r"-?\d[\d,]*(?:\.\d+)?", text) for text in (answer, truth.split("####")[-1]))
    return bool(numbers) and float(numbers[-1].replace(",", "")) == float(wanted[-1].replace(",", ""))


def prompt_of(name: str, question: Mapping[str, str]) -> list[Segment]:
    """Return a question as a conversation."""
    return [Segment(ASKED[name].format(**question), "user", trained=False)]


def written(writer: FusedWriter, tasks: Sequence[Task], name: str, out: Path, batch: int) -> tuple[list[str], float]:
    """Return a writer's answers and the seconds that they took; those that are there already are read."""
    seconds = out.with_suffix(".seconds")
    if not out.exists():
        begin = time.perf_counter()
        settings = WritingSettings(max_tokens=TOKENS[name], max_bytes=6 * TOKENS[name])
        write_batch(writer, tasks, settings, out, batch_prompts=batch)
        seconds.write_text(str(time.perf_counter() - begin), encoding="ascii")
    records = {each["id"]: each["text"] for each in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    return [records[task.id] for task in tasks], float(seconds.read_text(encoding="ascii")) if seconds.exists() else math.nan


def together(works: Sequence[Callable[[Sequence[Seat]], Iterator[Any]]], count: int, batch: int) -> list[Any]:
    """Return what each work says first, a batch of them at a time.

    Raises:
        LmfuseError: one of them could not be done.
    """
    found: list[Any] = []
    for begin in range(0, len(works), batch):
        for said in write_together(works[begin : begin + batch], count):
            if isinstance(said, LmfuseError):
                raise said
            found.append(said[0])
    return found


def judged(models: Sequence[LanguageModel], task: Task, texts: Sequence[str], seats: Sequence[Seat]) -> Iterator[Judged]:
    """Yield what all models make of some answers to a question."""
    crew = Crew(models, LABELS, task.prompt, WritingSettings(), seats=seats)
    candidates = [text.encode() for text in texts]
    verdicts = crew.each(lambda index: crew.sessions[index].judge(candidates))
    nll, tokens = (np.array([[getattr(each, what) for each in line] for line in verdicts]) for what in ("nll_nats", "tokens"))
    yield Judged(nll, tokens, np.array([len(each) for each in candidates]))


def reranked(texts: Sequence[Sequence[str]], found: Sequence[Judged], count: int) -> list[str]:
    """Return for each question the best of the first ``count`` answers; one that is empty only where all are."""
    chosen = []
    for some, each in zip(texts, found, strict=True):
        places = [place for place in range(count) if some[place]] or [0]
        part = Judged(each.nll_nats[:, places], each.tokens[:, places], each.num_bytes[places])
        chosen.append(some[places[Rerank()(part, [[place] for place in places]).index]])
    return chosen


def costs(models: Sequence[LanguageModel], text: bytes, seats: Sequence[Seat]) -> Iterator[np.ndarray]:
    """Yield nats of each byte behind the context: one row for each model, and one for the mixture."""
    begin = len(text[:CONTEXT_BYTES].decode(errors="ignore").encode())
    crew = Crew(models, LABELS, text[:begin].decode(), WritingSettings(), seats=seats)
    readers = byte_readers(crew)
    rows = []
    for byte in text[begin:]:
        log_probs = np.array(crew.each(lambda index: readers[index].log_probs()))
        rows.append([*-log_probs[:, byte], -mix(log_probs)[byte]])
        crew.each(lambda index, byte=byte: readers[index].push(byte))  # type: ignore[misc]
    yield np.array(rows).T


def passages(assets: Path, count: int) -> dict[str, list[bytes]]:
    """Return passages of some kinds of text, equally spaced in it, each whole characters."""
    gsm8k = [json.loads(line) for line in (assets / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {}
    for name, text in (
        ("wikitext2", (assets / "wikitext2" / "test.txt").read_text(encoding="utf-8")),
        ("gsm8k", "\n\n".join(f"{each['question']}\n{each['answer']}" for each in gsm8k[500:])),
    ):
        data, size = text.encode(), CONTEXT_BYTES + SCORED_BYTES
        starts = np.linspace(0, len(data) - size - 8, count).astype(int)
        found[name] = [data[start : start + size].decode(errors="ignore").encode() for start in starts]
    return found


def comparison(of: Mapping[str, Sequence[float]], arm: str, against: str, task: str, sizes: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the paired difference of two arms: of error rates, or of bits per byte where sizes in bytes are given."""
    scale = math.log(2) if sizes is None else 1.0

    def scores(name: str) -> list[DocumentScore]:
        return [DocumentScore(f"{n:05}", task, value * scale, (sizes or [1] * len(of[name]))[n]) for n, value in enumerate(of[name])]

    found = paired_bootstrap(scores(arm), scores(against))
    entry = {"task": task, "arm": arm, "against": against, "mean": found.mean, "low": found.low, "high": found.high, "n": found.n}
    if sizes is None:
        pairs = list(zip(of[arm], of[against], strict=True))
        entry |= {"only_arm_right": sum(a < b for a, b in pairs), "only_other_right": sum(a > b for a, b in pairs)}
    return entry


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Answer, judge and compare; return what goes into the file."""
    models = [load_model(ModelSpec(str(given.models / label), chat_template="own")) for label in LABELS]
    arms: dict[str, dict[str, Any]] = {}
    comparisons: list[dict[str, Any]] = []
    for name in TOKENS:
        asked = questions_of(name, given.assets, given.questions)
        tasks = [Task(f"{n:05}", prompt_of(name, question)) for n, question in enumerate(asked)]
        texts: dict[str, list[str]] = {}
        writers = {label: FusedWriter([model], [label]) for label, model in zip(LABELS, models, strict=True)}
        writers["cool"] = FusedWriter(models, LABELS, Cool(length=WORDS))
        writers["byte_mixture"] = FusedWriter(models, LABELS, ByteMixture())
        for arm, writer in writers.items():
            texts[arm], seconds = written(writer, tasks, name, given.out / f"{name}-{arm}.jsonl", given.batch)
            arms.setdefault(arm, {})[name] = {"seconds": round(seconds, 1)}
        candidates = [list(some) for some in zip(*(texts[arm] for arm in (*LABELS, "cool")), strict=True)]
        found = together(
            [partial(judged, models, task, some) for task, some in zip(tasks, candidates, strict=True)], len(models), given.batch
        )
        texts["rerank"], texts["cool_rerank"] = reranked(candidates, found, len(LABELS)), reranked(candidates, found, len(LABELS) + 1)
        wrong = {
            arm: [float(not is_right(name, text, q["answer"])) for text, q in zip(some, asked, strict=True)] for arm, some in texts.items()
        }
        for arm, some in wrong.items():
            entry = {"accuracy": round(1 - sum(some) / len(some), 4), "right": int(len(some) - sum(some)), "empty": texts[arm].count("")}
            arms.setdefault(arm, {}).setdefault(name, {}).update(entry)
        best = min(LABELS, key=lambda label: sum(wrong[label]))
        for arm in ("rerank", "cool", "cool_rerank", "byte_mixture"):
            comparisons += [comparison(wrong, arm, label, name) | {"best_alone": label == best} for label in LABELS]
        comparisons.append(comparison(wrong, "cool_rerank", "rerank", name))
        report = [(arm, arms[arm][name]) for arm in texts]
        print(json.dumps(report), file=sys.stderr, flush=True)
    return {"arms": arms, "comparisons": comparisons, "bits_per_byte": bits_per_byte(given, models)}


def bits_per_byte(given: argparse.Namespace, models: Sequence[LanguageModel]) -> dict[str, Any]:
    """Return bits per byte of each model and of their mixture, and how they compare."""
    found: dict[str, Any] = {"values": {}, "comparisons": [], "passages": given.documents, "bytes_of_a_passage": SCORED_BYTES}
    for name, some in passages(given.assets, given.documents).items():
        kept = given.out / f"bits-{name}.json"
        if not kept.exists():
            rows = together([partial(costs, models, text) for text in some], len(models), given.batch)
            kept.write_text(json.dumps([[each.sum(1).tolist(), each.shape[1]] for each in rows]), encoding="ascii")
        sums, sizes = zip(*json.loads(kept.read_text(encoding="ascii")), strict=True)
        by_arm = dict(zip((*LABELS, "byte_mixture"), np.array(sums).T.tolist(), strict=True))
        found["values"][name] = {arm: round(sum(nats) / math.log(2) / sum(sizes), 4) for arm, nats in by_arm.items()}
        best = min(LABELS, key=lambda label: sum(by_arm[label]))
        found["comparisons"] += [
            comparison(by_arm, "byte_mixture", label, name, list(sizes)) | {"best_alone": label == best} for label in LABELS
        ]
    return found


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/cool-fusion"))
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--batch", type=int, default=25)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found = measure(given)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "benchmark": "cool-fusion-real", "questions": given.questions * len(TOKENS), "models": list(LABELS), "prompts": ASKED,
        "most_tokens": TOKENS, "words_of_a_segment": WORDS, "batch": given.batch, **found,
        "machine": {"cpu": platform.machine(), "threads": torch.get_num_threads()}, "commit": commit,
        "command": f"python -m benchmarks.cool_fusion --models MODELS --assets ASSETS --questions {given.questions} --documents {given.documents}",
    }  # fmt: skip
    (HERE / "results" / "cool-fusion-real.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({"arms": found["arms"], "bits_per_byte": found["bits_per_byte"]["values"]}))


if __name__ == "__main__":
    main()
