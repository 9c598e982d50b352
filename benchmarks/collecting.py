"""What collecting rows costs on top of the forward pass that it cannot do without.

    python -m benchmarks.collecting [--model FOLDER] [--dtype float32] [--documents 96] [--k 10] [--rounds 5]

Denominator: the model's own ``forward`` (logits of every position) over the same length-bucketed batches. Numerator: ``collect`` as a whole: tokenise,
forward, top-k, tail, nll, pack, write, publish. Documents are pieces of Python's standard library of mixed lengths. The model is
``$LMFUSE_REAL_MODELS/smollm2`` or the folder given, else a random Llama of 31 M parameters with a vocabulary of 32k. Times are
processor seconds of one thread (other processes do not count), medians of interleaved rounds.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import json
import platform
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks._timing import timed
from lmfuse.collect import collect, top_k_with_tail
from lmfuse.forward import RowPlan, encode_all, length_buckets, row_logits
from lmfuse.models import LanguageModel, ModelSpec, load_model
from lmfuse.types import Document, Encoding


def stdlib_text(num_bytes: int) -> str:
    """Return the beginning of Python's standard library, file by file."""
    text, size = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text.append(path.read_text(encoding="utf-8", errors="ignore"))
        size += len(text[-1])
        if size > num_bytes:
            break
    return "".join(text)


def pieces(number: int, seed: int = 0) -> list[Document]:
    """Return documents of 40 to 1600 characters."""
    lengths = np.exp(np.random.default_rng(seed).uniform(np.log(40), np.log(1600), number)).astype(int)
    text = stdlib_text(int(lengths.sum()))
    ends = np.cumsum(lengths)
    return [Document.plain(text[end - length : end]) for length, end in zip(lengths, ends, strict=True)]


def random_llama(folder: Path) -> Path:
    """Write a random Llama with the head-to-body ratio of a small real model, and a byte-level tokenizer of 32k tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=32000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([stdlib_text(4_000_000)], trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=384, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


@torch.inference_mode()
def bare_forward(model: LanguageModel, encodings: Sequence[Encoding], plan: RowPlan, batch_tokens: int) -> None:
    """Run the model over the batches of collect, and look at nothing."""
    for bucket in length_buckets(plan.lengths, batch_tokens):
        lengths = plan.lengths[bucket]
        ids = torch.zeros((len(bucket), int(lengths.max())), dtype=torch.long)
        for line, (index, length) in enumerate(zip(bucket, lengths, strict=True)):
            ids[line, :length] = torch.from_numpy(encodings[index].ids[:length].astype(np.int64))
        mask = torch.arange(ids.shape[1]) < torch.from_numpy(lengths)[:, None]
        model.module(input_ids=ids, attention_mask=mask.long(), use_cache=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--documents", type=int, default=96)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as place:
        real = os.environ.get("LMFUSE_REAL_MODELS")
        folder = given.model or (Path(real) / "smollm2" if real else random_llama(Path(place) / "llama"))
        model = load_model(ModelSpec(str(folder), dtype=given.dtype))
        documents = [d for d in pieces(given.documents) if len(model.tokenizer.encode(d).ids) <= model.context]
        encodings = encode_all(model, documents)
        plan = RowPlan.of(encodings)
        count = iter(range(1_000_000))
        options = {"k": given.k, "batch_tokens": given.batch_tokens, "shard_documents": 256}
        jobs = {
            "forward": lambda: bare_forward(model, encodings, plan, given.batch_tokens),
            "rows_only": lambda: [None for _ in row_logits(model, encodings, plan, batch_tokens=given.batch_tokens)],
            "rows_and_top_k": lambda: [
                top_k_with_tail(chunk.logits, chunk.next_ids, given.k)
                for chunk in row_logits(model, encodings, plan, batch_tokens=given.batch_tokens)
            ],
            "collect": lambda: collect(model, documents, Path(place) / f"rows{next(count)}", **options),
        }
        seconds = timed(jobs, given.rounds, warm_up=True)
    padded = sum(len(bucket) * int(plan.lengths[bucket].max()) for bucket in length_buckets(plan.lengths, given.batch_tokens))
    figures = {
        "tokens": plan.num_rows,
        "padding": round(padded / int(plan.lengths.sum()) - 1, 4),
        "collect_tokens_per_s": round(plan.num_rows / seconds["collect"]),
        "forward_tokens_per_s": round(plan.num_rows / seconds["forward"]),
        "collect_of_forward": round(seconds["collect"] / seconds["forward"], 4),
        "goal_of_forward": 1.10,
        "collect_of_own_forward": round(seconds["collect"] / seconds["rows_only"], 4),
        "top_k_of_own_forward": round(seconds["rows_and_top_k"] / seconds["rows_only"] - 1, 4),
    }
    setting = {
        "model": folder.name,
        "dtype": given.dtype,
        "k": given.k,
        "vocab_size": model.head.vocab_size,
        "batch_tokens": given.batch_tokens,
    }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    print(
        json.dumps(
            {
                "benchmark": "collecting",
                "figures": figures,
                "setting": setting,
                "machine": machine,
                "commit": commit,
                "command": " ".join(["python -m benchmarks.collecting", *sys.argv[1:]]),
            }
        )
    )


if __name__ == "__main__":
    main()
