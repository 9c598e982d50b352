"""What it costs that three models write together: ``python -m benchmarks.decode``; goals: 1.5 times their own ``generate``, growth 1.3.

``over_sum_of_generates``: seconds of Cool-Fusion over the sum of the seconds that transformers' own ``generate`` takes for each model to write
as many tokens as the text has in its vocabulary, prompts included; rounds interleaved, medians of processor time. The models are Llamas with random weights and
the tokenizers of the pico models, which differ; tokens are drawn, so that the text has words; ``--models`` takes real ones.

``growth``: what a committed token costs at 1,000 committed tokens over what it costs at 100, attention excluded: tokens that the models' forward
passes read, each at the price of one at 100, and all the time spent outside of them. ``growth_with_attention`` is seconds with it.

``together_over_alone``: seconds of several texts written at the same time over those of the same texts one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks._timing import timed
from lmfuse.decode.cool import Cool
from lmfuse.generate import FusedWriter
from lmfuse.generate.crew import Crew
from lmfuse.generate.segments import write_segments
from lmfuse.models import LanguageModel, ModelSpec, load_model, load_tokenizer, wrap_module
from lmfuse.pico import SOURCES, model_folder
from lmfuse.types import Document
from lmfuse.writing import Finish, WritingSettings

PROMPT = "The quick brown fox jumps over the lazy dog. How many apples does Anna have after she buys 12 more, and why?\n"


def random_models(hidden: int, layers: int) -> list[LanguageModel]:
    """Return three Llamas with different tokenizers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    found = []
    for seed, name in enumerate(SOURCES):
        torch.manual_seed(seed)
        tokenizer = load_tokenizer(ModelSpec(str(model_folder(name))))
        config = LlamaConfig(
            vocab_size=tokenizer.vocabulary.size, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
            num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 256), max_position_embeddings=4096,
        )  # fmt: skip
        found.append(wrap_module(LlamaForCausalLM(config).to(torch.float32), tokenizer))
    return found


def over_sum_of_generates(models: list[LanguageModel], words: int, max_bytes: int, rounds: int) -> dict[str, Any]:
    """Return the ratio and what it is made of."""
    writer = FusedWriter(models, method=Cool(length=words, max_segment_tokens=4 * words))
    settings = WritingSettings(max_bytes=max_bytes, temperature=1.0)
    *passages, finish = writer.write(PROMPT, settings)
    assert isinstance(finish, Finish)
    tokens = [finish.usage.tokens[label] for label in writer.models]

    def alone(model: LanguageModel, count: int) -> None:
        ids = torch.from_numpy(model.tokenizer.encode(Document.plain(PROMPT)).ids)[None].to(model.device)
        model.module.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0
        )

    jobs: dict[str, Callable[[], object]] = {
        f"generate_{place}": partial(alone, model, tokens[place]) for place, model in enumerate(models)
    }
    jobs["together"] = lambda: list(writer.write(PROMPT, settings))
    seconds = timed(jobs, rounds, warm_up=True)
    total = sum(value for name, value in seconds.items() if name != "together")
    return {
        "over_sum_of_generates": seconds["together"] / total, "together_s": seconds["together"], "generates_s": total, "tokens": tokens,
        "segments": len(passages), "tokens_per_segment": sum(tokens) / len(tokens) / max(len(passages), 1),
    }  # fmt: skip


class Meter:
    """Counts the seconds that are spent in the bodies of models."""

    def __init__(self, models: list[LanguageModel]) -> None:
        self.seconds = 0.0
        for model in models:
            model.body.register_forward_pre_hook(self._begin)
            model.body.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self._begun = time.process_time()

    def _end(self, *_: Any) -> None:
        self.seconds += time.process_time() - self._begun


def growth(models: list[LanguageModel], early: int, late: int, width: int) -> dict[str, float]:
    """Return how much dearer a committed token is around ``late`` committed tokens than around ``early``."""
    settings = WritingSettings(max_bytes=1 << 20, temperature=1.0, seed=1)
    crew, meter = Crew(models, [str(place) for place in range(len(models))], PROMPT, settings), Meter(models)
    points: list[tuple[float, float, int, int]] = []  # all seconds, seconds in bodies, tokens read, tokens committed
    for _ in write_segments(crew, Cool(length=4, max_segment_tokens=16), settings):
        committed = sum(session.num_tokens for session in crew.sessions) // len(models)
        read = sum(session.reader.tokens_read for session in crew.sessions)
        points.append((time.process_time(), meter.seconds, read, committed))
        if committed > late + width:
            break

    def around(middle: int) -> tuple[float, float, float]:
        inside = [point for point in points if abs(point[3] - middle) <= width]
        whole, body, read, committed = (last - first for first, last in zip(inside[0], inside[-1], strict=True))
        return (whole - body) / committed, read / committed, body / read

    (rest, reads, price), (late_rest, late_reads, late_price) = around(early), around(late)
    return {
        "growth": (late_reads * price + late_rest) / (reads * price + rest),
        "growth_with_attention": (late_reads * late_price + late_rest) / (reads * price + rest),
        "outside_of_models": rest / (reads * price + rest),
        "tokens_read_per_token": reads / len(models),
        "tokens_read_per_token_late": late_reads / len(models),
    }


def together_over_alone(models: list[LanguageModel], words: int, max_bytes: int, texts: int, rounds: int) -> dict[str, float]:
    """Return what several texts at the same time cost over one after the other."""
    writer = FusedWriter(models, method=Cool(length=words, max_segment_tokens=4 * words))
    prompts = [PROMPT[5 * place :] for place in range(texts)]
    settings = [WritingSettings(max_bytes=max_bytes, temperature=1.0, seed=seed) for seed in range(texts)]
    jobs: dict[str, Callable[[], object]] = {
        "together": lambda: writer.write_many(prompts, settings),
        "alone": lambda: [list(writer.write(prompt, own)) for prompt, own in zip(prompts, settings, strict=True)],
    }
    seconds = timed(jobs, rounds, warm_up=False)
    return {"together_over_alone": seconds["together"] / seconds["alone"], "texts_together_s": seconds["together"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--words", type=int, default=5, help="of a segment, at least")
    parser.add_argument("--max-bytes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--late", type=int, default=1000, help="committed tokens at which growth is measured; 0: not at all")
    parser.add_argument("--texts", type=int, default=8, help="that are written at the same time; 0: not at all")
    parser.add_argument("--models", nargs="*", default=[], help="real models, the reference model first")
    given = parser.parse_args()
    torch.manual_seed(0)
    models = [load_model(ModelSpec(name, dtype="float32")) for name in given.models] or random_models(given.hidden, given.layers)
    figures: dict[str, Any] = over_sum_of_generates(models, given.words, given.max_bytes, given.rounds)
    if given.late:
        figures |= growth(models, 100, given.late, 60)
    if given.texts:
        figures |= together_over_alone(models, given.words, given.max_bytes, given.texts, given.rounds)
    figures = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
    machine = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    command = "python -m benchmarks.decode" + (f" --models {' '.join(given.models)}" if given.models else "")
    print(json.dumps({"benchmark": "decode", "figures": figures, "machine": machine, "command": command}))


if __name__ == "__main__":
    main()
