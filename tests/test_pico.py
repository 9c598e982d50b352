from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from lmfuse.pico import DOMAINS, FOLDER, SOURCES, TARGET, model_folder, text_file

MODELS = (*SOURCES, TARGET)


def _lines(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for domain in DOMAINS for line in text_file(split, domain).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def measured() -> dict:
    return json.loads((FOLDER / "measured.json").read_text())


def test_all_weights_together_are_small_and_safetensors_only():
    files = [path for path in (FOLDER / "models").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}
    assert sum(path.stat().st_size for path in files) <= 40_000_000


@pytest.mark.parametrize("name", MODELS)
def test_a_model_loads_with_plain_transformers_and_is_what_was_measured(name, measured):
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model, info = AutoModelForCausalLM.from_pretrained(model_folder(name), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    assert model.config.max_position_embeddings == 512
    assert model.num_parameters() == measured["models"][name]["parameters"]
    assert name == TARGET or 2e6 <= model.num_parameters() <= 5e6


@pytest.mark.parametrize("name", MODELS)
def test_a_tokenizer_survives_transformers_and_round_trips_the_demo_text(name):
    from transformers import AutoTokenizer

    raw, loaded = Tokenizer.from_file(str(model_folder(name) / "tokenizer.json")), AutoTokenizer.from_pretrained(model_folder(name))
    for text in [line["text"] for line in _lines("eval")[::7]] + ["naïve café, 東京 🙂"]:
        ids = raw.encode(text).ids
        assert loaded(text)["input_ids"] == ids
        assert raw.decode(ids) == text


def test_the_tokenizers_are_of_three_kinds():
    state = {name: json.loads((model_folder(name) / "tokenizer.json").read_text()) for name in MODELS}
    assert {name: s["model"]["type"] for name, s in state.items()} == {"code": "BPE", "math": "BPE", "prose": "Unigram", "target": "BPE"}
    assert [state[name]["model"].get("byte_fallback", False) for name in MODELS] == [False, True, True, False]
    assert state["code"]["model"]["vocab"] != state["target"]["model"]["vocab"]


def test_the_demo_text_fits_every_model_and_its_splits_do_not_overlap():
    splits = {split: _lines(split) for split in ("train", "eval")}
    tokenizers = [Tokenizer.from_file(str(model_folder(name) / "tokenizer.json")) for name in MODELS]
    for lines in splits.values():
        assert {line["domain"] for line in lines} == set(DOMAINS)
        assert max(len(tokenizer.encode(line["text"]).ids) for line in lines for tokenizer in tokenizers) <= 480
    assert min(sum(line["domain"] == domain for line in splits["eval"]) for domain in DOMAINS) >= 60
    grams = {
        split: {line["text"][i : i + 200] for line in lines for i in range(len(line["text"]) - 200)} for split, lines in splits.items()
    }
    assert not grams["train"] & grams["eval"]


def test_each_specialist_is_clearly_the_best_in_its_domain(measured):
    bits = measured["bits_per_byte"]
    for domain in DOMAINS:
        others = [bits[name][domain] for name in MODELS if name != domain]
        assert bits[domain][domain] < min(others) - 0.3
    assert all(0.1 < value < 8 for row in bits.values() for value in row.values())


@pytest.mark.parametrize("name", MODELS)
def test_the_measurement_can_be_repeated_on_a_few_documents(name, measured):
    """The mean over 12 documents of a domain lies near the published mean over all of them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model_folder(name))
    model = AutoModelForCausalLM.from_pretrained(model_folder(name), dtype=torch.float32)
    domain = name if name in DOMAINS else "prose"
    texts = [line["text"] for line in _lines("eval") if line["domain"] == domain][:12]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[first, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
    bits_per_byte = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    assert bits_per_byte == pytest.approx(measured["bits_per_byte"][name][domain], rel=0.25)


def test_the_committed_report_of_the_demo_is_of_todays_recipe_and_shows_a_gain():
    from lmfuse.artefacts import content_key
    from lmfuse.demo import recipe_path
    from lmfuse.recipe import load_recipe

    results = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
    report = json.loads((results / "demo.json").read_text(encoding="utf-8"))
    assert report["run"]["recipe"] == content_key(load_recipe(recipe_path()).to_yaml()), "run the demo again and commit its report.json"
    against = {c["b"]: c for c in report["comparisons"] if c["a"] == "fused" and c["domain"] == "macro"}
    for control in ("clm", "self", "target"):
        assert against[control]["ci95"][1] < 0
