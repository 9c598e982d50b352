"""What alignment costs: the join on bytes and the byte law against tokenising, and the MinED map against ``cdist``; on one thread.

    python -m benchmarks.align [--assets DIR] [--pairs SOURCE:TARGET ...] [--rounds N]

Text is GSM8K, WikiText-2 and Python's standard library in documents of about 800 bytes. The rows' candidates are the tokens that follow the same
token most often in that text, so that they share prefixes and collide (numbers, indentation) at least as often as a model's do; the token
that followed is missing from as many rows as from real ones (15 to 20%). Times are processor seconds (other processes do not count), medians of
interleaved rounds.

- ``join_over_tokenise``: the join on bytes with projection by first pieces, arrays of 128 concatenated documents in and out, over tokenising
  the same documents with both tokenizers, 128 at a time. No result is kept.
- ``byte_law_over_tokenise``: the default alignment likewise; ``align_many_...`` includes concatenating and cutting apart, and
  ``one_document_ms`` is a call per document.
- ``map_over_cdist``, ``map_identical``, ``map_peak_mb``: the MinED map as published (on strings) and on bytes, the worse of both.
"""

from __future__ import annotations

import os

os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import json
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks._timing import timed
from benchmarks._vocabulary_map import map_figures
from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.counts import count_pairs
from lmfuse.align.first_piece import first_piece_map
from lmfuse.align.join import Join
from lmfuse.align.longer import longer_map
from lmfuse.align.pair import Pair, build_pair
from lmfuse.align.spans import align_many, concatenate
from lmfuse.bytes import ByteTokenizer
from lmfuse.types import Document, Encoding, Rows, TopK

DOCUMENT_BYTES = 800
DOCUMENTS_AT_ONCE = 128  # about 32k tokens: their arrays stay in the cache


def corpus(assets: Path, num_bytes: int) -> list[str]:
    """Return documents of about DOCUMENT_BYTES, a third each of word problems, prose and code."""
    problems = [json.loads(line) for line in (assets / "data/gsm8k/train.jsonl").open()]
    prose = (assets / "data/wikitext2/test.txt").read_text()
    code = "".join(path.read_text(errors="ignore") for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60])
    texts = ["\n\n".join(p["question"] + "\n" + p["answer"] for p in problems), prose, code]
    windows = [text[at : at + DOCUMENT_BYTES] for text in texts for at in range(0, min(len(text), num_bytes // 3), DOCUMENT_BYTES)]
    return [window for window in windows if window.strip()]


def plausible_rows(encodings: list[Encoding], k: int, vocab_size: int) -> list[Rows]:
    """Return rows whose candidates are the k most frequent followers of the token before, completed by the most frequent tokens."""
    before = np.concatenate([encoding.ids[:-1] for encoding in encodings]).astype(np.int64)
    after = np.concatenate([encoding.ids[1:] for encoding in encodings]).astype(np.int64)
    bigrams, counts = np.unique(before * vocab_size + after, return_counts=True)
    heads, followers = bigrams // vocab_size, bigrams % vocab_size
    order = np.lexsort((-counts, heads))
    heads, followers, counts = heads[order], followers[order], counts[order]
    rank = np.arange(len(heads)) - np.searchsorted(heads, heads)
    frequent = np.bincount(after, minlength=vocab_size).argsort()[::-1][:k]
    ids = np.tile(frequent, (vocab_size, 1)).astype(np.int32)
    weight = np.full((vocab_size, k), 0.01)
    kept = rank < k
    ids[heads[kept], rank[kept]], weight[heads[kept], rank[kept]] = followers[kept], counts[kept]
    for slot in range(1, k):  # a frequent token that is a follower already stands for nothing
        weight[(ids[:, :slot] == ids[:, slot : slot + 1]).any(1), slot] = 0.0
    probs = 0.85 * weight / weight.sum(1, keepdims=True)
    by_weight = np.argsort(-probs, axis=1)
    ids, probs = np.take_along_axis(ids, by_weight, 1), np.take_along_axis(probs, by_weight, 1)
    with np.errstate(divide="ignore"):
        log_probs = np.log(probs).astype(np.float32)

    def of(encoding: Encoding) -> Rows:
        speaks = np.flatnonzero(encoding.starts >= 0)
        head = encoding.ids[np.maximum(speaks - 1, 0)]
        topk = TopK(ids[head], log_probs[head], np.full(len(head), np.log(0.15), np.float32), vocab_size)
        missed = np.flatnonzero(~(topk.ids == encoding.ids[speaks][:, None]).any(1))[::2]  # followers miss twice as often as a model
        topk.ids[missed, missed % k] = encoding.ids[speaks][missed]
        at = topk.ids == encoding.ids[speaks][:, None]
        nll = np.where(at.any(1), -np.where(at, topk.log_probs, -np.inf).max(1, initial=-np.inf), 9.0).astype(np.float32)
        return Rows(encoding.starts[speaks], encoding.ends[speaks], encoding.ids[speaks].astype(np.int32), nll, topk)

    return [of(encoding) for encoding in encodings]


def each(work: Callable[[Any], Any], items: Sequence[Any]) -> None:
    """Do the work for one item after the other and let each result go, as training does."""
    for item in items:
        work(item)


def folder_of(name: str, assets: Path) -> Path:
    """Return the folder of a tokenizer, given as one or as a name below the assets."""
    return Path(name) if Path(name).is_dir() else assets / "tokenizers" / name


def pair_figures(folders: list[Path], assets: Path, megabytes: float, k: int, rounds: int) -> dict[str, Any]:
    """Return the figures of one pair of tokenizers, given as folders: source, target."""
    source, target = (ByteTokenizer.load(folder) for folder in folders)
    texts = corpus(assets, int(megabytes * 1e6))
    documents = [Document.plain(text) for text in texts]
    of_source, of_target = source.encode_many(documents), target.encode_many(documents)
    rows = plausible_rows(of_source, k, source.vocabulary.size)

    begin = time.process_time()
    built = build_pair(source.vocabulary, target.vocabulary, target.first_pieces)
    built_s = time.process_time() - begin
    tokens = first_piece_map(source.vocabulary, target.vocabulary, target.first_pieces)
    counts = count_pairs(zip(of_source, of_target, strict=True), source.vocabulary, target.vocabulary)
    longer = longer_map(counts, source.vocabulary, target.vocabulary)
    pair = Pair.from_arrays(source.vocabulary, target.vocabulary, built.to_arrays(), tokens, longer, target.first_pieces)
    begin = time.process_time()
    aligned = align_many(ByteLaw(), rows, of_target, pair)
    first_s = time.process_time() - begin  # the tokenizer is asked how tokens go on; later its answers are known

    at_once = [slice(n, n + DOCUMENTS_AT_ONCE) for n in range(0, len(texts), DOCUMENTS_AT_ONCE)]
    arrays = [concatenate(rows[some], of_target[some]) for some in at_once]
    raw = [Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in folders]
    jobs = {
        "tokenise": lambda: each(
            lambda some: [tokenizer.encode_batch_fast(texts[some], add_special_tokens=False) for tokenizer in raw], at_once
        ),
        "join": lambda: each(lambda chunk: Join()(*chunk, pair), arrays),
        "byte_law": lambda: each(lambda chunk: ByteLaw()(*chunk, pair), arrays),
        "align_many": lambda: align_many(ByteLaw(), rows, of_target, pair),
        "by_document": lambda: each(lambda document: ByteLaw()(*document, pair), list(zip(rows, of_target, strict=True))),
    }
    seconds = timed(jobs, rounds, warm_up=True)
    num_tokens = sum(len(encoding.ids) for encoding in of_target)
    maps = map_figures(source.vocabulary, target.vocabulary, 3 if source.vocabulary.size < 100_000 else 1)
    return {
        "join_over_tokenise": round(seconds["join"] / seconds["tokenise"], 4),
        "map_over_cdist": max(each["of_cdist"] for each in maps.values()),
        "map_identical": all(each["agreement"] == 1 for each in maps.values()),
        "map_peak_mb": max((each["peak_mb"] for each in maps.values() if each["peak_mb"] is not None), default=None),
        "byte_law_over_tokenise": round(seconds["byte_law"] / seconds["tokenise"], 4),
        "byte_law_first_time_over_tokenise": round(first_s / seconds["tokenise"], 4),
        "align_many_over_tokenise": round(seconds["align_many"] / seconds["tokenise"], 4),
        "one_document_ms": round(1000 * seconds["by_document"] / len(texts), 3),
        "join_tokens_per_s": round(num_tokens / seconds["join"]),
        "byte_law_tokens_per_s": round(num_tokens / seconds["byte_law"]),
        "tokenise_ns_per_target_token": round(1e9 * seconds["tokenise"] / num_tokens),
        "target_tokens": num_tokens,
        "true_token_not_kept": round(float(np.mean([(r.topk.ids != r.next_ids[:, None]).all(1).mean() for r in rows])), 3),
        "build_pair_s": round(built_s, 2),
        "pair_mb": round(sum(table.nbytes for table in built.to_arrays().values()) / 1e6, 1),
        "coverage": round(float(np.mean(np.concatenate([part.taught for part in aligned]))), 4),
        "map": maps,
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=Path(__file__).resolve().parents[2] / "shared/assets")
    parser.add_argument("--pairs", nargs="+", default=["gpt_neox:llama2", "qwen2_5:llama2"], help="the first one's figures stand on top")
    parser.add_argument("--megabytes", type=float, default=1.5)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in given.pairs:
        folders = [folder_of(side, given.assets) for side in name.split(":")]
        figures[name.replace(":", " -> ")] = pair_figures(folders, given.assets, given.megabytes, given.k, given.rounds)
    first = next(iter(figures.values()))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "numpy": np.__version__}
    wanted = ("join_over_tokenise", "map_over_cdist", "map_identical", "map_peak_mb", "byte_law_over_tokenise")
    print(json.dumps({"benchmark": "align", **{name: first[name] for name in wanted}, "goal_join_over_tokenise": 0.10, "figures": figures,
                      "k": given.k, "machine": machine, "commit": commit, "command": " ".join(["python -m benchmarks.align", *sys.argv[1:]])}))  # fmt: skip


if __name__ == "__main__":
    main()
