"""What the fusion loss costs: a training step of CLM and fusion together against the plain Hugging Face step, in time and in memory.

    python -m benchmarks.training_step

Both steps are forward and backward of the same Llama (tied weights, float32) on the same tokens, one thread. Times are medians of
interleaved rounds; memory is the peak above the start of a step, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCAB, HIDDEN, LAYERS, K = 32_000, 512, 8, 10


def build() -> Any:
    """Return a randomly initialised Llama of 37 million parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, max_position_embeddings=4096, tie_word_embeddings=True, **shape))


def rows(num_rows: int) -> tuple[Any, Any]:
    """Return random teacher rows over K distinct ids each, a tenth of them not taught, and token ids."""
    import numpy as np
    import torch

    from lmfuse.types import TopK

    rng = np.random.default_rng(0)
    ids = (rng.integers(0, VOCAB, (num_rows, 1)) + np.arange(K) * (VOCAB // K)) % VOCAB
    log_probs = np.log(rng.dirichlet(np.ones(K + 1), num_rows)).astype(np.float32)
    topk = TopK(ids, log_probs[:, :K], log_probs[:, K], VOCAB)
    return (topk, rng.random(num_rows) > 0.1), torch.from_numpy(rng.integers(0, VOCAB, (1, num_rows + 1)))


def plain_step(model: Any, tokens: Any, _: Any) -> None:
    model(input_ids=tokens, labels=tokens).loss.backward()


def fused_step(model: Any, tokens: Any, taught_rows: Any) -> None:
    loss_of(model, tokens, taught_rows).backward()


STEPS: dict[str, Callable[..., None]] = {"plain": plain_step, "fused": fused_step}


def loss_of(model: Any, tokens: Any, taught_rows: Any) -> Any:
    import torch

    from lmfuse.losses.head import Head
    from lmfuse.losses.kl import KL
    from lmfuse.losses.objective import objective
    from lmfuse.losses.teacher import TeacherRows

    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[0, :-1]
    head, weights = Head(model.lm_head.weight, VOCAB), torch.full((len(hidden),), 0.9)
    return objective(hidden, head, tokens[0, 1:], TeacherRows.from_numpy(*taught_rows), weights, KL()).loss


def measure_time(length: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of both steps, on the wall and on the processor, and their ratios."""
    model, (taught_rows, tokens) = build(), rows(length)
    clocks = {"": time.perf_counter, "cpu_": time.process_time}  # on a busy machine the second one is the steady one
    seconds: dict[str, list[float]] = {clock + name: [] for clock in clocks for name in STEPS}
    for turn in range(rounds + 1):
        for name in list(STEPS)[:: 1 if turn % 2 else -1]:
            start = {clock: read() for clock, read in clocks.items()}
            STEPS[name](model, tokens, taught_rows)
            for clock, read in clocks.items():
                seconds[clock + name].append(read() - start[clock])
            model.zero_grad(set_to_none=True)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first round warms up
    ratios = {f"{clock}time_ratio": medians[clock + "fused"] / medians[clock + "plain"] for clock in clocks}
    return {**{f"{name}_s": value for name, value in medians.items()}, **ratios}


def measure_gradients(length: int = 64) -> dict[str, float]:
    """Return how far the step's gradients are from those of a dense teacher and autograd over all logits."""
    import torch

    from lmfuse.losses.dense import dense_kl
    from lmfuse.losses.teacher import TeacherRows

    model, (taught_rows, tokens) = build(), rows(length)
    loss_of(model, tokens, taught_rows).backward()
    ours = [each.grad.clone() for each in model.parameters()]
    model.zero_grad()
    logits, teacher = model(input_ids=tokens).logits[0, :-1], TeacherRows.from_numpy(*taught_rows)
    weights = torch.where(teacher.taught, 0.9, 1.0)
    clm = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    (weights * clm + (1 - weights) * dense_kl(logits, teacher)).mean().backward()
    pairs = [(mine, each.grad) for mine, each in zip(ours, model.parameters(), strict=True)]
    return {
        "gradient_max_abs_difference": max(float((mine - other).abs().max()) for mine, other in pairs),
        "gradient_max_relative_difference": max(float((mine - other).norm() / other.norm()) for mine, other in pairs),
    }


def peak_of(step: str, length: int) -> int:
    """Return by how many bytes one step raised this process's resident memory."""
    model, (taught_rows, tokens) = build(), rows(length)
    small_rows, small_tokens = rows(8)
    STEPS[step](model, small_tokens, small_rows)  # loads the kernels
    model.zero_grad(set_to_none=True)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    STEPS[step](model, tokens, taught_rows)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def measure_memory(length: int) -> dict[str, float]:
    """Return the peaks of both steps in megabytes, and their ratio."""
    command = [sys.executable, "-m", "benchmarks.training_step", "--length", str(length), "--peak-of"]
    root = Path(__file__).resolve().parents[1]
    peaks = {name: int(subprocess.run([*command, name], cwd=root, stdout=subprocess.PIPE, text=True, check=True).stdout) for name in STEPS}
    return {"plain_mb": peaks["plain"] / 1e6, "fused_mb": peaks["fused"] / 1e6, "memory_ratio": peaks["fused"] / peaks["plain"]}


def machine() -> dict[str, str]:
    """Return what the numbers were taken on."""
    import torch
    import transformers

    cpu = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    return {"cpu": cpu[0] if cpu else platform.processor(), "cores": str(os.cpu_count()), **versions}


def commit() -> str:
    """Return the commit that was measured, or nothing outside a repository."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--length", type=int, help="tokens of a step (default: 1024 for time, 2048 for memory)")
    parser.add_argument("--peak-of", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    if options.peak_of:
        print(peak_of(options.peak_of, options.length))
        return
    figures = {**measure_memory(options.length or 2048), **measure_gradients(), **measure_time(options.length or 1024, options.rounds)}
    parameters = sum(each.numel() for each in build().parameters())
    setting = {"parameters": parameters, "vocabulary": VOCAB, "k": K, "dtype": "float32", "threads": 1}
    goals = {"time_ratio": 1.05, "memory_ratio": 0.6, "gradient_max_abs_difference": 5e-7}
    about = {"setting": setting, "machine": machine(), "commit": commit(), "command": "python -m benchmarks.training_step"}
    print(json.dumps({"benchmark": "training_step", "figures": figures, "goals": goals, **about}))


if __name__ == "__main__":
    main()
