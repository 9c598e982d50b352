"""Which alignment says what the source says: projection fidelity over real models and tokenizers, without any training.

    python -m benchmarks.fidelity --models DIR [--assets DIR] [--cache DIR] [--sources NAME ...]

Each model of DIR reads the same documents of maths, code and prose once; its rows (the 100 likeliest, cut to k = 10) are then projected
onto each tokenizer of the assets by each alignment. Per pair and alignment:

- ``own``, ``projected``: bits per byte of the true target tokens under the source itself and under the projected rows, on the tokens
  that the alignment teaches. ``own`` is the byte law of the same spans; a true token that a row did not keep has an even share of its tail.
  Tokens to which a row leaves nothing at all (``impossible``, a share: wrong one-hots) would cost infinitely much and are left out of both.
- ``next_byte``: half the L1 distance between the law of the next byte by the projected rows and by the source's own, both from the same
  k candidates, averaged over the bytes that the alignment teaches: the mapping, candidates that did not follow included.
- ``next_byte_all``: the same over every byte of the text; where nothing is taught the distance is 1.
- ``coverage``, ``lost``, ``one_hot``: shares of the target's text tokens with a row, of probability without a target id, of published fallbacks.

``truncation`` stands apart: the same distance between the source's rows cut to k and its rows of 100. ``short tokens`` measures the hole of
candidates that did not follow and are the beginning of longer target tokens: models are run once more with such a candidate written.
``stops_measured`` is the share of its probability that the short target token really has; taking it for the short token says 1, the shares
counted over other text say ``stops_by_shares``. A student averages over contexts, so the mean has to be right; ``distance`` (half the L1
distance of the whole distributions, place by place) rewards the commonest case instead and is printed for that reason.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.dtw import Dtw
from lmfuse.align.join import Join
from lmfuse.align.next_bytes import next_bytes, projected_law, true_nll
from lmfuse.align.spans import align_many
from lmfuse.bytes import ByteTokenizer
from lmfuse.pairs import load_map, load_pair
from lmfuse.store import RowStore
from lmfuse.types import Alignment, Document, Encoding, Rows, VocabularyMap

KEPT, K = 100, 10
METHODS: dict[str, Any] = {
    "byte_law": ByteLaw(),
    **{f"join {name}": Join(map=name) for name in ("exact", "first_piece", "pieces", "min_ed", "co_occurrence", "co_occurrence_share")},
    "fusellm": Dtw(accept="min_ed"),
    "fusechat": Dtw(accept="suffix", one_hot="next"),
}
PROBES = 60  # runs of a model with a candidate that did not follow


def documents(assets: Path, first: int, last: int) -> list[Document]:
    """Return some documents of each kind, at most 1000 characters of each: maths, code, prose."""
    problems = [json.loads(line) for line in (assets / "data/gsm8k/test.jsonl").open(encoding="utf-8")]
    maths = [p["question"] + "\n" + p["answer"] for p in problems]
    with gzip.open(assets / "data/humaneval/HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        code = [p["prompt"] + p["canonical_solution"] for p in map(json.loads, file)]
    prose = [line.strip() for line in (assets / "data/wikitext2/test.txt").read_text(encoding="utf-8").split("\n") if len(line) > 400]
    texts = (("math", maths), ("code", code), ("prose", prose))
    return [Document.plain(text[:1000], domain) for domain, each in texts for text in each[first:last]]


def rows_of(model: Path, texts: list[Document], cache: Path) -> list[Rows]:
    """Return a model's rows, collected where the cache does not have them."""
    from lmfuse.artefacts import content_key
    from lmfuse.collect import collect
    from lmfuse.models import ModelSpec, inspect_model, load_model

    key = [inspect_model(ModelSpec(model=str(model)), cache).key, ByteTokenizer.load(model).key]
    folder = cache / "rows" / content_key([key, [document.id for document in texts], KEPT])
    if not (folder / "manifest.json").exists():
        loaded = load_model(ModelSpec(model=str(model)))
        collect(loaded, texts, folder, k=KEPT, batch_tokens=1024, shard_documents=64, precision="float32")
    store = RowStore.open(folder)
    return [store[document.id] for document in texts]


def cut(rows: Sequence[Rows], k: int) -> list[Rows]:
    """Return rows of the k likeliest candidates."""
    return [replace(each, topk=each.topk.first(k)) for each in rows]


def distance(law: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return half the L1 distance of two laws at each byte: 0 where they agree, 1 where they share nothing."""
    return 0.5 * np.abs(law - other).sum(axis=1)


@dataclass
class Source:
    """One model's rows over the documents, cut to k, and its law of the next byte."""

    name: str
    tokenizer: ByteTokenizer
    rows: list[Rows]
    laws: list[np.ndarray]
    truncation: float


def source_of(name: str, models: Path, texts: list[Document], cache: Path) -> Source:
    """Read a model's rows and its law of the next byte."""
    tokenizer = ByteTokenizer.load(models / name)
    whole = rows_of(models / name, texts, cache)
    rows = cut(whole, K)
    laws, full = (
        [next_bytes(r, tokenizer.vocabulary, d.trained_bytes) for r, d in zip(each, texts, strict=True)] for each in (rows, whole)
    )
    return Source(name, tokenizer, rows, laws, float(np.concatenate([distance(*pair) for pair in zip(laws, full, strict=True)]).mean()))


def measure(
    aligned: list[Alignment], own: list[Alignment], encodings: list[Encoding], source: Source, target: ByteTokenizer, texts: list[Document]
) -> dict[str, float]:
    """Return the figures of one alignment. ``own`` is the byte law's, which knows the source's cost of every token."""
    sums = dict.fromkeys(("own", "projected", "bytes", "tokens", "rows", "lost", "one_hot", "judged", "impossible"), 0.0)
    taught_bytes, all_bytes = [], []
    for found, law, encoding, by_source, document in zip(aligned, own, encodings, source.laws, texts, strict=True):
        text = encoding.starts >= 0
        judged = text & found.taught & ~np.isnan(law.truth_nll_nats)
        projected = true_nll(found, encoding)
        sums["judged"] += float(judged.sum())
        sums["impossible"] += float((judged & np.isinf(projected)).sum())
        judged &= np.isfinite(projected)
        sums["own"] += float(law.truth_nll_nats[judged].sum(dtype=np.float64))
        sums["projected"] += float(projected[judged].sum())
        sums["bytes"] += float((encoding.ends - encoding.starts)[judged].sum())
        sums["tokens"] += float(text.sum())
        sums["rows"] += float((text & (found.source_row >= 0)).sum())
        sums["lost"] += float(found.lost_mass[text & (found.source_row >= 0)].sum())
        sums["one_hot"] += float(found.one_hot.sum())
        by_target = projected_law(found, encoding, target.vocabulary, document.trained_bytes)
        away = distance(by_target, by_source)
        known = by_target.sum(axis=1) > 0
        taught_bytes.append(away[known])
        all_bytes.append(np.where(known, away, 1.0))
    bits = sums["bytes"] * np.log(2)
    return {
        "coverage": sums["rows"] / sums["tokens"],
        "lost": sums["lost"] / max(sums["rows"], 1),
        "one_hot": sums["one_hot"] / sums["tokens"],
        "own": sums["own"] / max(float(bits), 1.0),
        "projected": sums["projected"] / max(float(bits), 1.0),
        "impossible": sums["impossible"] / max(sums["judged"], 1),
        "next_byte": float(np.concatenate(taught_bytes).mean()),
        "next_byte_all": float(np.concatenate(all_bytes).mean()),
    }


def pair_figures(
    source: Source, target: ByteTokenizer, texts: list[Document], corpus: list[Document], cache: Path
) -> dict[str, dict[str, float]]:
    """Return the figures of every alignment between one source and one target."""
    encodings = target.encode_many(texts)
    own: list[Alignment] = []
    found = {}
    for name, method in METHODS.items():
        pair = load_pair(source.tokenizer, target, cache, method, corpus)
        if isinstance(method, Dtw):
            aligned = [method(rows, encoding, pair) for rows, encoding in zip(source.rows, encodings, strict=True)]
        else:
            aligned = align_many(method, source.rows, encodings, pair)
        own = own or aligned  # the byte law stands first
        found[name] = {what: round(value, 5) for what, value in measure(aligned, own, encodings, source, target, texts).items()}
    whole = align_many(ByteLaw(k=4 * K), source.rows, encodings, load_pair(source.tokenizer, target, cache, ByteLaw(), corpus))
    figures = measure(whole, own, encodings, source, target, texts)
    found["byte_law, 4k kept"] = {what: round(value, 5) for what, value in figures.items()}
    return found


# ------------------------------------------------------------------------------------------------------------------ short tokens


def stops(shares: VocabularyMap, target: ByteTokenizer, source: ByteTokenizer) -> np.ndarray:
    """Return for each source token the share of the target token of just its bytes; 1 where no longer one is known."""
    alone = np.ones(source.vocabulary.size)
    for token in np.flatnonzero(np.diff(shares.indptr)):
        entries = slice(shares.indptr[token], shares.indptr[token + 1])
        same = target.vocabulary.lengths[shares.target_ids[entries]] == source.vocabulary.lengths[token]
        alone[token] = shares.weights[entries][same].sum()
    return alone


def short_tokens(
    source: Source, target: ByteTokenizer, models: Path, texts: list[Document], corpus: list[Document], cache: Path
) -> dict[str, float]:
    """Write candidates that did not follow, run the model on them, and compare what the target would write with both guesses."""
    import torch

    from lmfuse.models import ModelSpec, load_model

    shares = load_map(source.tokenizer, target, cache, "longer", corpus)
    alone = stops(shares, target, source.tokenizer)
    ambiguous, places = 0.0, []
    for number, rows in enumerate(source.rows):
        mass = np.exp(rows.topk.log_probs) * (rows.topk.ids != rows.next_ids[:, None]) * (alone[rows.topk.ids] < 1)
        ambiguous += float(mass.sum())
        best = mass.argmax(axis=1)
        each = np.arange(len(rows))
        places += [(float(mass[u, best[u]]), number, int(u), int(rows.topk.ids[u, best[u]])) for u in each[mass[each, best] > 0.05]]
    rng = np.random.default_rng(0)
    chosen = [places[n] for n in rng.permutation(len(places))[:PROBES]]
    model = load_model(ModelSpec(model=str(models / source.name)))
    by_short, by_shares, real = [], [], []
    for _, number, row, candidate in chosen:
        encoding = source.tokenizer.encode(texts[number])
        before = np.flatnonzero(encoding.starts >= 0)[row]
        ids = torch.from_numpy(np.append(encoding.ids[:before], candidate))[None]
        with torch.inference_mode():
            probs = model.head.logits(model.hidden(ids)[0, -1:]).softmax(1)[0].double().numpy()
        written = source.tokenizer.vocabulary.bytes_of(candidate)
        likely = np.argsort(-probs)[:200]
        onto = target.first_pieces([written + source.tokenizer.vocabulary.bytes_of(int(n)) for n in likely])
        truth = np.bincount(onto[onto >= 0], probs[likely][onto >= 0], minlength=target.vocabulary.size)
        truth /= truth.sum()
        guess = np.zeros(target.vocabulary.size)
        entries = slice(shares.indptr[candidate], shares.indptr[candidate + 1])
        guess[shares.target_ids[entries]] = shares.weights[entries]
        short = target.first_pieces([written])[0]
        by_short.append(1 - truth[short])
        by_shares.append(0.5 * np.abs(truth - guess).sum())
        real.append((truth[short], alone[candidate]))
    rows_total = sum(len(rows) for rows in source.rows)
    found = {"probability_concerned": ambiguous / rows_total, "places": float(len(places)), "probes": float(len(chosen))}
    if chosen:
        stopped, guessed = np.array(real).T
        found |= {
            "stops_measured": float(stopped.mean()),
            "stops_by_shares": float(guessed.mean()),
            "squared_error_short_token_alone": float(((1 - stopped) ** 2).mean()),
            "squared_error_shares": float(((guessed - stopped) ** 2).mean()),
            "distance_short_token_alone": float(np.mean(by_short)),
            "distance_shares": float(np.mean(by_shares)),
        }
    return {what: round(value, 4) for what, value in found.items()}


# ----------------------------------------------------------------------------------------------------------------------- summary


def alike(source: Source, target: ByteTokenizer, texts: list[Document]) -> bool:
    """Return whether both tokenizers cut all documents into the same ids."""
    encodings = target.encode_many(texts)
    return all(np.array_equal(e.ids[e.starts >= 0], rows.next_ids) for e, rows in zip(encodings, source.rows, strict=True))


def summary(pairs: dict[str, dict[str, dict[str, float]]], same: set[str]) -> dict[str, Any]:
    """Return what the pairs say together: the default against the source, and against each challenger.

    To beat one on a pair is to be nearer to the source in bits per byte and in the law of the next byte. Pairs whose two tokenizers cut
    the text into the ``same`` tokens are not counted there: every alignment but the published ones says the same.
    """

    def over_source(figures: dict[str, float]) -> float:
        return figures["projected"] / figures["own"]

    def beats(found: dict[str, dict[str, float]], name: str) -> bool:
        ours, theirs = found["byte_law"], found[name]
        likelier = over_source(ours) < over_source(theirs) or theirs["impossible"] > 0
        return likelier and ours["next_byte_all"] < theirs["next_byte_all"]

    worst = {name: max(over_source(found[name]) for found in pairs.values()) for name in METHODS}
    differing = {name: found for name, found in pairs.items() if name not in same}
    won = {name: sum(beats(found, name) for found in differing.values()) for name in METHODS if name != "byte_law"}
    return {
        "pairs": len(pairs),
        "worst_default_over_source": round(worst["byte_law"], 4),
        "worst_over_source": {name: round(value, 4) for name, value in worst.items()},
        "pairs_that_cut_alike": sorted(same),
        "default_beats_in_both_measures_on_pairs": won,
        "default_beats_min_ed_on_all_pairs": won["join min_ed"] == won["fusellm"] == len(differing),
        "mean_next_byte_all": {name: round(float(np.mean([f[name]["next_byte_all"] for f in pairs.values()])), 4) for name in METHODS},
        "mean_coverage": {name: round(float(np.mean([f[name]["coverage"] for f in pairs.values()])), 4) for name in METHODS},
    }


def state_of_the_repository() -> str:
    """Return the commit, and that there are changes beside it if so; asked before anything is measured."""
    asked = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    commit, changes = (subprocess.run(each, capture_output=True, text=True, check=False).stdout.strip() for each in asked)
    return commit + (" with changes" if changes else "")


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=os.environ.get("LMFUSE_REAL_MODELS"), help="default: $LMFUSE_REAL_MODELS")
    parser.add_argument("--assets", type=Path, default=Path(__file__).resolve().parents[2] / "shared/assets")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "lmfuse-fidelity")
    parser.add_argument("--sources", nargs="+", default=["smollm2", "gemma3", "tinyllama", "qwen_coder"])
    parser.add_argument("--documents", type=int, default=24, help="of each kind")
    given = parser.parse_args()

    if given.models is None:
        raise SystemExit("fidelity: give --models, a folder with the models' folders (see benchmarks/real.py for which)")
    commit = state_of_the_repository()
    texts, corpus = documents(given.assets, 0, given.documents), documents(given.assets, given.documents, given.documents + 120)
    load: Callable[[Path], ByteTokenizer] = ByteTokenizer.load
    targets = {folder.name: load(folder) for folder in sorted((given.assets / "tokenizers").iterdir())}
    targets |= {name: load(given.models / name) for name in given.sources if name in ("smollm2", "gemma3")}
    pairs: dict[str, dict[str, dict[str, float]]] = {}
    truncation, holes = {}, {}
    same: set[str] = set()
    for name in given.sources:
        source = source_of(name, given.models, texts, given.cache)
        truncation[name] = round(source.truncation, 4)
        for onto, target in targets.items():
            if onto != name:
                if alike(source, target, texts):
                    same.add(f"{name} -> {onto}")
                pairs[f"{name} -> {onto}"] = pair_figures(source, target, texts, corpus, given.cache)
                print(f"{name} -> {onto}", pairs[f"{name} -> {onto}"]["byte_law"], file=sys.stderr, flush=True)
        for onto in ("gpt2", "smollm2", "llama2", "qwen2_5"):
            if onto in targets and onto != name and name in given.sources[:2]:
                holes[f"{name} -> {onto}"] = short_tokens(source, targets[onto], given.models, texts, corpus, given.cache)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "numpy": np.__version__}
    figures = summary(pairs, same) | {"truncation_next_byte": truncation, "short_tokens": holes}
    found = {"benchmark": "fidelity", "worst_default_over_source": figures["worst_default_over_source"],
             "default_beats_min_ed_on_all_pairs": figures["default_beats_min_ed_on_all_pairs"], "figures": figures, "pairs": pairs,
             "documents": len(texts), "bytes": sum(len(d.trained_bytes) for d in texts), "k": K,
             "machine": machine, "commit": commit, "command": "python -m benchmarks.fidelity " + " ".join(sys.argv[1:])}  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
